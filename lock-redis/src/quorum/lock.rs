use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, LockError, LockGuard, LockInfo, LockName, LockUrl, Operation,
    backend::{Clock, Holds, Keeper, bounded},
};
use redis::ConnectionInfo;

use crate::{
    builder::RedisLockBuilder,
    keys::Keys,
    link::Timeouts,
    quorum::{
        builder::RedisQuorumLockBuilder,
        capabilities::{BACKEND, quorum_capabilities},
        connector,
        core::Core,
        holders,
        line::Sights,
        majority::Majority,
        member::{Member, Members},
        renewal::QuorumRenewer,
    },
    scripts,
    servers::Servers,
    upstream::Upstream,
    watcher::{News, Watcher},
};

/// Locks that a majority of independent Redis servers grants, after the Redlock algorithm: the failure of a minority is not
/// noticed.
///
/// Cheap to clone; the clones are the same client. When the last of them and the last guard are gone the connections
/// are closed.
///
/// # How it works
///
/// A request with the same owner id goes to all servers at once. The lock is granted when a majority has granted it and time is
/// left: the TTL, less the time since the first request was sent, less 1 % of the TTL and 2 ms for the drift of clocks, as the
/// [specification](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/) has it. That is also the guard's
/// deadline. Otherwise the lock is given back on *all* servers, in the background also on those that did not answer. Renewals need
/// a majority too; without one the deadline stays and they are repeated until it passes. The guard is lost at once when so many
/// servers say that they have it no more that no majority is left.
///
/// Nobody waits for a slow minority. A waiter is woken by the servers' reports, as with [`RedisLock`](crate::RedisLock), and tries
/// when a majority may be free. When clients split the votes each gives back what it got and tries again after a random
/// pause.
///
/// # What to rely on
///
/// Two majorities have a server in common, and that server grants the lock once: so exclusion holds while fewer than half of the
/// servers fail or cannot be reached, as long as their clocks advance at nearly the same rate and **none forgets a lock
/// that it granted**. A server that restarts without its data may take part in a second majority while the first
/// holder is still valid. So either have every write on disk before its reply (`appendonly yes`, `appendfsync always`), or keep a
/// server that lost its data, by crash or by failover, away from the clients for the longest TTL in use (*delayed restart*). This
/// client cannot see that a server lost its data, and does not enforce it. No server may evict keys (`maxmemory-policy noeviction`).
///
/// Servers that restart empty also forget what they granted to a guard that goes on being valid; they do not get it back. When that
/// has happened to a majority the guard is lost.
///
/// # Fencing tokens
///
/// The token is the largest number that a server of the granting majority minted from its counter. That alone would not grow
/// from holder to holder: the server that two majorities have in common may be the one whose counter lagged. So before the guard is
/// handed out, counters of the majority that are smaller are raised to the token, and the lock is granted only when a majority of counters
/// is there. The next majority then has a server among it that mints a larger one, for as long as the servers keep their
/// data. Servers agree at once, and the second request is left out, when this machine's clock is ahead of their counters. A name
/// that was not used for a day goes on from the clock.
#[derive(Clone)]
#[doc(alias = "Redlock")]
pub struct RedisQuorumLock {
    core: Arc<Core>,
}

impl RedisQuorumLock {
    /// Starts without servers, and otherwise with the defaults: no prefix, a TTL of 30 s, 200 ms for a server to answer.
    pub fn builder() -> RedisQuorumLockBuilder {
        RedisQuorumLockBuilder::new()
    }

    /// Connects to the servers of a URL; see [`RedisQuorumConnector`](crate::RedisQuorumConnector) for what it may hold.
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
    /// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl), [`InvalidOptions`](lock_core::ErrorKind::InvalidOptions) for servers that
    /// make no quorum; [`Unavailable`](lock_core::ErrorKind::Unavailable) within the connect timeout, and
    /// [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied), if no majority can be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(url: &str) -> Result<Self, LockError> {
        let connect = async { connector::builder_of(&url.parse::<LockUrl>()?)?.connect().await };
        connect.await.map_err(|error| error.during(Operation::Connect).on(BACKEND))
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

