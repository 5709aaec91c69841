use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use lock_core::{
    AcquireOptions, Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockName, LockUrl, Operation, Secret, TlsFiles,
    backend::{HomeOptions, Tasks},
};

use crate::{
    BACKEND, EtcdLock, capabilities,
    cluster::{Cluster, Times},
    core::Core,
};

/// TTL of locks unless an acquisition asks for another.
const DEFAULT_TTL: Duration = Duration::from_secs(30);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// HTTP/2 pings find a connection that went silent; the server refuses them more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The port of an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

const PARAMETERS: &[&str] =
    &["ttl", "connect_timeout", "request_timeout", "tls", "ca", "cert", "key", "background_thread", "release_at_exit"];
const ENVIRONMENT: &str = "LOCK_ETCD";

/// Configures an [`EtcdLock`].
#[derive(Clone)]
pub struct EtcdLockBuilder {
    endpoints: Vec<String>,
    namespace: String,
    ttl: Duration,
    connect_timeout: Duration,
    request_timeout: Duration,
    user: Option<(String, Secret)>,
    tls: Option<TlsFiles>,
    home: HomeOptions,
}

impl EtcdLockBuilder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            namespace: String::new(),
            ttl: DEFAULT_TTL,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            user: None,
            tls: None,
            home: HomeOptions::default(),
        }
    }

    /// Puts all keys under `<namespace>/`; default: none, so that names are shared with other clients of the store.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// TTL of locks unless an acquisition asks for another, in whole seconds, at least 2; default 30 s. Below 5 s a lock may be
    /// lost when etcd elects a new leader.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long [`connect`](Self::connect) looks for a member that answers; default 5 s.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one request may take, on all members together and retries included; default 6 s. One attempt on one
    /// member takes at most a third of it.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// User and password.
    ///
    /// The user needs a role that may read and write every key that starts with `<namespace>/`, or with `<name>/` for each
    /// name that it locks if there is no namespace (`etcdctl role grant-permission ROLE readwrite <namespace>/ --prefix=true`). Leases
    /// and watches need no further permission.
    #[must_use]
    pub fn with_user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), Secret::new(password)));
        self
    }

    /// Connects with TLS. Without a certificate authority of its own it trusts the system's.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsFiles) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether the client has a thread of its own for its connections, renewals and clean-ups; default: no, they are tasks of the
    /// runtime that connects.
    ///
    /// With it a guard is renewed whatever the application's runtimes do: a current-thread runtime that does no work outside
    /// `block_on`, one that is blocked for longer than a TTL, or one that ends. It costs a switch of threads for each request.
    #[must_use]
    pub fn with_background_thread(mut self, background_thread: bool) -> Self {
        self.home.background_thread = background_thread;
        self
    }

    /// Whether the end of the runtime waits for releases that are on their way, or that it sets off: as of a guard that is alive
    /// at the end of `main`; default: yes, for at most half a second in the life of the client
    /// ([`EXIT_LIMIT`](lock_core::backend::EXIT_LIMIT)).
    ///
    /// What is not released then stays locked until its lease ends, and a warning says so.
    #[must_use]
    pub fn with_release_at_exit(mut self, release_at_exit: bool) -> Self {
        self.home.release_at_exit = release_at_exit;
        self
    }

    /// Connects, and makes sure that a member answers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if none does within the connect timeout, [`ErrorKind::PermissionDenied`] for wrong
    /// credentials, [`ErrorKind::InvalidUrl`] or [`ErrorKind::InvalidOptions`] for settings that cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind but a lease that may run out by itself.
    pub async fn connect(self) -> Result<EtcdLock, LockError> {
        let context = |error: LockError| error.during(Operation::Connect).on(BACKEND);
        self.tls.as_ref().map_or(Ok(()), check_pem).map_err(context)?;
        let options = self.connect_options();
        let times = self.times().map_err(context)?;
        if self.endpoints.is_empty() || self.endpoints.iter().any(String::is_empty) {
            return Err(context(LockError::new(
                ErrorKind::InvalidUrl,
                "no endpoint is given; write host:port, by default etcd's port is 2379",
            )));
        }
        let home = self.home().map_err(context)?;
        let cluster = Cluster::new(self.endpoints.clone(), &options, times, &home);
        self.finish(cluster, &home).await.map_err(context)
    }

    /// Uses a client that the application has connected; of this builder's settings only namespace, TTL and timeouts count.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(self, client: etcd_client::Client) -> Result<EtcdLock, LockError> {
        let context = |error: LockError| error.during(Operation::Connect).on(BACKEND);
        let times = self.times().map_err(context)?;
        let home = self.home().map_err(context)?;
        let cluster = Cluster::of_client(client, times, &home);
        self.finish(cluster, &home).await.map_err(context)
    }

    fn home(&self) -> Result<Tasks, LockError> {
        Tasks::start(HomeOptions { patience: self.request_timeout, ..self.home })
    }

    async fn finish(self, cluster: Cluster, home: &Tasks) -> Result<EtcdLock, LockError> {
        let terms = AcquireOptions::new().resolve(&capabilities(), self.ttl)?;
        let namespace = match self.namespace.trim_matches('/') {
            "" => String::new(),
            namespace => format!("{}/", LockName::new(namespace)?),
        };
        let core = Core::new(cluster, namespace, terms.ttl, home);
        core.connect(&terms, self.connect_timeout).await?;
        Ok(EtcdLock(core))
    }

    fn times(&self) -> Result<Times, LockError> {
        for (what, timeout) in [("connect", self.connect_timeout), ("request", self.request_timeout)] {
            if timeout.is_zero() || timeout > AcquireOptions::MAX_DURATION {
                return Err(LockError::new(
                    ErrorKind::InvalidOptions,
                    format!("the {what} timeout of {timeout:?} is out of range; 5s is usual"),
                ));
            }
        }
        Ok(Times { request: self.request_timeout })
    }

    fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password.expose()).with_auto_token_refresh(true);
        }
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls_options(tls));
        }
        options
    }
}

