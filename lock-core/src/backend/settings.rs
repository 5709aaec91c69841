use std::{fmt, ops::RangeInclusive, time::Duration};

use crate::{
    AcquireOptions, Capabilities, ErrorKind, LockError, LockName, LockUrl, Secret, Terms, TlsPem,
    backend::{RuntimeOptions, Tasks},
};

/// Settings of every client of a store: one name, one range and one message for each setting,
/// whatever the backend.
///
/// A builder holds one and gets its setters from
/// [`common_setters!`](crate::common_setters); a connector [reads](Self::read) it from a URL. Both
/// then [check](Self::check) it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// TTL of acquisitions that ask for none.
    pub ttl: Duration,
    /// Time until a connection can be used.
    pub connect_timeout: Duration,
    /// Time that a request may take.
    pub request_timeout: Duration,
    /// Part of every key, so that several applications share a store.
    pub namespace: String,
    /// User; none is the store's default one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// Encrypts the connections.
    pub tls: Option<TlsPem>,
    /// Runtime of the client's tasks.
    pub runtime: RuntimeOptions,
}

/// Range of every timeout and interval.
const TIMES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// In bytes.
const MAX_NAMESPACE: usize = 1024;

const PEM_PARAMS: [&str; 3] = ["ca", "cert", "key"];

impl Settings {
    /// Parameters that [`read`](Self::read) takes from a URL.
    pub const PARAMS: [&str; 9] = [
        "ttl",
        "namespace",
        "connect_timeout",
        "request_timeout",
        "background_thread",
        "release_at_exit",
        PEM_PARAMS[0],
        PEM_PARAMS[1],
        PEM_PARAMS[2],
    ];

    /// The defaults: a TTL of 30 s, 5 s to connect, no namespace, no user and no TLS.
    #[must_use]
    pub fn new(request_timeout: Duration) -> Self {
        Self {
            ttl: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            request_timeout,
            namespace: String::new(),
            user: None,
            password: None,
            tls: None,
            runtime: RuntimeOptions::default(),
        }
    }

    /// Takes over what a URL says. User, password and PEM files may also come from the
    /// environment, as `<env_prefix>_USERNAME`, `_PASSWORD`, `_CA`, `_CERT` and `_KEY`. The scheme
    /// `secure`, or that with a `+` and a topology behind it, turns TLS on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] if a parameter cannot be parsed, a PEM file cannot be read, or one
    /// is named without TLS.
    pub fn read(&mut self, url: &LockUrl, env_prefix: &str, secure: &str) -> Result<(), LockError> {
        for (param, setting) in [
            ("ttl", &mut self.ttl),
            ("connect_timeout", &mut self.connect_timeout),
            ("request_timeout", &mut self.request_timeout),
        ] {
            if let Some(value) = url.duration(param)? {
                *setting = value;
            }
        }
        for (param, setting) in [
            ("background_thread", &mut self.runtime.background_thread),
            ("release_at_exit", &mut self.runtime.release_at_exit),
        ] {
            if let Some(value) = url.flag(param)? {
                *setting = value;
            }
        }
        if let Some(namespace) = url.param("namespace") {
            namespace.clone_into(&mut self.namespace);
        }
        (self.user, self.password) = url.credentials(env_prefix);
        let scheme = url.scheme();
        let plain = scheme.split('+').next().unwrap_or(scheme);
        if plain == secure {
            self.tls = Some(url.tls_pem(env_prefix)?);
        } else if let Some(file) = PEM_PARAMS.iter().find(|file| url.param(file).is_some()) {
            return Err(LockError::new(
                ErrorKind::InvalidUrl,
                format!("`{file}` is for TLS; write {secure} instead of {plain} to use TLS"),
            ));
        }
        Ok(())
    }

    /// Refuses what no client can use. A namespace has at most 1,024 bytes, and
    /// the characters of a [name](LockName).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`], with the setting and its range.
    pub fn check(&self) -> Result<(), LockError> {
        check_time("connect timeout", self.connect_timeout)?;
        check_time("request timeout", self.request_timeout)?;
        if self.namespace.len() > MAX_NAMESPACE {
            return Err(invalid(format!(
                "the namespace is over {MAX_NAMESPACE} bytes; shorten it"
            )));
        }
        if !self.namespace.is_empty() {
            LockName::new(self.namespace.as_str()).map_err(|error| {
                invalid("the namespace cannot be part of a key").caused_by(error)
            })?;
        }
        if self.user.is_some() && self.password.is_none() {
            return Err(invalid(
                "a user needs a password; give both, or set the environment variable of the password",
            ));
        }
        self.tls.as_ref().map_or(Ok(()), TlsPem::check)
    }

    /// Terms of an acquire without options.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the TTL is out of the backend's range.
    pub fn terms(&self, capabilities: &Capabilities) -> Result<Terms, LockError> {
        AcquireOptions::new()
            .resolve(capabilities, self.ttl)
            .map_err(|error| invalid(error.message().to_owned()))
    }

    /// Starts the client's tasks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a runtime, or if a thread cannot be started.
    pub fn tasks(&self) -> Result<Tasks, LockError> {
        Tasks::start(RuntimeOptions {
            idle_limit: self.request_timeout,
            ..self.runtime
        })
    }
}

/// Refuses a timeout or an interval that is not from 1 ms to 1 h.
///
/// # Errors
///
/// [`ErrorKind::InvalidConfig`], with the range.
pub fn check_time(what: &str, time: Duration) -> Result<(), LockError> {
    if TIMES.contains(&time) {
        return Ok(());
    }
    Err(invalid(format!(
        "the {what} of {time:?} is not between 1 ms and 1 h"
    )))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("ttl", &self.ttl)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("namespace", &self.namespace)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("tls", &self.tls)
            .field("runtime", &self.runtime)
            .finish()
    }
}

