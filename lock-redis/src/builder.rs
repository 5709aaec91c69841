use std::time::Duration;

use lock_core::{ErrorKind, LockError, Operation, Secret, TlsFiles};
use redis::{Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, TlsCertificates};

use crate::{
    capabilities::{BACKEND, capabilities},
    error::Failure,
    lock::RedisLock,
};

/// Sets up a [`RedisLock`].
///
/// ```no_run
/// use lock_redis::RedisLock;
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), lock_core::LockError> {
/// let locks = RedisLock::builder().with_address("redis.internal", 6379).with_prefix("prod:").with_ttl(Duration::from_secs(15)).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisLockBuilder {
    host: String,
    port: u16,
    database: u32,
    username: Option<String>,
    password: Option<Secret>,
    tls: Option<TlsFiles>,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) poll_interval: Duration,
}

/// The port of Redis.
pub(crate) const DEFAULT_PORT: u16 = 6379;

/// Longest prefix, in bytes.
const MAX_PREFIX: usize = 1024;

impl RedisLockBuilder {
    pub(crate) fn new() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: DEFAULT_PORT,
            database: 0,
            username: None,
            password: None,
            tls: None,
            prefix: String::new(),
            ttl: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(1),
            poll_interval: Duration::from_secs(2),
        }
    }

    /// The server; default: `127.0.0.1`, port 6379. An IPv6 address may have brackets.
    pub fn with_address(mut self, host: impl AsRef<str>, port: u16) -> Self {
        let host = host.as_ref();
        self.host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        self.port = port;
        self
    }

    /// The number of the database; default: 0.
    pub fn with_database(mut self, database: u32) -> Self {
        self.database = database;
        self
    }

    /// The user, for servers with access rules; default: the server's default user.
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The password; default: none.
    pub fn with_password(mut self, password: Secret) -> Self {
        self.password = Some(password);
        self
    }

    /// Encrypts the connections, and trusts the system's certificate authorities unless the files name one.
    pub fn with_tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// What is put before every name to make its key, as it is; default: nothing. Up to 1024 bytes without control
    /// characters.
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The TTL of acquisitions that do not ask for one; default: 30 s.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Longest time until a connection can be used: name resolution, TCP, TLS and log-in together; default: 5 s. An
    /// acquisition that waits puts up with an unreachable server for twice as long.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Longest time for the answer to a request; default: 1 s. A connection that has been silent for this long is
    /// replaced.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How often a waiter looks although the server reported nothing; default: 2 s, less some jitter.
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`](ErrorKind::InvalidOptions) for a setting that cannot be used, and those of
    /// [`RedisLock::connect`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(self) -> Result<RedisLock, LockError> {
        let client = self.client().map_err(|error| error.during(Operation::Connect).on(BACKEND))?;
        self.connect_with(client).await
    }

    /// Connects with the address, credentials and TLS settings of an existing `redis` client instead of the builder's.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(self, client: Client) -> Result<RedisLock, LockError> {
        let connect = async {
            self.check()?;
            if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
                ensure_crypto();
            }
            RedisLock::open(client, self).await
        };
        connect.await.map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    pub(crate) fn check(&self) -> Result<(), LockError> {
        lock_core::AcquireOptions::new().with_ttl(self.ttl).resolve(&capabilities(), self.ttl)?;
        if self.prefix.len() > MAX_PREFIX || self.prefix.chars().any(char::is_control) {
            return Err(invalid("the prefix must have at most 1024 bytes and no control characters"));
        }
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        for (what, value) in
            [("connect timeout", self.connect_timeout), ("request timeout", self.request_timeout), ("poll interval", self.poll_interval)]
        {
            if !range.contains(&value) {
                return Err(invalid(format!("the {what} of {value:?} is not between 1 ms and 1 h")));
            }
        }
        Ok(())
    }

    pub(crate) fn client(&self) -> Result<Client, LockError> {
        let (host, port) = (self.host.clone(), self.port);
        let address = match &self.tls {
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host, port),
        };
        let mut info = address.into_connection_info().map_err(Failure::unsent)?;
        let mut settings = info.redis_settings().clone().set_db(i64::from(self.database));
        match (&self.username, &self.password) {
            (None, None) => {}
            (username, Some(password)) => {
                settings = settings.set_password(password.expose());
                if let Some(username) = username {
                    settings = settings.set_username(username);
                }
            }
            (Some(_), None) => return Err(invalid("a user name needs a password; add one, or set LOCK_REDIS_PASSWORD")),
        }
        info = info.set_redis_settings(settings);
        let client = match &self.tls {
            Some(files) => Client::build_with_tls(info, certificates(files)),
            None => Client::open(info),
        };
        Ok(client.map_err(Failure::bad_setting)?)
    }
}

fn certificates(files: &TlsFiles) -> TlsCertificates {
    TlsCertificates {
        client_tls: files
            .identity
            .as_ref()
            .map(|(cert, key)| ClientTlsConfig { client_cert: cert.clone().into_bytes(), client_key: key.expose().as_bytes().to_vec() }),
        root_cert: files.ca.as_ref().map(|ca| ca.clone().into_bytes()),
    }
}

/// TLS needs a process-wide choice of cryptography where more than one is compiled in; an application's own comes first.
pub(crate) fn ensure_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just made the choice.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidOptions, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_say_so() {
        let new = RedisLockBuilder::new;
        assert!(new().check().is_ok());
        for (builder, hint) in [
            (new().with_ttl(Duration::ZERO), "TTL"),
            (new().with_prefix("a\u{1f}"), "prefix"),
            (new().with_prefix("x".repeat(1025)), "prefix"),
            (new().with_connect_timeout(Duration::ZERO), "connect timeout"),
            (new().with_request_timeout(Duration::MAX), "request timeout"),
            (new().with_poll_interval(Duration::ZERO), "poll interval"),
        ] {
            let error = builder.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn credentials_and_address_reach_the_client_and_no_output() {
        let builder =
            RedisLockBuilder::new().with_address("[::1]", 1).with_username("app").with_password(Secret::new("s3cret")).with_database(7);
        let client = builder.client().unwrap();
        let info = client.get_connection_info();
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("::1".into(), 1));
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("app"), Some("s3cret"), 7));
        assert!(!format!("{builder:?}").contains("s3cret"));
        assert_eq!(RedisLockBuilder::new().with_username("app").client().unwrap_err().kind(), ErrorKind::InvalidOptions);
    }

    #[test]
    fn a_broken_certificate_is_a_bad_setting() {
        let files = TlsFiles { ca: None, identity: Some(("not a certificate".into(), Secret::new("s3cret"))) };
        let error = RedisLockBuilder::new().with_tls(files).client().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
