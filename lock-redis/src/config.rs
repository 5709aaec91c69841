use std::{ops::RangeInclusive, time::Duration};

use lock_core::{
    AcquireOptions, ErrorKind, LockError, Operation, Secret,
    backend::{Settings, check_time},
    common_setters,
};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::{
    capabilities::{BACKEND, capabilities},
    client::RedisLock,
    error::Failure,
    replicas::Asked,
    tls,
    topology::{Credentials, Topology},
    transport::address::Address,
    validity::{DEFAULT_OFFSET, Validity},
};

/// Sets up a [`RedisLock`].
///
/// ```no_run
/// use lock_redis::RedisLock;
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), lock_core::LockError> {
/// let locks = RedisLock::builder().with_address("redis.internal", 6379).with_namespace("prod").with_ttl(Duration::from_secs(15)).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisLockBuilder {
    pub(crate) topology: Topology,
    pub(crate) settings: Settings,
    pub(crate) database: u32,
    pub(crate) poll_interval: Duration,
    pub(crate) counter_ttl: Duration,
    pub(crate) replicas: Option<Asked>,
    /// The sentinels' own.
    pub(crate) sentinel_credentials: Option<Credentials>,
    max_clock_offset: Option<Duration>,
}

/// The port of Redis.
pub(crate) const DEFAULT_PORT: u16 = 6379;

/// The port of sentinels.
pub(crate) const DEFAULT_SENTINEL_PORT: u16 = 26379;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// More than clocks are usually put back by, and little enough for millions of names a day.
const COUNTER_TTL: Duration = Duration::from_secs(10 * 60);

/// From twice what a quorum's servers let a client's clock be ahead.
const COUNTER_TTLS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);

impl RedisLockBuilder {
    pub(crate) fn new() -> Self {
        Self {
            topology: Topology::Server(Address::new("127.0.0.1", DEFAULT_PORT)),
            settings: Settings::new(REQUEST_TIMEOUT),
            database: 0,
            poll_interval: Duration::from_secs(2),
            counter_ttl: COUNTER_TTL,
            replicas: None,
            sentinel_credentials: None,
            max_clock_offset: None,
        }
    }

    /// The server; default: `127.0.0.1`, port 6379. An IPv6 address may have brackets.
    pub fn with_address(mut self, host: impl AsRef<str>, port: u16) -> Self {
        self.topology = Topology::Server(Address::new(host.as_ref(), port));
        self
    }