/// The client library takes a text without any certificate for a list of none, and then trusts nobody.
fn check_pem(tls: &TlsFiles) -> Result<(), LockError> {
    let (cert, key) = tls.identity.as_ref().map(|(cert, key)| (cert.as_str(), key.expose())).unzip();
    for (what, text, marker) in [
        ("certificate authority", tls.ca.as_deref(), "-----BEGIN CERTIFICATE-----"),
        ("client certificate", cert, "-----BEGIN CERTIFICATE-----"),
        ("client's key", key, "PRIVATE KEY-----"),
    ] {
        if text.is_some_and(|text| !text.contains(marker)) {
            return Err(LockError::new(ErrorKind::InvalidUrl, format!("the {what} is not PEM; it must hold `{marker}`")));
        }
    }
    Ok(())
}

fn tls_options(files: &TlsFiles) -> TlsOptions {
    let mut options = match &files.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_enabled_roots(),
    };
    if let Some((cert, key)) = &files.identity {
        options = options.identity(Identity::from_pem(cert, key.expose()));
    }
    options
}

impl fmt::Debug for EtcdLockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLockBuilder")
            .field("endpoints", &self.endpoints)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Opens `etcd://` URLs, and `etcds://` ones with TLS.
///
/// `etcd://[user:password@]host[:2379][,host[:2379]...][/namespace][?parameters]`, with the parameters `ttl`,
/// `connect_timeout` and `request_timeout` (durations such as `30s`), `background_thread` and `release_at_exit` (`true` or `false`), `tls` (`true` for `etcds://`), and `ca`, `cert` and
/// `key` (paths of PEM files; each turns TLS on). What the URL leaves out is taken from `LOCK_ETCD_USERNAME`, `LOCK_ETCD_PASSWORD`,
/// `LOCK_ETCD_CA`, `LOCK_ETCD_CERT` and `LOCK_ETCD_KEY` in the environment; a file from there turns TLS on unless the URL says
/// `tls=false`.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdConnector;

#[async_trait]
impl Connector for EtcdConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["etcd", "etcds"]
    }

    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        Ok(Arc::new(builder_of(url)?.connect().await?))
    }
}

