use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, LockError, LockGuard, LockHolder, LockInfo,
    LockList, LockName, LockUrl, LockWatch, Operation, OwnerId,
    backend::{GuardSet, LeaseKeeper, bounded},
};

use crate::{
    acquire::{Core, Via},
    capabilities::{BACKEND, capabilities},
    config::RedisLockBuilder,
    connector,
    keys::Keys,
    list,
    queue_entry::Entered,
    renewal::RedisRenewer,
    replicas::Replicas,
    scripts,
    topology::Topology,
    transport::reconnect::{Connection, Timeouts},
    transport::routing::Servers,
    transport::upstream::Upstream,
    waiters::contended::Contended,
    waiters::tracking::{Invalidations, Watcher},
    watch,
};

/// Locks in Redis: one client, with a few background tasks and three connections to each server that
/// it uses, however many locks it holds: for commands, for reports, and for renewals once a lock
/// has been held for a while. Confirmations by replicas take up to 32 connections more for acquisitions and as many
/// for renewals, and a sentinel one.
///
/// Cheap to clone; the clones are the same client. When the last of them and the last guard are
/// gone the connections are closed.
#[derive(Clone)]
pub struct RedisLock {
    core: Arc<Core>,
}

/// A waiter puts up with a failover, which by default takes sentinels more than half a minute, for
/// this long at least.
const FAILOVER_LIMIT: Duration = Duration::from_secs(60);

impl RedisLock {
    /// Starts with the defaults: the server at `127.0.0.1:6379`, no namespace, a TTL of 30 s.
    pub fn builder() -> RedisLockBuilder {
        RedisLockBuilder::new()
    }

    /// Connects to the server of a URL; see [`RedisConnector`](crate::RedisConnector) for what it
    /// may hold.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisLock::connect("rediss://app@redis.internal:6380/0?namespace=prod&ttl=15s").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl),
    /// [`Unavailable`](lock_core::ErrorKind::Unavailable) within the connect timeout,
    /// [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied),
    /// [`Protocol`](lock_core::ErrorKind::Protocol) if something else than Redis answers.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(url: &str) -> Result<Self, LockError> {
        let connect = async {
            connector::builder_of(&url.parse::<LockUrl>()?)?
                .connect()
                .await
        };
        connect
            .await
            .map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    /// Tells what the client has at the moment, as one number: guards, waiters, renewals,
    /// clean-ups. For leak checks; does not keep the client alive.
    #[doc(hidden)]
    pub fn residue(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let core = Arc::downgrade(&self.core);
        move || {
            let Some(core) = core.upgrade() else { return 0 };
            let Core {
                guards,
                keeper,
                watcher,
                ..
            } = &*core;
            guards.live()
                + guards.tasks().running()
                + keeper.registered()
                + watcher.held()
                + watcher.waiting()
        }
    }

    /// With the servers of `settings`, or with the one of a client.
    pub(crate) async fn open(
        client: Option<redis::Client>,
        builder: RedisLockBuilder,
    ) -> Result<Self, LockError> {
        let timeouts = Timeouts {
            connect: builder.settings.connect_timeout,
            response: builder.settings.request_timeout,
        };
        let home = builder.settings.tasks()?;
        let invalidations = Invalidations::new();
        let listener = Arc::clone(&invalidations) as _;
        let servers = match client {
            Some(client) => Servers::one(
                Upstream::Fixed(client.get_connection_info().clone()),
                timeouts,
                &home,
                listener,
            ),
            None => Topology::servers(&builder, timeouts, &home, listener)?,
        };
        let servers = Arc::new(servers);
        servers.open(&home).await?;
        let guards = GuardSet::new(BACKEND, home.apart());
        let replicas = match (builder.replicas, &*servers) {
            (Some(asked), Servers::One { node, .. }) => Some(Replicas::new(
                asked,
                Arc::clone(&node.commands),
                timeouts.response,
                guards.tasks().clone(),
            )),
            _ => None,
        };
        let renewer = RedisRenewer {
            servers: Arc::clone(&servers),
            replicas: replicas.clone(),
        };
        let core = Core {
            id: format!("{:016x}", rand::random::<u64>()),
            entered: Entered::default(),
            contended: Contended::default(),
            validity: builder.validity(),
            prefix: builder.prefix(),
            ttl: builder.settings.ttl,
            counter_ttl: builder.counter_ttl,
            poll: builder.poll_interval,
            attempt: timeouts.attempt(),
            request: timeouts.response,
            wait_limit: if servers.fail_over() {
                FAILOVER_LIMIT
            } else {
                Duration::ZERO
            },
            watcher: Watcher::new(invalidations, home.clone()),
            keeper: LeaseKeeper::new(lock_core::backend::Clock::Suspend, renewer, home),
            guards,
            replicas,
            servers,
        };
        Ok(Self {
            core: Arc::new(core),
        })
    }

    async fn delete(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let keys = &Keys::new(&self.core.prefix, name);
        bounded(&self.core.guards, None, async {
            // What removes a lock is not repeated, for the second one might hit the next holder's.
            // What looks at it is: so it finds out whether a connection broke while it was idle.
            self.core.inspect(keys, Via::Commands).await?;
            let force = |connection: Connection| async move {
                connection
                    .run_script(&scripts::FORCE, keys, |command| {
                        scripts::add_owner(command, only);
                    })
                    .await
            };
            let removed =
                scripts::parse_info(name, &self.core.servers.at(&keys.lock, force).await?)?;
            Ok(removed.map_or_else(Vec::new, |info| info.holders))
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

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let Self { core } = self;
        let acquire = async {
            let terms = core.validity.resolve(options, &capabilities(), core.ttl)?;
            core.acquire(name, terms).await
        };
        core.guards.call(Operation::Acquire, name, acquire).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let Self { core } = self;
        let acquire = async {
            let terms = core.validity.resolve(options, &capabilities(), core.ttl)?;
            core.try_acquire(name, terms).await
        };
        core.guards.call(Operation::TryAcquire, name, acquire).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let Self { core } = self;
        let keys = Keys::new(&core.prefix, name);
        let inspect = async {
            let (info, _) = core.holder(name, &keys, Via::Commands).await?;
            Ok(info)
        };
        core.guards.call(Operation::Inspect, name, inspect).await
    }

    /// Told by the server's reports, or where it may not report, by looks like those of a waiter.
    /// Keeps the client alive.
    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        watch::watch(&self.core, BACKEND, &self.core.prefix, name)
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let delete = self.delete(name, only);
        self.core
            .guards
            .call(Operation::ForceRelease, name, delete)
            .await
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        list::list(&self.core, prefix).await
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        let outcome = self.core.guards.shutdown().await;
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
        let Core {
            prefix,
            servers,
            watcher,
            guards,
            ..
        } = &*self.core;
        let mut f = f.debug_struct("RedisLock");
        f.field("prefix", prefix)
            .field("servers", servers)
            .field("watcher", watcher)
            .field("holds", guards)
            .finish_non_exhaustive()
    }
}
