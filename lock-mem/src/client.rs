use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, FencingToken, LockError, LockGuard,
    LockHolder, LockInfo, LockList, LockName, LockWatch, LossReason, Operation, OwnerId, Terms,
    backend::{
        Clock, Grant, GuardSet, LeaseKeeper, Moment, StoreHealth, Tasks, WaitLimit, WatchSource,
        bounded, watch_holders,
    },
};

use crate::{
    MemStore,
    capabilities::{DEFAULT_TTL, capabilities},
    entry::{MemEntry, number_of, owner},
    faults::REQUEST_TIMEOUT,
    held_entry::{HeldEntry, MemRenewer},
    key::Key,
    pending_entry::PendingEntry,
    queue::{Holder, Place},
    watches::Watch,
};

/// A client of a [`MemStore`]: the in-memory backend.
///
/// ```
/// use lock_core::DistributedLockExt;
/// use lock_mem::MemLock;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let locks = MemLock::new();
/// let guard = locks.acquire("orders/42").await?;
/// assert!(locks.try_acquire("orders/42").await?.is_none());
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
pub struct MemLock {
    store: MemStore,
    guards: Arc<GuardSet>,
    keeper: Arc<LeaseKeeper<MemRenewer>>,
    default_ttl: Duration,
    capabilities: Capabilities,
}

impl MemLock {
    /// A client with default settings of a new store.
    #[must_use]
    pub fn new() -> Self {
        Self::on(MemStore::new())
    }

    /// A client with default settings of this store.
    #[must_use]
    pub fn on(store: MemStore) -> Self {
        Self::with_tasks(store, &Tasks::anywhere(), DEFAULT_TTL)
    }

