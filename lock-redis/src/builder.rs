use std::time::Duration;

use lock_core::{
    ErrorKind, LockError, Operation, Secret, TlsFiles,
    backend::{HomeOptions, Tasks},
};
use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use crate::{
    address::Address,
    capabilities::{BACKEND, capabilities},
    error::Failure,
    lock::RedisLock,
    replicas::Asked,
    topology::{Credentials, Topology},
    validity::{DEFAULT_OFFSET, Validity},
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
    pub(crate) topology: Topology,
    database: u32,
    credentials: Credentials,
    tls: Option<TlsFiles>,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) replicas: Option<Asked>,
    pub(crate) home: HomeOptions,
    /// The sentinels' own.
    pub(crate) sentinel_credentials: Option<Credentials>,
    max_clock_offset: Option<Duration>,
}

/// The port of Redis.
pub(crate) const DEFAULT_PORT: u16 = 6379;

/// The port of sentinels.
pub(crate) const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// Longest prefix, in bytes.
const MAX_PREFIX: usize = 1024;

impl RedisLockBuilder {
    pub(crate) fn new() -> Self {
        Self {
            topology: Topology::Server(Address::new("127.0.0.1", DEFAULT_PORT)),
            database: 0,
            credentials: Credentials::default(),
            tls: None,
            prefix: String::new(),
            ttl: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(1),
            poll_interval: Duration::from_secs(2),
            replicas: None,
            home: HomeOptions::default(),
            sentinel_credentials: None,
            max_clock_offset: None,
        }
    }

    /// The server; default: `127.0.0.1`, port 6379. An IPv6 address may have brackets.
    pub fn with_address(mut self, host: impl AsRef<str>, port: u16) -> Self {
        self.topology = Topology::Server(Address::new(host.as_ref(), port));
        self
    }