fn builder_of(url: &LockUrl) -> Result<EtcdLockBuilder, LockError> {
    let invalid = |message: &'static str| LockError::new(ErrorKind::InvalidUrl, message);
    if ["prefix", "namespace"].iter().any(|param| url.param(param).is_some()) {
        return Err(invalid(
            "neither `prefix` nor `namespace` is a parameter of etcd://; the namespace is the path, as in etcd://host/NAME",
        ));
    }
    url.check_params(PARAMETERS)?;
    let endpoints = url.endpoints().iter().map(|endpoint| endpoint.authority(DEFAULT_PORT));
    let mut builder = EtcdLock::builder(endpoints).with_namespace(url.path());
    if let Some(ttl) = url.duration("ttl")? {
        builder = builder.with_ttl(ttl);
    }
    if let Some(timeout) = url.duration("connect_timeout")? {
        builder = builder.with_connect_timeout(timeout);
    }
    if let Some(timeout) = url.duration("request_timeout")? {
        builder = builder.with_request_timeout(timeout);
    }
    if let Some(background_thread) = url.flag("background_thread")? {
        builder = builder.with_background_thread(background_thread);
    }
    if let Some(release_at_exit) = url.flag("release_at_exit")? {
        builder = builder.with_release_at_exit(release_at_exit);
    }
    builder = match url.credentials(ENVIRONMENT) {
        (Some(name), Some(password)) => builder.with_user(name, password.expose()),
        (None, None) => builder,
        (Some(_), None) => {
            return Err(invalid("a user needs a password; write user:password@host or set LOCK_ETCD_PASSWORD"));
        }
        (None, Some(_)) => {
            return Err(invalid("a password needs a user; write user:password@host or set LOCK_ETCD_USERNAME"));
        }
    };
    let files = ["ca", "cert", "key"].iter().any(|file| url.param(file).is_some());
    match url.param("tls") {
        None => {}
        Some("true") => return Ok(builder.with_tls(url.tls_files(ENVIRONMENT)?)),
        Some("false") if files => return Err(invalid("`tls=false` does not go with PEM files; leave one or the other out")),
        // What the environment says is for those who do not say no.
        Some("false") if url.scheme() == "etcd" => return Ok(builder),
        Some(_) => return Err(invalid("`tls` is true or false, and true for etcds://")),
    }
    let files = url.tls_files(ENVIRONMENT)?;
    Ok(if url.scheme() == "etcds" || files != TlsFiles::default() { builder.with_tls(files) } else { builder })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(url: &str) -> Result<EtcdLockBuilder, LockError> {
        builder_of(&url.parse().unwrap())
    }

    #[test]
    fn a_url_sets_everything() {
        let builder = builder("etcd://app:s3cret@h1,h2:2380/prod/?ttl=10s&connect_timeout=1s&request_timeout=3s").unwrap();
        assert_eq!(builder.endpoints, ["h1:2379", "h2:2380"]);
        assert_eq!((builder.ttl.as_secs(), builder.connect_timeout.as_secs(), builder.request_timeout.as_secs()), (10, 1, 3));
        assert!(builder.tls.is_none() && builder.namespace == "prod/");
        assert!(!format!("{builder:?}").contains("s3cret"));
    }

    #[test]
    fn tls_by_scheme_or_parameter() {
        assert!(builder("etcds://h").unwrap().tls.is_some());
        assert!(builder("etcd://h?tls=true").unwrap().tls.is_some());
        assert!(builder("etcd://h?tls=false").unwrap().tls.is_none());
        assert!(builder("etcds://h?tls=false").is_err());
        assert!(builder("etcd://h?tls=false&ca=/x").unwrap_err().to_string().contains("tls=false"));
    }

    /// In a process of its own, for the environment is everybody's.
    #[test]
    fn an_explicit_no_wins_over_the_environment() {
        const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        if std::env::var("LOCK_ETCD_CA").is_ok_and(|ca| ca == FILE) {
            assert!(builder("etcd://h").unwrap().tls.is_some());
            assert!(builder("etcd://h?tls=false").unwrap().tls.is_none());
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = "config::tests::an_explicit_no_wins_over_the_environment";
        let output = again.args(["--exact", name]).env("LOCK_ETCD_CA", FILE).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }

    #[test]
    fn a_namespace_given_as_a_parameter_is_told_its_place() {
        for url in ["etcd://h?prefix=x", "etcd://h?namespace=x"] {
            assert!(builder(url).unwrap_err().to_string().contains("the namespace is the path"), "{url}");
        }
    }

    #[test]
    fn the_order_of_the_setters_does_not_matter() {
        type Setter = fn(EtcdLockBuilder) -> EtcdLockBuilder;
        let setters: [Setter; 6] = [
            |builder| builder.with_namespace("n"),
            |builder| builder.with_ttl(Duration::from_secs(7)),
            |builder| builder.with_connect_timeout(Duration::from_secs(1)),
            |builder| builder.with_request_timeout(Duration::from_secs(2)),
            |builder| builder.with_user("u", "p"),
            |builder| builder.with_tls(TlsFiles::default()),
        ];
        let set = |order: &mut dyn Iterator<Item = &Setter>| order.fold(EtcdLock::builder(["h"]), |builder, set| set(builder));
        for at in 0..setters.len() {
            let rotated: Vec<_> = setters[at..].iter().chain(&setters[..at]).collect();
            for order in [set(&mut rotated.iter().copied()), set(&mut rotated.iter().rev().copied())] {
                let EtcdLockBuilder { namespace, ttl, connect_timeout, request_timeout, user, tls, .. } = order;
                let user = user.map(|(name, password)| (name, password.expose().to_owned()));
                assert_eq!((namespace.as_str(), ttl.as_secs(), user), ("n", 7, Some(("u".to_owned(), "p".to_owned()))));
                assert_eq!((connect_timeout.as_secs(), request_timeout.as_secs(), tls.is_some()), (1, 2, true));
            }
        }
    }

    #[test]
    fn half_of_the_credentials_is_refused() {
        for url in ["etcd://app@h", "etcd://:s3cret@h"] {
            let error = builder(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(!error.to_string().contains("s3cret"));
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
            new().with_connect_timeout(Duration::MAX),
            new().with_namespace("a\nb"),
        ] {
            let error = builder.clone().connect().await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::InvalidUrl | ErrorKind::InvalidOptions | ErrorKind::InvalidName),
                "{builder:?}: {error}"
            );
        }
    }
}