    pub(crate) fn with_tasks(store: MemStore, tasks: &Tasks, default_ttl: Duration) -> Self {
        let keeper = LeaseKeeper::new(Clock::Tokio, MemRenewer(store.clone()), tasks.apart());
        Self {
            store,
            guards: GuardSet::new("mem", tasks.apart()),
            keeper,
            default_ttl,
            capabilities: capabilities(),
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &MemStore {
        &self.store
    }

    /// Guards, renewals and background tasks that this client has. For leak checks.
    #[must_use]
    pub fn residue(&self) -> usize {
        self.guards.live() + self.keeper.registered() + self.guards.tasks().running()
    }

    fn begin(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<(Arc<MemEntry>, Terms), LockError> {
        let mut terms = options.resolve(&self.capabilities, self.default_ttl)?;
        Ok((
            MemEntry::new(self.store.key(name), terms.ttl, terms.metadata.take()),
            terms,
        ))
    }

    async fn acquire(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let (entry, terms) = self.begin(name, options)?;
        let pending = PendingEntry::new(&self.store, &entry);
        let sent = match pending.ask_now(true) {
            Some((sent, Place::Holding)) => sent,
            // Boxed to keep the future of a free lock small.
            _ => Box::pin(self.wait(&pending, &terms)).await?,
        };
        pending.granted();
        Ok(self.grant(entry, sent, &terms))
    }

    async fn wait(&self, pending: &PendingEntry<'_>, terms: &Terms) -> Result<Moment, LockError> {
        let wait_limit = WaitLimit::new(StoreHealth::new(Clock::Tokio), terms, REQUEST_TIMEOUT);
        bounded(&self.guards, Some(&wait_limit), pending.wait(&wait_limit)).await
    }

    async fn try_acquire(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let (entry, terms) = self.begin(name, options)?;
        let pending = PendingEntry::new(&self.store, &entry);
        let (sent, place) = match pending.ask_now(false) {
            Some(answer) => answer,
            None => Box::pin(answered(&self.guards, pending.ask(false))).await?,
        };
        if place != Place::Holding {
            return Ok(None);
        }
        pending.granted();
        Ok(Some(self.grant(entry, sent, &terms)))
    }

    fn grant(&self, entry: Arc<MemEntry>, sent: Moment, terms: &Terms) -> LockGuard {
        let (lease, renewal) = self
            .keeper
            .register(Arc::clone(&entry), sent, terms.ttl, terms);
        entry.bind(&lease);
        let name = entry.key.name.clone();
        let owner = owner(entry.number());
        let token = entry.token();
        let held = Arc::new(HeldEntry {
            store: self.store.clone(),
            entry,
        });
        self.guards.grant(
            Grant::new(name, owner, lease, held)
                .with_token(token)
                .with_renewal(renewal),
        )
    }

    async fn evict(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let only = match only.map(number_of) {
            // Not a number of this store.
            Some(None) => return Ok(Vec::new()),
            Some(number) => number,
            None => None,
        };
        let key = self.store.key(name);
        let evict = self.store.ask(&key, |queue, now, wake| {
            let holder = queue.evict(now, only, wake)?;
            // With the eviction, and not with its answer, which may be late: by then somebody else
            // holds the lock.
            holder.entry.lose(holder.number, LossReason::Removed);
            Some(describe(&holder, now))
        });
        let (_, evicted) =
            answered(&self.guards, evict)
                .await
                .map_err(|error| match error.kind() {
                    ErrorKind::Unavailable => error.indeterminate(),
                    _ => error,
                })?;
        Ok(evicted.into_iter().collect())
    }
}

impl MemStore {
    /// A new client with default settings, independent of the others as if from another process.
    #[must_use]
    pub fn client(&self) -> MemLock {
        MemLock::on(self.clone())
    }
}

/// Waits for an answer as long as a client of a real store would.
async fn answered<R: Send>(
    guards: &GuardSet,
    request: impl Future<Output = Result<R, LockError>> + Send,
) -> Result<R, LockError> {
    let request = tokio::time::timeout(REQUEST_TIMEOUT, request);
    let unanswered = |_| {
        LockError::new(
            ErrorKind::Unavailable,
            format!("no answer within {REQUEST_TIMEOUT:?}"),
        )
    };
    bounded(guards, None, async { request.await.map_err(unanswered)? }).await
}

async fn inspect(
    store: &MemStore,
    guards: &GuardSet,
    key: &Key,
) -> Result<Option<LockInfo>, LockError> {
    guards.ensure_open()?;
    let look = store.ask(key, |queue, now, wake| {
        let holder = describe(queue.holder(now, wake)?, now);
        Some((holder, queue.waiting() as u64))
    });
    let (_, seen) = answered(guards, look).await?;
    Ok(seen.map(|(holder, waiting)| {
        let mut info = LockInfo::new(key.name.clone(), holder);
        info.waiters = Some(waiting);
        info
    }))
}

fn describe(holder: &Holder<Arc<MemEntry>>, now: Moment) -> LockHolder {
    let Holder {
        number,
        since,
        expires,
        token,
        entry,
    } = holder;
    let mut described = LockHolder::new(owner(*number));
    described.token = Some(FencingToken::new(*token));
    described.since = SystemTime::now().checked_sub(now.saturating_since(*since));
    described.metadata.clone_from(&entry.metadata);
    described.expires_in = Some(expires.saturating_since(now));
    described
}

/// A watch that its client's shutdown ends.
struct HolderReader {
    watch: Watch,
    store: MemStore,
    guards: Arc<GuardSet>,
}

#[async_trait]
impl WatchSource for HolderReader {
    async fn look(&mut self) -> Result<Option<LockInfo>, LockError> {
        let key = &self.watch.key;
        inspect(&self.store, &self.guards, key)
            .await
            .map_err(|error| error.during(Operation::Watch).on("mem").of(&key.name))
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.watch.change.notified() => {}
            () = self.guards.closing().fired() => {}
        }
    }
}

impl Default for MemLock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for MemLock {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let acquire = self.acquire(name, options);
        self.guards.call(Operation::Acquire, name, acquire).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let acquire = self.try_acquire(name, options);
        self.guards.call(Operation::TryAcquire, name, acquire).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let key = self.store.key(name);
        let inspect = inspect(&self.store, &self.guards, &key);
        self.guards.call(Operation::Inspect, name, inspect).await
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let watch = async {
            Ok(watch_holders(HolderReader {
                watch: self.store.watch(self.store.key(name)),
                store: self.store.clone(),
                guards: Arc::clone(&self.guards),
            }))
        };
        self.guards.call(Operation::Watch, name, watch).await
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let store = self.store.clone();
        let guards = Arc::clone(&self.guards);
        let look = move |key| {
            let store = store.clone();
            let guards = Arc::clone(&guards);
            async move {
                let inspect = inspect(&store, &guards, &key);
                guards.call(Operation::List, None, inspect).await
            }
        };
        let list = async {
            let infos = stream::iter(self.store.held(prefix)).then(look);
            let held = infos.filter_map(|info| async { info.transpose() });
            Ok(LockList::new(held))
        };
        self.guards.call(Operation::List, None, list).await
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let evict = self.evict(name, only);
        self.guards.call(Operation::ForceRelease, name, evict).await
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.guards.shutdown().await
    }
}

impl fmt::Debug for MemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemLock")
            .field("store", &self.store)
            .field("holds", &self.guards)
            .finish_non_exhaustive()
    }
}