    /// Sentinels instead of a server: the locks are on whichever server is the master of `service`, also after a failover.
    ///
    /// Give all of them. With TLS they are spoken to over TLS too.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisLock::builder().with_sentinels([("s1", 26379), ("s2", 26379), ("s3", 26379)], "mymaster").connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_sentinels<H: AsRef<str>>(mut self, sentinels: impl IntoIterator<Item = (H, u16)>, service: impl Into<String>) -> Self {
        self.topology = Topology::Sentinels { sentinels: addresses(sentinels), service: service.into() };
        self
    }

    /// The user and password of the sentinels themselves; default: none. Only together with
    /// [`with_sentinels`](Self::with_sentinels), in either order.
    pub fn with_sentinel_credentials(mut self, username: Option<String>, password: Secret) -> Self {
        self.sentinel_credentials = Some(Credentials { username, password: Some(password) });
        self
    }

    /// A cluster instead of a server: give a few of its servers, the others are found.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisLock::builder().with_cluster([("r1", 6379), ("r2", 6379), ("r3", 6379)]).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_cluster<H: AsRef<str>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.topology = Topology::Cluster(addresses(servers));
        self
    }

    /// The number of the database; default: 0.
    pub fn with_database(mut self, database: u32) -> Self {
        self.database = database;
        self
    }

    /// The user, for servers with access rules; default: the server's default user.
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.credentials.username = Some(username.into());
        self
    }

    /// The password; default: none.
    pub fn with_password(mut self, password: Secret) -> Self {
        self.credentials.password = Some(password);
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

    /// Longest time until a connection can be used: name resolution, TCP, TLS and log-in together; default: 5 s.
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

    /// Has at least so many replicas, from 1 to 1000, confirm each acquisition and renewal, within the timeout, from 1 ms to 1 h, or
    /// a third of the TTL if that is less; default: none. Not for a cluster.
    ///
    /// That is the time that replicas have. While 32 others are being confirmed, the wait for one of them to end may take as long
    /// again, and a server that does not answer is given up after the request timeout on top.
    ///
    /// An acquisition that too few confirm is given back and is an error, [`Unavailable`](ErrorKind::Unavailable); such a renewal
    /// leaves the deadline where it was, and is repeated until then. A lock that its replicas confirm survives a failover to one of
    /// *them*; it is lost in one to another replica, or if the replica forgets it in a restart.
    pub fn with_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.replicas = Some(Asked { replicas, timeout });
        self
    }

    /// Whether the client has a thread of its own for its connections, renewals and clean-ups; default: no, they are tasks of the
    /// runtime that connects.
    ///
    /// With it a guard is renewed whatever the application's runtimes do: a current-thread runtime that does no work outside
    /// `block_on`, one that is blocked for longer than a TTL, or one that ends. It costs a switch of threads for each request.
    pub fn with_background_thread(mut self, background_thread: bool) -> Self {
        self.home.background_thread = background_thread;
        self
    }

    /// Whether the end of the runtime waits for releases that are on their way, or that it sets off: as of a guard that is alive
    /// at the end of `main`; default: yes, for at most half a second in the life of the client
    /// ([`EXIT_LIMIT`](lock_core::backend::EXIT_LIMIT)).
    ///
    /// What is not released then stays locked until its lease ends, and a warning says so.
    pub fn with_release_at_exit(mut self, release_at_exit: bool) -> Self {
        self.home.release_at_exit = release_at_exit;
        self
    }

    /// How far apart the clocks of servers may be of which one takes over from another, up to 1 h; default: 500 ms with sentinels, a
    /// cluster or [`with_replicas`](Self::with_replicas), else nothing.
    ///
    /// Redis replicates and saves an expiry as an instant of the server's clock. A replica whose clock is ahead ends the locks that it
    /// takes over with earlier by as much, while their holders count on the whole TTL. So each guard ends earlier by this time, and is
    /// renewed a little more often. TTLs must exceed it by 100 ms at least.
    ///
    /// Set it too for a single server whose address may be moved to another one, or whose clock may be set forward while it runs.
    pub fn with_max_clock_offset(mut self, offset: Duration) -> Self {
        self.max_clock_offset = Some(offset);
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
        if self.tls.is_some() {
            ensure_crypto();
        }
        self.open(None).await
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
        if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
            ensure_crypto();
        }
        self.open(Some(client)).await
    }

    async fn open(self, client: Option<Client>) -> Result<RedisLock, LockError> {
        let connect = async {
            self.check()?;
            RedisLock::open(client, self).await
        };
        connect.await.map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.max_clock_offset.is_some_and(|offset| offset > Duration::from_secs(3600)) {
            return Err(invalid("the max_clock_offset is above 1 h; keep the servers' clocks in step instead"));
        }
        self.validity().resolve(lock_core::AcquireOptions::new(), &capabilities(), self.ttl)?;
        if self.sentinel_credentials.is_some() && !matches!(self.topology, Topology::Sentinels { .. }) {
            return Err(invalid("there are credentials for sentinels and no sentinels; add with_sentinels, or leave them out"));
        }
        if self.prefix.len() > MAX_PREFIX || self.prefix.chars().any(char::is_control) {
            return Err(invalid("the prefix must have at most 1024 bytes and no control characters"));
        }
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        if let Some(Asked { replicas, timeout }) = self.replicas {
            if !(1..=1000).contains(&replicas) || !range.contains(&timeout) {
                return Err(invalid("replicas to wait for are 1 to 1000, within 1 ms to 1 h; leave them out not to wait"));
            }
            if matches!(self.topology, Topology::Cluster(_)) {
                return Err(invalid("replicas of a cluster cannot be waited for; leave them out, or use a server with Sentinel"));
            }
        }
        for (what, value) in
            [("connect timeout", self.connect_timeout), ("request timeout", self.request_timeout), ("poll interval", self.poll_interval)]
        {
            if !range.contains(&value) {
                return Err(invalid(format!("the {what} of {value:?} is not between 1 ms and 1 h")));
            }
        }
        Ok(())
    }

    /// Where the client's tasks run.
    pub(crate) fn home(&self) -> Result<Tasks, LockError> {
        Tasks::start(HomeOptions { patience: self.request_timeout, ..self.home })
    }

    /// What guards may rely on.
    pub(crate) fn validity(&self) -> Validity {
        let takes_over = self.replicas.is_some() || !matches!(self.topology, Topology::Server(_));
        let default = if takes_over { DEFAULT_OFFSET } else { Duration::ZERO };
        Validity::new(self.max_clock_offset.unwrap_or(default))
    }

    /// How to connect to a server.
    pub(crate) fn info(&self, server: &Address) -> Result<ConnectionInfo, LockError> {
        self.info_with(server, &self.credentials, self.database)
    }

    /// The same with other credentials.
    pub(crate) fn info_with(&self, server: &Address, credentials: &Credentials, database: u32) -> Result<ConnectionInfo, LockError> {
        let (host, port) = (server.host.clone(), server.port);
        let address = match &self.tls {
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host, port),
        };
        let mut info = address.into_connection_info().map_err(Failure::unsent)?;
        let mut settings = info.redis_settings().clone().set_db(i64::from(database));
        match (&credentials.username, &credentials.password) {
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
            // The files are read into the address here.
            Some(files) => Client::build_with_tls(info, certificates(files)),
            None => Client::open(info),
        };
        Ok(client.map_err(Failure::bad_setting)?.get_connection_info().clone())
    }
}

