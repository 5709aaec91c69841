use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::ConnectOptions;
use lock_core::{
    Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockName, LockUrl, Operation,
    backend::{Settings, Tasks},
    common_setters,
};

use crate::{
    BACKEND, EtcdLock, capabilities,
    core::Core,
    transport::{Cluster, Times},
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// HTTP/2 pings find a connection that went silent; the server refuses them more often than every 5
/// s.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The port of an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

/// Environment variables of credentials and PEM files that the URL does not give.
const ENV_PREFIX: &str = "LOCK_ETCD";

impl EtcdLock {
    /// Configures a connection.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// use lock_core::DistributedLockExt;
    /// use lock_etcd::EtcdLock;
    /// use std::time::Duration;
    ///
    /// let locks = EtcdLock::builder(["127.0.0.1:2379"]).with_ttl(Duration::from_secs(10)).connect().await?;
    /// locks.acquire("orders").await?.release().await
    /// # }
    /// ```
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdLockBuilder {
        EtcdLockBuilder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            settings: Settings::new(REQUEST_TIMEOUT),
        }
    }
}

/// Configures an [`EtcdLock`].
///
/// TTLs are whole seconds, at least 2. Below 5 s a lock may be lost when etcd elects a new leader.
/// All keys are below `<namespace>/`. A user needs a role that may read and write every key that
/// starts with that, or with `<name>/` for each name that it locks if there is no namespace
/// (`etcdctl role grant-permission ROLE readwrite <namespace>/ --prefix=true`); leases and watches
/// need no further permission. With TLS and no certificate authority of its own it trusts the
/// system's.
#[derive(Clone, Debug)]
pub struct EtcdLockBuilder {
    endpoints: Vec<String>,
    settings: Settings,
}

impl EtcdLockBuilder {
    /// Connects, and makes sure that a member answers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if none does within the connect timeout,
    /// [`ErrorKind::PermissionDenied`] for wrong credentials, [`ErrorKind::InvalidConfig`] for a
    /// setting that cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind but a lease that may run out by itself.
    pub async fn connect(self) -> Result<EtcdLock, LockError> {
        self.open(|this, tasks| {
            this.check()?;
            let options = this.connect_options()?;
            Ok(Cluster::new(
                this.endpoints.clone(),
                &options,
                this.times(),
                tasks,
            ))
        })
        .await
    }

    /// Uses a client that the application has connected; of this builder's settings only namespace,
    /// TTL and timeouts count.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    #[cfg(feature = "etcd-client-0_21")]
    pub async fn connect_with(self, client: etcd_client::Client) -> Result<EtcdLock, LockError> {
        self.open(|this, tasks| Ok(Cluster::of_client(client, this.times(), tasks)))
            .await
    }

    async fn open(
        self,
        cluster: impl FnOnce(&Self, &Tasks) -> Result<Cluster, LockError>,
    ) -> Result<EtcdLock, LockError> {
        let open = async {
            self.settings.check()?;
            let terms = self.settings.terms(&capabilities())?;
            let tasks = self.settings.tasks()?;
            let cluster = cluster(&self, &tasks)?;
            let core = Core::new(cluster, self.prefix()?, terms.ttl, &tasks);
            core.connect(&terms, self.settings.connect_timeout).await?;
            Ok(EtcdLock(core))
        };
        open.await
            .map_err(|error: LockError| error.during(Operation::Connect).on(BACKEND))
    }

    fn check(&self) -> Result<(), LockError> {
        if self.endpoints.is_empty() || self.endpoints.iter().any(String::is_empty) {
            return Err(invalid_config(
                "no endpoint is given; write host:port, by default etcd's port is 2379",
            ));
        }
        if self.settings.user.as_deref() == Some("") {
            return Err(invalid_config(
                "the user is empty; etcd has no default user",
            ));
        }
        Ok(())
    }

    /// Start of all keys.
    fn prefix(&self) -> Result<String, LockError> {
        Ok(match self.settings.namespace.trim_matches('/') {
            "" => String::new(),
            namespace => format!("{}/", LockName::new(namespace)?),
        })
    }

    fn times(&self) -> Times {
        Times {
            request: self.settings.request_timeout,
        }
    }

    fn connect_options(&self) -> Result<ConnectOptions, LockError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.settings.connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let (Some(user), Some(password)) = (&self.settings.user, &self.settings.password) {
            options = options
                .with_user(user, password.expose())
                .with_auto_token_refresh(true);
        }
        match &self.settings.tls {
            Some(pem) => with_tls(options, pem),
            None => Ok(options),
        }
    }
}

common_setters!(
    EtcdLockBuilder,
    settings,
    "6 s. It counts for all members together, retries included; one attempt on one member takes at \
     most a third of it"
);

#[cfg(feature = "_tls")]
fn with_tls(options: ConnectOptions, pem: &lock_core::TlsPem) -> Result<ConnectOptions, LockError> {
    use etcd_client::{Certificate, Identity, TlsOptions};

    let mut tls = match &pem.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_enabled_roots(),
    };
    if let Some((cert, key)) = &pem.identity {
        tls = tls.identity(Identity::from_pem(cert, key.expose()));
    }
    Ok(options.with_tls(tls))
}

