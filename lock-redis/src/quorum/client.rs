use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, LockError, LockGuard, LockHolder,
    LockInfo, LockList, LockName, LockUrl, LockWatch, Operation, OwnerId,
    backend::{Clock, GuardSet, LeaseKeeper, bounded},
};
use redis::ConnectionInfo;

use crate::{
    config::RedisLockBuilder,
    keys::Keys,
    quorum::{
        acquire::Core,
        capabilities::{BACKEND, quorum_capabilities},
        config::RedisQuorumLockBuilder,
        connector, holders,
        majority::Majority,
        queue_entry::Entered,
        renewal::QuorumRenewer,
        server::{QuorumServer, QuorumServers},
        waiter::TrackedLocks,
    },
    scripts,
    transport::reconnect::Timeouts,
    transport::routing::Servers,
    transport::upstream::Upstream,
    waiters::contended::Contended,
    waiters::tracking::{Invalidations, Watcher},
    watch,
};

/// Locks that a majority of independent Redis servers grants, after the Redlock algorithm: the
/// failure of a minority is not noticed.
///
/// Cheap to clone; the clones are the same client. When the last of them and the last guard are
/// gone the connections are closed.
///
/// # How it works
///
/// A request with the same owner id goes to all servers at once. The lock is granted when a
/// majority has granted it and time is left: the TTL, less the time since the first request was
/// sent, less 1 % of the TTL and 2 ms for the drift of clocks, as the
/// [specification](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/) has
/// it. That is also the guard's deadline. Otherwise the lock is given back on *all* servers, in the
/// background also on those that did not answer. Renewals need a majority too; without one the
/// deadline stays and they are repeated until it passes. The guard is lost at once when so many
/// servers say that they have it no more that no majority is left.
///
/// Nobody waits for a slow minority. The clients that wait stand in a queue on one server, the same
/// for all who can reach it, and otherwise on the next one. The first of them is woken by the
/// servers' reports, as with [`RedisLock`](crate::RedisLock), and tries when a majority may be free;
/// the others wait for the entry before their own. The queue only tells who competes: without it, or
/// in several, clients may split the votes. Then each gives back what it got and tries again after a
/// random pause.
///
/// # What to rely on
///
/// Two majorities have a server in common, and that server grants the lock once: so exclusion holds
/// while fewer than half of the servers fail or cannot be reached, as long as their clocks advance
/// at nearly the same rate and **none forgets a lock that it granted**. A server that restarts
/// without its data may take part in a second majority while the first holder is still valid. So
/// either have every write on disk before its reply (`appendonly yes`, `appendfsync always`), or
/// keep a server that lost its data, by crash or by failover, away from the clients for the longest
/// TTL in use (*delayed restart*). This client cannot see that a server lost its data, and does not
/// enforce it. No server may evict keys (`maxmemory-policy noeviction`).
///
/// Servers that restart empty also forget what they granted to a guard that goes on being valid;
/// they do not get it back. When that has happened to a majority the guard is lost.
///
/// # Fencing tokens
///
/// The token is the largest number that a server of the granting majority minted from its counter.
/// That alone would not grow from holder to holder: the server that two majorities have in common
/// may be the one whose counter lagged. So before the guard is handed out, counters of the majority
/// that are smaller are raised to the token, and the lock is granted only when a majority of
/// counters is there. The next majority then has a server among it that mints a larger one, for as
/// long as the servers keep their data. Servers agree at once, and the second request is left out,
/// when this machine's clock is ahead of their counters, and within half a second of their clocks:
/// beyond that it counts for nothing. A name that was not used for ten minutes
/// ([`with_counter_ttl`](RedisQuorumLockBuilder::with_counter_ttl)) goes on from their clocks.
#[derive(Clone)]
#[doc(alias = "Redlock")]
pub struct RedisQuorumLock {
    core: Arc<Core>,
}

impl RedisQuorumLock {
    /// Starts without servers, and otherwise with the defaults: no namespace, a TTL of 30 s, 200 ms
    /// for a server to answer.
    pub fn builder() -> RedisQuorumLockBuilder {
        RedisQuorumLockBuilder::new()
    }

    /// Connects to the servers of a URL; see [`RedisQuorumConnector`](crate::RedisQuorumConnector)
    /// for what it may hold.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// let locks = lock_redis::RedisQuorumLock::connect("redis+quorum://r1:6379,r2:6379,r3:6379?ttl=15s").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl),
    /// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl) for servers that make no quorum;
    /// [`Unavailable`](lock_core::ErrorKind::Unavailable) within the connect timeout, and
    /// [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied), if no majority can be used.
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