fn addresses<H: AsRef<str>>(servers: impl IntoIterator<Item = (H, u16)>) -> Vec<Address> {
    servers.into_iter().map(|(host, port)| Address::new(host.as_ref(), port)).collect()
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
            (new().with_max_clock_offset(Duration::from_secs(3601)), "max_clock_offset"),
            (new().with_max_clock_offset(Duration::from_secs(30)), "at least 30.1s"),
            (new().with_cluster([("h", 1)]).with_ttl(Duration::from_millis(500)), "max_clock_offset of 500ms"),
            (new().with_sentinel_credentials(None, Secret::new("x")), "no sentinels"),
            (new().with_replicas(0, Duration::from_secs(1)), "1 to 1000"),
            (new().with_replicas(1, Duration::ZERO), "1 ms to 1 h"),
            (new().with_cluster([("h", 1)]).with_replicas(1, Duration::from_secs(1)), "cluster"),
        ] {
            let error = builder.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn guards_make_allowance_for_clocks_where_another_server_may_take_over() {
        let (new, second) = (RedisLockBuilder::new, Duration::from_secs(1));
        let allowance = |builder: RedisLockBuilder| second - builder.validity().of(second);
        assert_eq!(allowance(new()), Duration::ZERO);
        for builder in [new().with_sentinels([("h", 1)], "s"), new().with_cluster([("h", 1)]), new().with_replicas(1, second)] {
            assert_eq!(allowance(builder.clone()), DEFAULT_OFFSET);
            assert_eq!(allowance(builder.with_max_clock_offset(Duration::ZERO)), Duration::ZERO);
        }
        assert_eq!(allowance(new().with_max_clock_offset(Duration::from_millis(7))), Duration::from_millis(7));
    }

    type Setter = fn(RedisLockBuilder) -> RedisLockBuilder;

    /// All but those that replace each other.
    const SETTERS: [Setter; 15] = [
        |builder| builder.with_sentinels([("h", 1)], "service"),
        |builder| builder.with_sentinel_credentials(Some("watcher".into()), Secret::new("s4cret")),
        |builder| builder.with_database(7),
        |builder| builder.with_username("app"),
        |builder| builder.with_password(Secret::new("s3cret")),
        |builder| builder.with_tls(TlsFiles { ca: Some("authority".into()), identity: None }),
        |builder| builder.with_prefix("prefix"),
        |builder| builder.with_ttl(Duration::from_secs(11)),
        |builder| builder.with_connect_timeout(Duration::from_secs(12)),
        |builder| builder.with_request_timeout(Duration::from_secs(13)),
        |builder| builder.with_poll_interval(Duration::from_secs(14)),
        |builder| builder.with_replicas(15, Duration::from_secs(16)),
        |builder| builder.with_max_clock_offset(Duration::from_secs(17)),
        |builder| builder.with_background_thread(true),
        |builder| builder.with_release_at_exit(false),
    ];

    #[test]
    fn setters_mean_the_same_in_every_order() {
        let built = |order: &[usize]| format!("{:?}", order.iter().fold(RedisLockBuilder::new(), |builder, at| SETTERS[*at](builder)));
        let all: Vec<_> = (0..SETTERS.len()).collect();
        for left_out in &all {
            let others: Vec<_> = all.iter().copied().filter(|at| at != left_out).collect();
            assert_ne!(built(&others), built(&all), "number {left_out} has no effect");
        }
        for first in &all {
            for last in all.iter().filter(|last| *last != first) {
                let between = all.iter().filter(|at| *at != first && *at != last);
                let order: Vec<_> = [first].into_iter().chain(between).chain([last]).copied().collect();
                assert_eq!(built(&order), built(&all), "number {first} before number {last}");
            }
        }
    }

    fn info_of(builder: &RedisLockBuilder) -> Result<ConnectionInfo, LockError> {
        let Topology::Server(address) = &builder.topology else { panic!("not one server") };
        builder.info(address)
    }

    #[test]
    fn credentials_and_address_reach_the_client_and_no_output() {
        let builder =
            RedisLockBuilder::new().with_address("[::1]", 1).with_username("app").with_password(Secret::new("s3cret")).with_database(7);
        let info = info_of(&builder).unwrap();
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("::1".into(), 1));
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("app"), Some("s3cret"), 7));
        assert!(!format!("{builder:?}").contains("s3cret"));
        assert_eq!(info_of(&RedisLockBuilder::new().with_username("app")).unwrap_err().kind(), ErrorKind::InvalidOptions);
    }

    #[test]
    fn a_broken_certificate_is_a_bad_setting() {
        let files = TlsFiles { ca: None, identity: Some(("not a certificate".into(), Secret::new("s3cret"))) };
        let error = info_of(&RedisLockBuilder::new().with_tls(files)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
