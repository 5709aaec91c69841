use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, LockError, LockGuard, LockInfo, LockName, LockUrl, Operation,
    backend::{Holds, Keeper, bounded},
};
use redis::Value;

use crate::{
    builder::RedisLockBuilder,
    capabilities::{BACKEND, capabilities},
    connector,
    core::Core,
    error::Failure,
    keys::Keys,
    link::{Connection, Timeouts},
    renewal::RedisRenewer,
    replicas::Replicas,
    scripts,
    servers::Servers,
    topology::Topology,
    upstream::Upstream,
    watcher::{News, Watcher},
};

/// Locks in Redis: one client, with a few background tasks and two connections to each server that it uses, however many locks it
/// holds. Confirmations by replicas take up to 32 connections more, and a sentinel one.
///
/// Cheap to clone; the clones are the same client. When the last of them and the last guard are gone the connections
/// are closed.
#[derive(Clone)]
pub struct RedisLock {
    core: Arc<Core>,
}

/// A waiter puts up with a failover, which by default takes sentinels more than half a minute, for this long at least.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(60);

impl RedisLock {
    /// Starts with the defaults: the server at `127.0.0.1:6379`, no prefix, a TTL of 30 s.
    pub fn builder() -> RedisLockBuilder {
        RedisLockBuilder::new()
    }

    /// Connects to the server of a URL; see [`RedisConnector`](crate::RedisConnector) for what it may hold.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisLock::connect("rediss://app@redis.internal:6380/0?prefix=prod:&ttl=15s").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl), [`Unavailable`](lock_core::ErrorKind::Unavailable) within the
    /// connect timeout, [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied),
    /// [`Protocol`](lock_core::ErrorKind::Protocol) if something else than Redis answers.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(url: &str) -> Result<Self, LockError> {
        let connect = async { connector::builder_of(&url.parse::<LockUrl>()?)?.connect().await };
        connect.await.map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    /// Uses the address, credentials and TLS settings of an existing `redis` client, with defaults for everything else.
    ///
    /// The connections are its own, with `TCP_NODELAY` set, the second one with RESP3.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    pub async fn from_client(client: redis::Client) -> Result<Self, LockError> {
        Self::builder().connect_with(client).await
    }

    /// Tells what the client has at the moment, as one number: guards, waiters, renewals, clean-ups. For leak checks; does
    /// not keep the client alive.
    #[doc(hidden)]
    pub fn residue(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let core = Arc::downgrade(&self.core);
        move || {
            let Some(core) = core.upgrade() else { return 0 };
            let Core { holds, keeper, watcher, .. } = &*core;
            holds.live() + holds.tasks().running() + keeper.kept() + watcher.held() + watcher.waiting()
        }
    }

    /// With the servers of `settings`, or with the one of a client.
    pub(crate) async fn open(client: Option<redis::Client>, settings: RedisLockBuilder) -> Result<Self, LockError> {
        let timeouts = Timeouts { connect: settings.connect_timeout, response: settings.request_timeout };
        let (home, news) = (settings.home()?, News::new());
        let listener = Arc::clone(&news) as _;
        let servers = match client {
            Some(client) => Servers::one(Upstream::Fixed(client.get_connection_info().clone()), timeouts, &home, listener),
            None => Topology::servers(&settings, timeouts, &home, listener)?,
        };
        let servers = Arc::new(servers);
        servers.open(&home).await?;
        let holds = Holds::new(BACKEND, home.apart());
        let replicas = match (settings.replicas, &*servers) {
            (Some(asked), Servers::One { node, .. }) => {
                Some(Replicas::new(asked, Arc::clone(&node.commands), timeouts.response, holds.tasks().clone()))
            }
            _ => None,
        };
        let renewer = RedisRenewer { servers: Arc::clone(&servers), replicas: replicas.clone() };
        let core = Core {
            validity: settings.validity(),
            prefix: settings.prefix,
            ttl: settings.ttl,
            poll: settings.poll_interval,
            attempt: timeouts.attempt(),
            request: timeouts.response,
            patience: if servers.fail_over() { FAILOVER_PATIENCE } else { Duration::ZERO },
            watcher: Watcher::new(news, home.clone()),
            keeper: Keeper::new(lock_core::backend::Clock::Suspend, renewer, home),
            holds,
            replicas,
            servers,
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// Runs a script for an operation that may be repeated; once more if the connection was found broken.
    async fn query(&self, script: &scripts::LockScript, keys: &Keys) -> Result<Value, Failure> {
        let once = || self.core.servers.at(&keys.lock, |connection| async move { connection.run_script(script, keys, |_| {}).await });
        match once().await {
            Err(failure) if failure.sent && failure.ends_connection() => once().await,
            answer => answer,
        }
    }

    async fn holder(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        bounded(&self.core.holds, None, async {
            let answer = self.query(&scripts::INSPECT, &Keys::new(&self.core.prefix, name)).await;
            Ok(answer.and_then(|answer| scripts::parse_info(&answer)).map_err(Failure::without_effect)?)
        })
        .await
    }

    async fn delete(&self, name: &LockName) -> Result<bool, LockError> {
        let keys = &Keys::new(&self.core.prefix, name);
        bounded(&self.core.holds, None, async {
            // What removes a lock is not repeated, for the second one might hit the next holder's. What looks at it is: so it finds
            // out whether a connection broke while it was idle.
            self.query(&scripts::INSPECT, keys).await.map_err(Failure::without_effect)?;
            let force = |connection: Connection| async move { connection.run_script(&scripts::FORCE, keys, |_| {}).await };
            Ok(scripts::parse_forced(&self.core.servers.at(&keys.lock, force).await?)?)
        })
        .await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for RedisLock {
    fn capabilities(&self) -> Capabilities {
        self.core.validity.applied_to(capabilities())
    }

    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        let acquire = async {
            self.core.holds.ensure_open()?;
            self.core.acquire(name, self.core.validity.resolve(options, &capabilities(), self.core.ttl)?).await
        };
        acquire.await.map_err(|error| error.during(Operation::Acquire).on(BACKEND).of(name))
    }

    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        let acquire = async {
            self.core.holds.ensure_open()?;
            self.core.try_acquire(name, self.core.validity.resolve(options, &capabilities(), self.core.ttl)?).await
        };
        acquire.await.map_err(|error| error.during(Operation::TryAcquire).on(BACKEND).of(name))
    }

    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        self.holder(name).await.map_err(|error| error.during(Operation::Inspect).on(BACKEND).of(name))
    }

    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        self.delete(name).await.map_err(|error| error.during(Operation::ForceRelease).on(BACKEND).of(name))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        let outcome = self.core.holds.shutdown().await;
        self.core.watcher.stop();
        if let Some(replicas) = &self.core.replicas {
            replicas.close();
        }
        self.core.servers.close();
        outcome
    }
}

impl Debug for RedisLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Core { prefix, servers, watcher, holds, .. } = &*self.core;
        let mut f = f.debug_struct("RedisLock");
        f.field("prefix", prefix).field("servers", servers).field("watcher", watcher).field("holds", holds).finish_non_exhaustive()
    }
}