    /// Sentinels instead of a server: the locks are on whichever server is the master of `service`,
    /// also after a failover.
    ///
    /// Give all of them. With TLS they are spoken to over TLS too.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisLock::builder().with_sentinels([("s1", 26379), ("s2", 26379), ("s3", 26379)], "mymaster").connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_sentinels<H: AsRef<str>>(
        mut self,
        sentinels: impl IntoIterator<Item = (H, u16)>,
        service: impl Into<String>,
    ) -> Self {
        self.topology = Topology::Sentinels {
            sentinels: addresses(sentinels),
            service: service.into(),
        };
        self
    }

    /// Logs in to the sentinels themselves; default: without a user or password. An empty user is
    /// their default one. Only together with [`with_sentinels`](Self::with_sentinels), in either
    /// order.
    pub fn with_sentinel_credentials(
        mut self,
        user: impl Into<String>,
        password: impl Into<Secret>,
    ) -> Self {
        self.sentinel_credentials = Some(Credentials {
            user: Some(user.into()),
            password: Some(password.into()),
        });
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
    pub fn with_cluster<H: AsRef<str>>(
        mut self,
        servers: impl IntoIterator<Item = (H, u16)>,
    ) -> Self {
        self.topology = Topology::Cluster(addresses(servers));
        self
    }

    /// Has at least so many replicas, from 1 to 1000, confirm each acquisition and renewal, within
    /// the timeout, from 1 ms to 1 h, or a third of the TTL if that is less; default: none. Not for
    /// a cluster.
    ///
    /// That is the time that replicas have. While 32 others are being confirmed, the wait for one
    /// of them to end may take as long again, and a server that does not answer is given up after
    /// the request timeout on top.
    ///
    /// An acquisition that too few confirm is given back and is an error,
    /// [`Unavailable`](ErrorKind::Unavailable); such a renewal leaves the deadline where it was,
    /// and is repeated until then. A lock that its replicas confirm survives a failover to one of
    /// *them*; it is lost in one to another replica, or if the replica forgets it in a restart.
    pub fn with_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.replicas = Some(Asked { replicas, timeout });
        self
    }

    /// How far apart the clocks of servers may be of which one takes over from another, up to 1 h;
    /// default: 500 ms with sentinels, a cluster or [`with_replicas`](Self::with_replicas), else
    /// nothing.
    ///
    /// Redis replicates and saves an expiry as an instant of the server's clock. A replica whose
    /// clock is ahead ends the locks that it takes over with earlier by as much, while their
    /// holders count on the whole TTL. So each guard ends earlier by this time, and is renewed a
    /// little more often. TTLs must exceed it by 100 ms at least.
    ///
    /// Set it too for a single server whose address may be moved to another one, or whose clock may
    /// be set forward while it runs.
    pub fn with_max_clock_offset(mut self, offset: Duration) -> Self {
        self.max_clock_offset = Some(offset);
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for a setting that cannot be used, and those
    /// of [`RedisLock::connect`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(self) -> Result<RedisLock, LockError> {
        self.open(None).await
    }

    /// Connects with the address, credentials and TLS settings of an existing `redis` client
    /// instead of the builder's. The connections are the locks' own.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    #[cfg(feature = "redis-1")]
    pub async fn connect_with(self, client: Client) -> Result<RedisLock, LockError> {
        self.open(Some(client)).await
    }

    async fn open(self, client: Option<Client>) -> Result<RedisLock, LockError> {
        let connect = async {
            self.check()?;
            RedisLock::open(client, self).await
        };
        connect
            .await
            .map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    pub(crate) fn check(&self) -> Result<(), LockError> {
        self.settings.check()?;
        if self
            .max_clock_offset
            .is_some_and(|offset| offset > Duration::from_secs(3600))
        {
            return Err(invalid(
                "the max_clock_offset is above 1 h; keep the servers' clocks in step instead",
            ));
        }
        self.validity()
            .resolve(AcquireOptions::new(), &capabilities(), self.settings.ttl)
            .map_err(|error| invalid(error.message().to_owned()))?;
        if self.sentinel_credentials.is_some()
            && !matches!(self.topology, Topology::Sentinels { .. })
        {
            return Err(invalid(
                "there are credentials for sentinels and no sentinels; add with_sentinels, or leave them out",
            ));
        }
        if let Some(Asked { replicas, timeout }) = self.replicas {
            if !(1..=1000).contains(&replicas) {
                return Err(invalid(
                    "replicas to wait for are 1 to 1000; leave them out not to wait",
                ));
            }
            check_time("timeout of the replicas", timeout)?;
            if matches!(self.topology, Topology::Cluster(_)) {
                return Err(invalid(
                    "replicas of a cluster cannot be waited for; leave them out, or use a server with Sentinel",
                ));
            }
        }
        if !COUNTER_TTLS.contains(&self.counter_ttl) {
            return Err(invalid(format!(
                "the counter_ttl of {:?} is not between 1 s and 365 days",
                self.counter_ttl
            )));
        }
        check_time("poll interval", self.poll_interval)
    }

    /// What comes before every name in its key. Other clients than ours often write it with a
    /// separator, which is taken as it is; without one a namespace and a name could make the key of
    /// another namespace and name.
    pub(crate) fn prefix(&self) -> String {
        let namespace = &self.settings.namespace;
        match namespace.ends_with(char::is_alphanumeric) {
            true => format!("{namespace}:"),
            false => namespace.clone(),
        }
    }

    /// Rules on which guards may rely.
    pub(crate) fn validity(&self) -> Validity {
        let takes_over = self.replicas.is_some() || !matches!(self.topology, Topology::Server(_));
        let default = if takes_over {
            DEFAULT_OFFSET
        } else {
            Duration::ZERO
        };
        Validity::new(self.max_clock_offset.unwrap_or(default))
    }

    /// Settings of a connection to a server.
    pub(crate) fn info(&self, server: &Address) -> Result<ConnectionInfo, LockError> {
        self.info_with(server, &self.credentials(), self.database)
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            user: self.settings.user.clone(),
            password: self.settings.password.clone(),
        }
    }

    /// The same with other credentials.
    pub(crate) fn info_with(
        &self,
        server: &Address,
        credentials: &Credentials,
        database: u32,
    ) -> Result<ConnectionInfo, LockError> {
        let mut info = address(server, self.settings.tls.is_some())
            .into_connection_info()
            .map_err(Failure::unsent)?;
        let mut settings = info.redis_settings().clone().set_db(i64::from(database));
        if let Some(password) = &credentials.password {
            settings = settings.set_password(password.expose());
        }
        // An empty one is the server's default user.
        if let Some(user) = credentials.user.as_ref().filter(|user| !user.is_empty()) {
            settings = settings.set_username(user);
        }
        info = info.set_redis_settings(settings);
        match &self.settings.tls {
            Some(pem) => tls::with_pem(info, pem),
            None => Ok(info),
        }
    }
}

/// Settings of every kind of Redis client besides the common ones.
macro_rules! redis_setters {
    ($builder:ty $(, $settings:ident)?) => {
        impl $builder {
            /// Number of the database, on every server; default: 0.
            pub fn with_database(mut self, database: u32) -> Self {
                self$(.$settings)?.database = database;
                self
            }

            /// Interval at which a waiter looks although no server reported anything, from 1 ms to
            /// 1 h; default: 2 s, less some jitter.
            pub fn with_poll_interval(mut self, interval: Duration) -> Self {
                self$(.$settings)?.poll_interval = interval;
                self
            }

            /// Time for which a name's fencing counter outlives its lock, from 1 s to 365 days;
            /// default: 10 min. Nothing else outlives a lock that is released.
            ///
            /// While the counter is there, tokens grow whatever the server's clock does. Afterwards
            /// they grow as long as the clock has not been put back by more than this. A counter
            /// that is ahead of the clock, because it was raised, is kept until this long after the
            /// clock has caught up. It takes some 150 bytes. Clients of the same names should
            /// agree: whoever acquires last decides.
            pub fn with_counter_ttl(mut self, ttl: Duration) -> Self {
                self$(.$settings)?.counter_ttl = ttl;
                self
            }
        }
    };
}

pub(crate) use redis_setters;

redis_setters!(RedisLockBuilder);
common_setters!(RedisLockBuilder, settings, "1 s");

fn addresses<H: AsRef<str>>(servers: impl IntoIterator<Item = (H, u16)>) -> Vec<Address> {
    servers
        .into_iter()
        .map(|(host, port)| Address::new(host.as_ref(), port))
        .collect()
}

fn address(server: &Address, tls: bool) -> ConnectionAddr {
    let host = server.host.clone();
    let port = server.port;
    match tls {
        true => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
        false => ConnectionAddr::Tcp(host, port),
    }
}

pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}

#[cfg(test)]
mod tests;