    pub(crate) async fn open(servers: Vec<(String, ConnectionInfo)>, settings: RedisLockBuilder) -> Result<Self, LockError> {
        let limit = settings.request_timeout;
        let timeouts = Timeouts { connect: settings.connect_timeout, response: limit };
        let (home, news) = (settings.home()?, News::new());
        let sights = Sights::new(Majority::of(servers.len()), Arc::clone(&news));
        let member = |(at, (address, info)): (usize, (String, ConnectionInfo))| {
            let servers = Servers::one(Upstream::Fixed(info), timeouts, &home, sights.ear(at));
            Arc::new(Member::new(address, servers, limit))
        };
        let members = servers.into_iter().enumerate().map(member).collect();
        let holds = Holds::new(BACKEND, home.apart());
        let members = Arc::new(Members::new(members, limit, &holds));
        let core = Core {
            validity: settings.validity(),
            prefix: settings.prefix,
            ttl: settings.ttl,
            poll: settings.poll_interval,
            request: limit,
            attempt: timeouts.attempt(),
            sights,
            watcher: Watcher::new(news, home.clone()),
            keeper: Keeper::new(Clock::Suspend, QuorumRenewer { members: Arc::clone(&members) }, home.clone()),
            holds,
            members,
        };
        core.connected(settings.connect_timeout, &home).await?;
        Ok(Self { core: Arc::new(core) })
    }

    async fn holder(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let keys = Keys::new(&self.core.prefix, name);
        let mut answers = self.core.members.ask(|member| {
            let keys = keys.clone();
            async move { scripts::parse_info(&member.look(&keys).await?) }
        });
        let (mut infos, majority) = (Vec::new(), self.core.members.majority());
        while holders::common(majority, &infos, majority.servers() - infos.len() - answers.failures.len()).is_none()
            && let Some((_, answer)) = answers.next().await
        {
            infos.extend(answer);
        }
        if infos.len() < majority.needed() {
            return Err(self.core.out_of_reach(&answers.failures));
        }
        Ok(holders::common(majority, &infos, 0).unwrap_or_else(|| holders::likely(&infos)))
    }

    async fn delete(&self, name: &LockName) -> Result<bool, LockError> {
        let keys = Keys::new(&self.core.prefix, name);
        let mut answers = self.core.members.ask(|member| {
            let keys = keys.clone();
            async move {
                // Finds out whether the connection broke while it was idle: what removes a lock is not repeated.
                member.look(&keys).await?;
                let forced = member.connection(&keys.lock).await?.run_script(&scripts::FORCE, &keys, |_| {}).await;
                scripts::parse_forced(&member.heard(forced)?)
            }
        });
        let (mut answered, mut deleted) = (0, 0);
        while let Some((_, answer)) = answers.next().await {
            answered += usize::from(answer.is_some());
            deleted += usize::from(answer == Some(true));
        }
        let majority = self.core.members.majority();
        // As many as leave no majority to anybody.
        if answered < majority.blocking() {
            let error = self.core.out_of_reach(&answers.failures);
            let unanswered = answered + answers.failures.len() < majority.servers();
            let doubtful = deleted > 0 || unanswered || answers.failures.iter().any(|(_, failure)| !failure.had_no_effect());
            return Err(if doubtful { error.indeterminate() } else { error });
        }
        Ok(deleted > 0 && deleted + majority.servers() - answered >= majority.needed())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for RedisQuorumLock {
    fn capabilities(&self) -> Capabilities {
        self.core.validity.applied_to(quorum_capabilities())
    }

    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        let acquire = async {
            self.core.holds.ensure_open()?;
            self.core.acquire(name, self.core.validity.resolve(options, &quorum_capabilities(), self.core.ttl)?).await
        };
        acquire.await.map_err(|error| error.during(Operation::Acquire).on(BACKEND).of(name))
    }

    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        let acquire = async {
            self.core.holds.ensure_open()?;
            self.core.try_acquire(name, self.core.validity.resolve(options, &quorum_capabilities(), self.core.ttl)?).await
        };
        acquire.await.map_err(|error| error.during(Operation::TryAcquire).on(BACKEND).of(name))
    }

    /// The owner that a majority of the servers has, or that may have one together with servers that did not answer.
    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        bounded(&self.core.holds, None, self.holder(name)).await.map_err(|error| error.during(Operation::Inspect).on(BACKEND).of(name))
    }

    /// Removes the lock from every server that answers, which must be so many that nobody is left with a majority.
    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        bounded(&self.core.holds, None, self.delete(name)).await.map_err(|error| error.during(Operation::ForceRelease).on(BACKEND).of(name))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        let outcome = self.core.holds.shutdown().await;
        self.core.watcher.stop();
        self.core.members.close();
        outcome
    }
}

impl Debug for RedisQuorumLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Core { prefix, members, watcher, holds, .. } = &*self.core;
        let mut f = f.debug_struct("RedisQuorumLock");
        f.field("prefix", prefix).field("servers", members).field("watcher", watcher).field("holds", holds).finish_non_exhaustive()
    }
}