    pub(crate) async fn open(
        servers: Vec<(String, ConnectionInfo)>,
        builder: RedisLockBuilder,
    ) -> Result<Self, LockError> {
        let limit = builder.settings.request_timeout;
        let timeouts = Timeouts {
            connect: builder.settings.connect_timeout,
            response: limit,
        };
        let home = builder.settings.tasks()?;
        let invalidations = Invalidations::new();
        let tracked_locks =
            TrackedLocks::new(Majority::of(servers.len()), Arc::clone(&invalidations));
        let member = |(at, (address, info)): (usize, (String, ConnectionInfo))| {
            let servers = Servers::one(
                Upstream::Fixed(info),
                timeouts,
                &home,
                tracked_locks.listener_of(at),
            );
            Arc::new(QuorumServer::new(address, servers, limit))
        };
        let quorum = servers.into_iter().enumerate().map(member).collect();
        let guards = GuardSet::new(BACKEND, home.apart());
        let quorum = Arc::new(QuorumServers::new(quorum, limit, &guards));
        let core = Core {
            validity: builder.validity(),
            prefix: builder.prefix(),
            ttl: builder.settings.ttl,
            counter_ttl: builder.counter_ttl,
            poll: builder.poll_interval,
            request: limit,
            attempt: timeouts.attempt(),
            tracked_locks,
            id: format!("{:016x}", rand::random::<u64>()),
            entered: Entered::default(),
            contended: Contended::default(),
            watcher: Watcher::new(invalidations, home.clone()),
            keeper: LeaseKeeper::new(
                Clock::Suspend,
                QuorumRenewer {
                    quorum: Arc::clone(&quorum),
                },
                home.clone(),
            ),
            guards,
            quorum,
        };
        core.connected(builder.settings.connect_timeout, &home)
            .await?;
        Ok(Self {
            core: Arc::new(core),
        })
    }

    async fn delete(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let keys = Keys::new(&self.core.prefix, name);
        let mut answers = self.core.quorum.ask(|member| {
            let keys = keys.clone();
            let name = name.clone();
            let only = only.cloned();
            async move {
                // Finds out whether the connection broke while it was idle: what removes a lock is
                // not repeated.
                member.look(&keys, false).await?;
                let connection = member.connection(&keys.lock).await?;
                let forced = connection
                    .run_script(&scripts::FORCE, &keys, |command| {
                        scripts::add_owner(command, only.as_ref());
                    })
                    .await;
                scripts::parse_info(&name, &member.heard(forced)?)
            }
        });
        let mut removed = Vec::new();
        while let Some((_, answer)) = answers.next().await {
            removed.extend(answer);
        }
        let answered = removed.len();
        let deleted = removed.iter().flatten().count();
        let majority = self.core.quorum.majority();
        // As many as leave no majority to anybody.
        if answered < majority.blocking() {
            let error = self.core.out_of_reach(&answers.failures);
            let unanswered = answered + answers.failures.len() < majority.servers();
            let doubtful = deleted > 0
                || unanswered
                || answers
                    .failures
                    .iter()
                    .any(|(_, failure)| !failure.had_no_effect());
            return Err(if doubtful {
                error.indeterminate()
            } else {
                error
            });
        }
        let had_majority =
            deleted > 0 && deleted + majority.servers() - answered >= majority.needed();
        Ok(holders::likely(&removed)
            .filter(|_| had_majority)
            .map_or_else(Vec::new, |info| info.holders))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for RedisQuorumLock {
    fn capabilities(&self) -> Capabilities {
        self.core.validity.applied_to(quorum_capabilities())
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let Self { core } = self;
        let acquire = async {
            let terms = core
                .validity
                .resolve(options, &quorum_capabilities(), core.ttl)?;
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
            let terms = core
                .validity
                .resolve(options, &quorum_capabilities(), core.ttl)?;
            core.try_acquire(name, terms).await
        };
        core.guards.call(Operation::TryAcquire, name, acquire).await
    }

    /// The owner that a majority of the servers has, or that may have one together with servers
    /// that did not answer.
    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let Self { core } = self;
        let keys = Keys::new(&core.prefix, name);
        let inspect = async {
            let (info, _) = core.holder(name, &keys, false).await?;
            Ok(info)
        };
        core.guards.call(Operation::Inspect, name, inspect).await
    }

    /// As inspection tells, whenever a server reports a change. Keeps the client alive.
    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        watch::watch(&self.core, BACKEND, &self.core.prefix, name)
    }

    /// Removes the lock from every server that answers, which must be so many that nobody is left
    /// with a majority.
    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let Self { core } = self;
        let delete = bounded(&core.guards, None, self.delete(name, only));
        core.guards
            .call(Operation::ForceRelease, name, delete)
            .await
    }

    /// Is not supported.
    async fn list(&self, _prefix: &str) -> Result<LockList, LockError> {
        let message = "the servers of a quorum are not listed; list each of them on its own";
        Err(LockError::new(ErrorKind::Unsupported, message)
            .during(Operation::List)
            .on(BACKEND))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        let outcome = self.core.guards.shutdown().await;
        self.core.watcher.stop();
        self.core.quorum.close();
        outcome
    }
}

impl Debug for RedisQuorumLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Core {
            prefix,
            quorum,
            watcher,
            guards,
            ..
        } = &*self.core;
        let mut f = f.debug_struct("RedisQuorumLock");
        f.field("prefix", prefix)
            .field("servers", quorum)
            .field("watcher", watcher)
            .field("holds", guards)
            .finish_non_exhaustive()
    }
}