/// Gives a builder the setters of its [`Settings`](crate::backend::Settings).
///
/// `common_setters!(Builder, settings, "6 s")`: the builder's type, the path of the field, and the
/// default request timeout, for the documentation.
#[macro_export]
macro_rules! common_setters {
    ($builder:ty, $($settings:ident).+, $request_timeout:literal) => {
        impl $builder {
            /// TTL of acquisitions that ask for none; default: 30 s.
            #[must_use]
            pub fn with_ttl(mut self, ttl: ::std::time::Duration) -> Self {
                self.$($settings).+.ttl = ttl;
                self
            }

            /// Longest time until a connection can be used, with name resolution, TCP, TLS and
            /// log-in, from 1 ms to 1 h; default: 5 s.
            #[must_use]
            pub fn with_connect_timeout(mut self, timeout: ::std::time::Duration) -> Self {
                self.$($settings).+.connect_timeout = timeout;
                self
            }

            /// Longest time that a request may take, from 1 ms to 1 h; default:
            #[doc = concat!($request_timeout, ".")]
            #[must_use]
            pub fn with_request_timeout(mut self, timeout: ::std::time::Duration) -> Self {
                self.$($settings).+.request_timeout = timeout;
                self
            }

            /// Puts a namespace into every key, so that several applications share a store;
            /// default: none, so that names are shared with all clients of the store.
            #[must_use]
            pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
                self.$($settings).+.namespace = namespace.into();
                self
            }

            /// Logs in as this user; default: the store's default user, without a password.
            #[must_use]
            pub fn with_credentials(
                mut self,
                user: impl Into<String>,
                password: impl Into<$crate::Secret>,
            ) -> Self {
                self.$($settings).+.user = Some(user.into());
                self.$($settings).+.password = Some(password.into());
                self
            }

            /// Encrypts the connections; default: no.
            #[must_use]
            pub fn with_tls(mut self, tls: $crate::TlsPem) -> Self {
                self.$($settings).+.tls = Some(tls);
                self
            }

            /// Runs connections, renewals and clean-ups on a thread of the client's own; default:
            /// no, they are tasks of the runtime that connects.
            ///
            /// With it a guard is renewed whatever the application's runtimes do: a current-thread
            /// runtime that does no work outside `block_on`, one that is blocked for longer than a
            /// TTL, or one that ends. It costs a switch of threads for each request.
            #[must_use]
            pub fn with_background_thread(mut self, background_thread: bool) -> Self {
                self.$($settings).+.runtime.background_thread = background_thread;
                self
            }

            /// Makes the end of the runtime wait for releases that are on their way, or that it
            /// sets off, as of a guard that is alive at the end of `main`; default: yes, for at
            /// most half a second in the life of the client
            /// ([`EXIT_LIMIT`]($crate::backend::EXIT_LIMIT)).
            ///
            /// A lock that is not released then stays locked until its lease ends, and a warning
            /// says so.
            #[must_use]
            pub fn with_release_at_exit(mut self, release_at_exit: bool) -> Self {
                self.$($settings).+.runtime.release_at_exit = release_at_exit;
                self
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(Duration::from_secs(1))
    }

    fn read(url: &str) -> Result<Settings, LockError> {
        let mut settings = settings();
        settings.read(&url.parse()?, "LOCK_TEST_UNSET", "stores")?;
        Ok(settings)
    }

    #[test]
    fn a_url_sets_everything() {
        let settings = read(
            "stores+many://app:s3cret@h?ttl=7s&connect_timeout=2s&request_timeout=3s\
             &namespace=prod&background_thread=true&release_at_exit=false",
        )
        .unwrap();
        let seconds = [
            settings.ttl,
            settings.connect_timeout,
            settings.request_timeout,
        ]
        .map(|time| time.as_secs());
        assert_eq!(seconds, [7, 2, 3]);
        assert_eq!(settings.namespace, "prod");
        assert_eq!(settings.user.as_deref(), Some("app"));
        assert_eq!(settings.password, Some(Secret::new("s3cret")));
        assert_eq!(settings.tls, Some(TlsPem::new()));
        assert!(settings.runtime.background_thread && !settings.runtime.release_at_exit);
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn a_url_that_cannot_be_used_says_what_to_do() {
        for (url, hint) in [
            ("store://h?ttl=soon", "duration"),
            ("store://h?background_thread=maybe", "true or false"),
            ("store://h?ca=/x", "write stores instead"),
            ("store+many://h?key=/x", "write stores instead"),
            ("stores://h?ca=/no/such/file", "cannot read"),
        ] {
            let error = read(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_say_so() {
        assert!(settings().check().is_ok());
        type Change = fn(&mut Settings);
        let changes: [(Change, &str); 7] = [
            (|it| it.connect_timeout = Duration::ZERO, "connect timeout"),
            (|it| it.request_timeout = Duration::MAX, "request timeout"),
            (|it| it.request_timeout = Duration::from_micros(999), "1 ms"),
            (|it| it.namespace = "a\u{1f}".into(), "namespace"),
            (|it| it.namespace = "x".repeat(1025), "namespace"),
            (|it| it.user = Some("app".into()), "password"),
            (
                |it| it.tls = Some(TlsPem::new().with_ca("none")),
                "authority",
            ),
        ];
        for (change, hint) in changes {
            let mut settings = settings();
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn a_key_that_is_not_pem_is_not_shown() {
        let mut settings = settings();
        settings.tls = Some(TlsPem::new().with_identity("s3cret", "s3cret"));
        let error = settings.check().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
