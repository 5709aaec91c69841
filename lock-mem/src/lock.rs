use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, Consistency, DistributedLock, ErrorKind, LockError, LockGuard, LockInfo, LockName, LossReason, Operation,
    Terms, TokenDurability, TtlRange,
    backend::{Clock, Contact, Grant, Holds, HomeOptions, Keeper, Moment, Patience, Tasks, bounded},
};

use crate::{
    MemStore,
    faults::REQUEST_TIMEOUT,
    queue::{Holder, Place},
    store::Line,
    ticket::{MemRenewer, Pending, Ticket, owner},
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
    holds: Arc<Holds>,
    keeper: Arc<Keeper<MemRenewer>>,
    default_ttl: Duration,
    capabilities: Capabilities,
}

/// Settings of a [`MemLock`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct MemLockBuilder {
    store: MemStore,
    default_ttl: Duration,
    background_thread: bool,
}

/// The TTL of acquisitions that do not ask for one.
const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// What [`MemLock`] can do.
#[must_use]
pub fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new("mem", Consistency::ProcessLocal);
    capabilities.fifo = true;
    capabilities.fencing = Some(TokenDurability::Process);
    // Below that, the margin for drift would leave nothing of it.
    capabilities.ttl = TtlRange::new(Duration::from_millis(10), capabilities.ttl.max, Duration::from_millis(1));
    capabilities.push_wake_up = true;
    capabilities.push_loss = true;
    capabilities.inspect = true;
    capabilities.queue_length = true;
    capabilities.force_release = true;
    capabilities.metadata = true;
    capabilities.crash_bound = Duration::from_millis(100);
    capabilities
}

impl MemLockBuilder {
    /// The store to be a client of; default: a new one.
    pub fn with_store(mut self, store: MemStore) -> Self {
        self.store = store;
        self
    }

    /// The TTL of acquisitions that do not ask for one; default: 30 s.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// Whether a thread of the client's own renews its locks; default: no, tasks on each runtime that acquires do, while it runs.
    ///
    /// With it a guard is renewed whatever the application's runtimes do: a current-thread runtime that does no work outside
    /// `block_on`, one that is blocked for longer than a TTL, or one that ends. Not for tests that pause time, which that thread's
    /// runtime does not take part in.
    pub fn with_background_thread(mut self, background_thread: bool) -> Self {
        self.background_thread = background_thread;
        self
    }