#[cfg(not(feature = "_tls"))]
fn with_tls(_: ConnectOptions, _: &lock_core::TlsPem) -> Result<ConnectOptions, LockError> {
    Err(invalid_config(
        "TLS is not compiled in; enable the Cargo feature `tls-ring` or `tls-aws-lc`",
    ))
}

fn invalid_config(message: &'static str) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}

/// Opens `etcd://` URLs, and `etcds://` ones with TLS.
///
/// `etcd://[user:password@]host[:2379][,host[:2379]...][/namespace][?parameters]`, with the
/// parameters `ttl`, `connect_timeout` and `request_timeout` (durations such as `30s`),
/// `background_thread` and `release_at_exit` (`true` or `false`), `namespace` (instead of the
/// path), and with `etcds` also `ca`, `cert` and `key` (paths of PEM files). What the URL leaves
/// out is taken from `LOCK_ETCD_USERNAME`, `LOCK_ETCD_PASSWORD`, `LOCK_ETCD_CA`, `LOCK_ETCD_CERT`
/// and `LOCK_ETCD_KEY` in the environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdConnector;

impl EtcdConnector {
    /// Connects, as [`connect`](Connector::connect) does, and keeps the type.
    ///
    /// # Errors
    ///
    /// As [`connect`](Connector::connect).
    pub async fn open(&self, url: &LockUrl) -> Result<EtcdLock, LockError> {
        let connected = builder_of(url)?.connect().await;
        connected.map_err(LockError::in_url)
    }
}

#[async_trait]
impl Connector for EtcdConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["etcd", "etcds"]
    }

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        let builder = builder_of(url)?;
        builder
            .check()
            .and_then(|()| builder.settings.check())
            .and_then(|()| builder.settings.terms(&capabilities()))
            .map_err(LockError::in_url)?;
        Ok(capabilities())
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        Ok(Arc::new(self.open(url).await?))
    }
}

fn builder_of(url: &LockUrl) -> Result<EtcdLockBuilder, LockError> {
    url.check_params(&Settings::PARAMS)?;
    let endpoints = url
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.authority(DEFAULT_PORT));
    let mut builder = EtcdLock::builder(endpoints);
    builder.settings.read(url, ENV_PREFIX, "etcds")?;
    if !url.path().is_empty() {
        if url.param("namespace").is_some() {
            return Err(invalid_url(
                "the namespace is given twice; give it as the path or as a parameter",
            ));
        }
        builder = builder.with_namespace(url.path());
    }
    // Not left to the client's check: etcd's own default user does not exist.
    if builder.settings.password.is_some() && builder.settings.user.is_none() {
        return Err(invalid_url(
            "a password needs a user; write user:password@host or set LOCK_ETCD_USERNAME",
        ));
    }
    Ok(builder)
}

fn invalid_url(message: &'static str) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(url: &str) -> Result<EtcdLockBuilder, LockError> {
        builder_of(&url.parse().unwrap())
    }

    #[test]
    fn a_url_gives_endpoints_and_namespace() {
        let path = builder("etcd://app:s3cret@h1,h2:2380/prod/?ttl=10s").unwrap();
        assert_eq!(path.endpoints, ["h1:2379", "h2:2380"]);
        assert_eq!(path.prefix().unwrap(), "prod/");
        assert_eq!(path.settings.request_timeout, REQUEST_TIMEOUT);
        assert!(!format!("{path:?}").contains("s3cret"));
        let parameter = builder("etcd://h?namespace=prod").unwrap();
        assert_eq!(parameter.prefix().unwrap(), "prod/");
        assert_eq!(builder("etcd://h").unwrap().prefix().unwrap(), "");
    }

    #[test]
    fn a_url_that_cannot_be_used_says_what_to_do() {
        for (url, hint) in [
            ("etcd://h/prod?namespace=x", "twice"),
            ("etcd://h?prefix=x", "known are"),
            ("etcd://:s3cret@h", "needs a user"),
            ("etcd://h?ca=/x", "etcds"),
        ] {
            let error = builder(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            let text = error.to_string();
            assert!(text.contains(hint) && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn capabilities_are_those_of_a_url_that_can_be_used() {
        let capabilities = |url: &str| EtcdConnector.capabilities(&url.parse().unwrap());
        assert!(capabilities("etcd://h").is_ok());
        for url in [
            "etcd://",
            "etcd://h?ttl=1ms",
            "etcd://app@h",
            "etcd://h?request_timeout=0s",
        ] {
            let error = capabilities(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
        }
    }

    #[tokio::test]
    async fn unusable_settings_are_refused_before_connecting() {
        let new = || EtcdLock::builder(["127.0.0.1:1"]);
        for builder in [
            EtcdLock::builder(Vec::<String>::new()),
            EtcdLock::builder([""]),
            new().with_ttl(Duration::from_millis(10)),
            new().with_ttl(Duration::ZERO),
            new().with_request_timeout(Duration::ZERO),
            new().with_request_timeout(Duration::from_secs(3601)),
            new().with_connect_timeout(Duration::from_micros(999)),
            new().with_connect_timeout(Duration::MAX),
            new().with_namespace("a\nb"),
            new().with_credentials("", "pw"),
        ] {
            let error = builder.clone().connect().await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidConfig,
                "{builder:?}: {error}"
            );
        }
    }
}