    /// Makes the client. Needs no runtime, unless it is to have a thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOptions`] if the default TTL is out of range; [`ErrorKind::Unavailable`] if there is no runtime, or no thread
    /// can be started.
    pub fn build(self) -> Result<MemLock, LockError> {
        let Self { store, default_ttl, background_thread } = self;
        let terms = AcquireOptions::new().resolve(&capabilities(), default_ttl).map_err(|error| error.on("mem"))?;
        let tasks = match background_thread {
            true => Tasks::start(HomeOptions { background_thread, ..HomeOptions::default() }).map_err(|error| error.on("mem"))?,
            false => Tasks::anywhere(),
        };
        Ok(MemLock { default_ttl: terms.ttl, ..MemLock::with_tasks(store, &tasks) })
    }
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
        Self::with_tasks(store, &Tasks::anywhere())
    }

    fn with_tasks(store: MemStore, tasks: &Tasks) -> Self {
        let keeper = Keeper::new(Clock::Tokio, MemRenewer(store.clone()), tasks.apart());
        Self { store, holds: Holds::new("mem", tasks.apart()), keeper, default_ttl: DEFAULT_TTL, capabilities: capabilities() }
    }

    /// A client with settings.
    pub fn builder() -> MemLockBuilder {
        MemLockBuilder { store: MemStore::new(), default_ttl: DEFAULT_TTL, background_thread: false }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &MemStore {
        &self.store
    }

    /// Guards, renewals and background tasks that this client has. For leak checks.
    #[must_use]
    pub fn residue(&self) -> usize {
        self.holds.live() + self.keeper.kept() + self.holds.tasks().running()
    }

    fn begin(&self, name: &LockName, options: AcquireOptions) -> Result<(Arc<Ticket>, Terms), LockError> {
        self.holds.ensure_open()?;
        let mut terms = options.resolve(&self.capabilities, self.default_ttl)?;
        Ok((Ticket::new(self.store.clone(), name, terms.ttl, terms.metadata.take()), terms))
    }

    async fn acquire(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        let (ticket, terms) = self.begin(name, options)?;
        let pending = Pending::new(&ticket);
        let sent = match pending.ask_now(true) {
            Some((sent, Place::Holding)) => sent,
            // Boxed, so that a lock that is free does not carry it along.
            _ => Box::pin(self.wait(&pending, &terms)).await?,
        };
        pending.granted();
        Ok(self.grant(ticket, sent, &terms))
    }

    async fn wait(&self, pending: &Pending<'_>, terms: &Terms) -> Result<Moment, LockError> {
        let patience = Patience::new(Contact::new(Clock::Tokio), terms, REQUEST_TIMEOUT);
        bounded(&self.holds, Some(&patience), pending.wait(&patience)).await
    }

    async fn try_acquire(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        let (ticket, terms) = self.begin(name, options)?;
        let pending = Pending::new(&ticket);
        let (sent, place) = match pending.ask_now(false) {
            Some(answer) => answer,
            None => Box::pin(self.answered(pending.ask(false))).await?,
        };
        if place != Place::Holding {
            return Ok(None);
        }
        pending.granted();
        Ok(Some(self.grant(ticket, sent, &terms)))
    }

    fn grant(&self, ticket: Arc<Ticket>, sent: Moment, terms: &Terms) -> LockGuard {
        let (lease, keep) = self.keeper.keep(Arc::clone(&ticket), sent, terms.ttl, terms);
        ticket.bind(&lease);
        self.holds.grant(Grant {
            name: ticket.key.name.clone(),
            owner: owner(ticket.number()),
            token: Some(ticket.token()),
            lease,
            keep: Some(keep),
            entry: ticket,
        })
    }

    async fn holder(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        self.holds.ensure_open()?;
        let key = self.store.key(name);
        let describe = self.store.ask(&key, |queue, now, wake| {
            let Holder { number, since, expires, ticket } = queue.holder(now, wake)?.clone();
            let mut info = LockInfo::new(owner(number));
            info.token = Some(ticket.token());
            info.since = SystemTime::now().checked_sub(now.saturating_since(since));
            info.metadata.clone_from(&ticket.metadata);
            info.expires_in = Some(expires.saturating_since(now));
            info.waiters = Some(queue.waiting() as u64);
            Some(info)
        });
        self.answered(describe).await.map(|(_, info)| info)
    }

    async fn evict(&self, name: &LockName) -> Result<bool, LockError> {
        self.holds.ensure_open()?;
        let (_, evicted) = self.answered(self.store.ask(&self.store.key(name), Line::evict)).await?;
        Ok(evicted.inspect(|holder| holder.ticket.lose(holder.number, LossReason::Removed)).is_some())
    }

    /// Waits for an answer as long as a client of a real store would.
    async fn answered<R: Send>(&self, request: impl Future<Output = Result<R, LockError>> + Send) -> Result<R, LockError> {
        let request = tokio::time::timeout(REQUEST_TIMEOUT, request);
        let unanswered = |_| LockError::new(ErrorKind::Unavailable, format!("no answer within {REQUEST_TIMEOUT:?}"));
        bounded(&self.holds, None, async { request.await.map_err(unanswered)? }).await
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

    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        self.acquire(name, options).await.map_err(|error| error.during(Operation::Acquire).on("mem").of(name))
    }

    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        self.try_acquire(name, options).await.map_err(|error| error.during(Operation::TryAcquire).on("mem").of(name))
    }

    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        self.holder(name).await.map_err(|error| error.during(Operation::Inspect).on("mem").of(name))
    }

    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        self.evict(name).await.map_err(|error| error.during(Operation::ForceRelease).on("mem").of(name))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.holds.shutdown().await
    }
}

impl fmt::Debug for MemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemLock").field("store", &self.store).field("holds", &self.holds).finish_non_exhaustive()
    }
}
