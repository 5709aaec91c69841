//! A complete client of the store; the defects of a client are here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use lock_core::{
    AcquireOptions, Capabilities, Consistency, DistributedLock, ErrorKind, FencingToken, LockError,
    LockGuard, LockHolder, LockInfo, LockList, LockName, LockWatch, LossReason, Mode, Operation,
    OwnerId, Terms, TokenDurability, TtlRange,
    backend::{
        Clock, Grant, GuardSet, Lease, LeaseKeeper, LossTrigger, Moment, StoreHealth, Tasks,
        WaitLimit, WatchSource, bounded, ensure_runtime, watch_holders,
    },
};

use crate::{
    defects::simulated::Defect,
    entry::{Held, Renewals},
    state::{Request, Standing},
    store::{PATIENCE, Store, locked},
};

pub(crate) const PASSWORD: &str = "s3cret-password";
const BACKEND: &str = "sim";
const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// Backstop for wake-ups that were lost.
const SLOW_POLL: Duration = Duration::from_millis(500);

pub(crate) struct Client {
    pub(crate) store: Arc<Store>,
    id: u64,
    pub(crate) guards: Arc<GuardSet>,
    keeper: Arc<LeaseKeeper<Renewals>>,
    pub(crate) triggers: Mutex<BTreeMap<String, LossTrigger>>,
    waiting: AtomicUsize,
    /// Needed by some defects.
    leases: Mutex<Vec<Weak<Lease>>>,
    misdirected: Arc<Mutex<BTreeSet<LockName>>>,
    locally_held: Mutex<BTreeSet<LockName>>,
    closed: AtomicBool,
}

pub(crate) fn capabilities(defect: Defect) -> Capabilities {
    let mut sim = Capabilities::new(BACKEND, Consistency::Linearizable);
    sim.ttl = TtlRange::new(
        Duration::from_millis(500),
        Duration::from_secs(3600),
        Duration::from_millis(1),
    );
    sim.fifo = true;
    sim.fencing = (defect != Defect::TokenWithoutFencing).then_some(TokenDurability::StoreData);
    sim.push_wake_up = true;
    sim.push_loss = !matches!(
        defect,
        Defect::RenewalRecreatesTheEntry | Defect::NotHeldIsRetried
    );
    sim.inspect = defect != Defect::InspectUndeclared;
    sim.queue_length = !matches!(
        defect,
        Defect::InspectUndeclared | Defect::QueueLengthUndeclared
    );
    sim.force_release = defect != Defect::ForceUndeclared;
    sim.watch = defect != Defect::WatchUndeclared;
    sim.list = defect != Defect::ListUndeclared;
    sim.raise_token = !matches!(
        defect,
        Defect::RaiseUndeclared | Defect::TokenWithoutFencing
    );
    sim.metadata = defect != Defect::UnsupportedMetadataIsIgnored;
    sim
}

impl Client {
    pub(crate) fn new(store: Arc<Store>, id: u64) -> Arc<Self> {
        let misdirected = Arc::default();
        let renewals = Renewals {
            store: Arc::clone(&store),
            misdirected: Arc::clone(&misdirected),
        };
        Arc::new(Self {
            store,
            id,
            guards: GuardSet::new(BACKEND, Tasks::current()),
            keeper: LeaseKeeper::new(Clock::Tokio, renewals, Tasks::current()),
            triggers: Mutex::default(),
            waiting: AtomicUsize::new(0),
            leases: Mutex::default(),
            misdirected,
            locally_held: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn residue(&self) -> usize {
        let tasks = self.guards.tasks().running()
            + locked(&self.leases)
                .iter()
                .filter(|lease| lease.strong_count() > 0)
                .count();
        self.guards.live()
            + tasks
            + self.keeper.registered()
            + locked(&self.triggers).len()
            + self.waiting.load(SeqCst)
    }

    /// Takes the store's message that an acquisition is gone.
    pub(crate) fn removed(&self, owner: &OwnerId) {
        if let Some(trigger) = locked(&self.triggers).remove(owner.as_str()) {
            trigger.lose(LossReason::Removed);
        }
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.store.defect == defect
    }

    fn ensure_open(&self) -> Result<(), LockError> {
        if self.closed.load(SeqCst) {
            return Err(LockError::new(ErrorKind::Shutdown, "closed"));
        }
        match self.store.defect {
            Defect::ShutdownIsNotFinal | Defect::RuntimeIsTakenForGranted => Ok(()),
            Defect::EndOfTheRuntimeIsNotTold if self.guards.tasks().have_moved() => {
                ensure_runtime()?;
                Err(LockError::new(
                    ErrorKind::Unavailable,
                    "the store did not answer",
                ))
            }
            _ => self.guards.ensure_open(),
        }
    }

    fn terms(&self, options: AcquireOptions) -> Result<Terms, LockError> {
        let options = match self.store.defect {
            Defect::SharedModeIsIgnored => options.with_mode(Mode::Exclusive),
            Defect::UnsupportedMetadataIsIgnored => {
                AcquireOptions::new().with_timeout(Duration::from_secs(1))
            }
            _ => options,
        };
        let longest = options
            .clone()
            .with_max_hold(AcquireOptions::MAX_DURATION)
            .resolve(&self.capabilities(), DEFAULT_TTL);
        let mut terms = match options.resolve(&self.capabilities(), DEFAULT_TTL) {
            Err(error)
                if self.has(Defect::InvalidOptionsAreReplaced)
                    && error.kind() == ErrorKind::InvalidOptions =>
            {
                AcquireOptions::new().resolve(&self.capabilities(), DEFAULT_TTL)?
            }
            terms => terms?,
        };
        match self.store.defect {
            Defect::NoRenewal => terms.renew = false,
            Defect::WithoutRenewalIsIgnored => terms.renew = true,
            Defect::MaxHoldIsIgnored => terms.max_hold = None,
            Defect::MaxHoldKeepsTheEntry => terms.ttl = longest?.ttl,
            Defect::TimeoutIsIgnored => terms.timeout = None,
            Defect::TtlIsIgnored => terms.ttl = DEFAULT_TTL,
            _ => {}
        }
        Ok(terms)
    }

    fn request(&self, name: &LockName, terms: &Terms) -> Request {
        let owner = match self.has(Defect::OwnerPerClient) {
            true => OwnerId::new(format!("client-{}", self.id)),
            false => OwnerId::random(),
        };
        Request {
            name: name.clone(),
            owner,
            client: self.id,
            ttl: terms.ttl,
            metadata: terms.metadata.clone(),
        }
    }

    async fn wait_for(
        self: &Arc<Self>,
        name: &LockName,
        terms: &Terms,
        wait_limit: &WaitLimit,
    ) -> Result<LockGuard, LockError> {
        let _counted = Counted::new(self);
        loop {
            let request = self.request(name, terms);
            let mut place = Place::new(self, request.clone());
            place.armed = !self.has(Defect::CleanUpBeginsTooLate);
            let mut changes = self.store.changes();
            let mut sent = Clock::Tokio.now();
            let asked = request.clone();
            wait_limit.asked();
            let answer = self
                .store
                .call(move |state, now| state.enqueue(asked, now))
                .await;
            let mut standing = match place.unless_unknown(answer) {
                Err(failure) if self.has(Defect::OutageEndsTheWait) => return Err(failure),
                Err(failure) => {
                    wait_limit.failed(failure)?;
                    continue;
                }
                Ok(standing) => standing,
            };
            wait_limit.answered();
            place.armed = !self.has(Defect::DroppedWaiterIsLeft);
            let _kept = self.has(Defect::WaiterNeedNotLook).then(|| {
                self.keeper
                    .register(Arc::new(request.clone()), sent, terms.ttl, terms)
            });
            loop {
                standing = match standing {
                    Standing::Granted(token) => return self.grant(place, token, sent, terms),
                    // Evicted: goes to the end of the queue.
                    Standing::Gone => break,
                    Standing::Waiting { .. } if self.has(Defect::WaitFailsAtOnce) => {
                        return Err(LockError::new(ErrorKind::TimedOut, "the lock is held"));
                    }
                    Standing::Waiting { behind } => {
                        if !self.has(Defect::HolderIsNotNamed) {
                            wait_limit.held_by(&behind, None);
                        }
                        self.woken(&mut changes, terms.ttl / 3).await;
                        if !self.has(Defect::GrantedWithAnOldLease) {
                            sent = Clock::Tokio.now();
                        }
                        let asked = request.clone();
                        let before = behind.clone();
                        wait_limit.asked();
                        match self
                            .store
                            .call(move |state, now| state.check(&asked, &before, now))
                            .await
                        {
                            Ok(standing) => {
                                wait_limit.answered();
                                standing
                            }
                            Err(failure) => {
                                wait_limit.failed(failure)?;
                                Standing::Waiting { behind }
                            }
                        }
                    }
                };
            }
        }
    }

    async fn woken(&self, changes: &mut tokio::sync::watch::Receiver<u64>, renewal: Duration) {
        let push = async {
            if matches!(
                self.store.defect,
                Defect::WakeUpsArePolled | Defect::WakeUpsAreLost
            ) {
                std::future::pending::<()>().await;
            }
            if changes.changed().await.is_err() {
                if self.has(Defect::RestartStrandsWaiters) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                *changes = self.store.changes();
            }
        };
        if matches!(
            self.store.defect,
            Defect::WakeUpsAreLost | Defect::RestartStrandsWaiters
        ) {
            return push.await;
        }
        let _ = tokio::time::timeout(renewal.min(SLOW_POLL), push).await;
    }

    fn grant(
        self: &Arc<Self>,
        place: Place,
        token: FencingToken,
        sent: Moment,
        terms: &Terms,
    ) -> Result<LockGuard, LockError> {
        let request = place.register();
        let sent = if self.has(Defect::LeaseBeginsAtTheReply) {
            Clock::Tokio.now()
        } else {
            sent
        };
        let granted = if self.has(Defect::DeadlineIsTooLate) {
            terms.ttl * 3 / 2
        } else {
            terms.ttl
        };
        let item = Arc::new(request.clone());
        let (lease, renewal) = self
            .keeper
            .register(Arc::clone(&item), sent, granted, terms);
        match self.store.defect {
            Defect::ViewKeepsItsGuard => locked(&self.leases).push(Arc::downgrade(&lease)),
            Defect::RenewalIsLeaked => {
                std::mem::forget(self.keeper.register(item, sent, granted, terms).1);
            }
            Defect::TaskIsLeaked => drop(tokio::spawn(std::future::pending::<()>())),
            _ => {}
        }
        let entry = Arc::new(Held {
            client: Arc::clone(self),
            request: request.clone(),
            lease: Arc::clone(&lease),
            asked: AtomicBool::new(false),
        });
        let Request { name, owner, .. } = request;
        let mut grant = Grant::new(name, owner.clone(), lease, entry).with_renewal(renewal);
        if !self.has(Defect::TokenIsMissing) {
            grant = grant.with_token(token);
        }
        let (guard, trigger) = self.guards.grant_watched(grant);
        locked(&self.triggers).insert(owner.as_str().to_owned(), trigger);
        if guard.is_lost() && !self.has(Defect::GrantedWithAnOldLease) {
            return Err(LockError::new(
                ErrorKind::Unavailable,
                "the store answered too late",
            ));
        }
        Ok(guard)
    }

    async fn acquire(
        self: &Arc<Self>,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        self.ensure_open()?;
        let terms = self.terms(options)?;
        if self.has(Defect::FailedWaitLeavesALocalLock) {
            while !locked(&self.locally_held).insert(name.clone()) {
                tokio::time::sleep(SLOW_POLL).await;
            }
        }
        let mut wait_limit = WaitLimit::new(StoreHealth::new(Clock::Tokio), &terms, PATIENCE);
        if self.has(Defect::OutageIsWaitedOutForEver) {
            wait_limit = wait_limit.at_least(Duration::from_secs(3600));
        }
        let waiting = self.wait_for(name, &terms, &wait_limit);
        let guard = match self.store.defect {
            Defect::WaitersSurviveShutdown => waiting.await,
            Defect::OutageLooksLikeContention => bounded(&self.guards, Some(&wait_limit), waiting)
                .await
                .map_err(contention),
            _ => bounded(&self.guards, Some(&wait_limit), waiting).await,
        }?;
        locked(&self.locally_held).remove(name);
        Ok(guard)
    }

    async fn attempt(
        self: &Arc<Self>,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        self.ensure_open()?;
        let terms = self.terms(options)?;
        let request = self.request(name, &terms);
        let mut place = Place::new(self, request.clone());
        let asked = request;
        let sent = Clock::Tokio.now();
        place.armed = !self.has(Defect::CleanUpBeginsTooLate);
        let answer = self
            .store
            .call(move |state, now| state.take(asked, now))
            .await;
        match place.unless_unknown(answer)? {
            Some(token) => self.grant(place, token, sent, &terms).map(Some),
            None => {
                place.register();
                if self.has(Defect::FailedTryStopsTheHeartbeat) {
                    locked(&self.misdirected).insert(name.clone());
                }
                Ok(None)
            }
        }
    }

    fn explain(
        &self,
        error: LockError,
        operation: Operation,
        name: Option<&LockName>,
    ) -> LockError {
        if self.has(Defect::ErrorsLackContext) {
            return error;
        }
        let error = error.during(operation).on(BACKEND);
        match name {
            Some(name) => error.of(name),
            None => error,
        }
    }
}

fn contention(error: LockError) -> LockError {
    match error.kind() {
        ErrorKind::Unavailable => LockError::new(ErrorKind::TimedOut, "the lock was not free"),
        _ => error,
    }
}

/// A handle, on which the trait is implemented because the client's background work needs the
/// client.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(crate) Arc<Client>);

#[async_trait]
impl DistributedLock for Handle {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        self.0
            .acquire(name, options)
            .await
            .map_err(|error| self.0.explain(error, Operation::Acquire, Some(name)))
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        self.0
            .attempt(name, options)
            .await
            .map_err(|error| self.0.explain(error, Operation::TryAcquire, Some(name)))
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let asked = name.clone();
        let store = Arc::clone(&self.0.store);
        let answer = async move {
            store
                .call(move |state, now| state.inspect(&asked, now))
                .await
        };
        let inspected = match self.0.ensure_open() {
            Ok(()) if self.0.has(Defect::StandstillIsWaitedOut) => {
                self.0.guards.tasks().finish(answer).await
            }
            Ok(()) => answer.await,
            Err(error) => Err(error),
        };
        inspected.map_err(|error| self.0.explain(error, Operation::Inspect, Some(name)))
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        self.0
            .ensure_open()
            .map_err(|error| self.0.explain(error, Operation::Watch, Some(name)))?;
        Ok(watch_holders(Watching {
            client: Arc::clone(&self.0),
            name: name.clone(),
            changes: self.0.store.changes(),
        }))
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        self.0
            .ensure_open()
            .map_err(|error| self.0.explain(error, Operation::List, None))?;
        let prefix = prefix.to_owned();
        let listed = self
            .0
            .store
            .call(move |state, now| state.list(&prefix, now))
            .await?;
        Ok(LockList::new(stream::iter(listed.into_iter().map(Ok))))
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let asked = name.clone();
        let only = only.cloned();
        let forced = match self.0.ensure_open() {
            Ok(()) => {
                self.0
                    .store
                    .call(move |state, now| state.force(&asked, only.as_ref(), now))
                    .await
            }
            Err(error) => Err(error),
        };
        forced.map_err(|error| self.0.explain(error, Operation::ForceRelease, Some(name)))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        if self.0.has(Defect::ShutdownReleasesNothing) {
            self.0.closed.store(true, SeqCst);
            return Ok(());
        }
        if self.0.has(Defect::DroppedShutdownStops) {
            self.0.guards.close();
            tokio::task::yield_now().await;
        }
        self.0.guards.shutdown().await
    }
}

impl Client {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.store.defect)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.has(Defect::DebugShowsThePassword) {
            PASSWORD
        } else {
            "***"
        };
        f.debug_struct("Client")
            .field("id", &self.id)
            .field("password", &password)
            .finish_non_exhaustive()
    }
}

/// A watch on the holder of a name.
struct Watching {
    client: Arc<Client>,
    name: LockName,
    changes: tokio::sync::watch::Receiver<u64>,
}

#[async_trait]
impl WatchSource for Watching {
    async fn look(&mut self) -> Result<Option<LockInfo>, LockError> {
        if !self.client.has(Defect::WatchOutlivesItsClient) {
            self.client.ensure_open()?;
        }
        self.changes.mark_unchanged();
        let name = self.name.clone();
        let mut info = self
            .client
            .store
            .call(move |state, now| state.inspect(&name, now))
            .await?;
        if let Some(holder) = info.as_mut().and_then(|info| info.holders.first_mut())
            && self.client.has(Defect::WatchTrustsTheLease)
        {
            holder.expires_in = None;
        }
        Ok(info)
    }

    async fn changed(&mut self) {
        if self.client.has(Defect::WatchTellsOnce) {
            std::future::pending::<()>().await;
        }
        tokio::select! {
            _ = self.changes.changed() => {}
            () = self.client.guards.closing().fired(), if !self.client.has(Defect::WatchOutlivesItsClient) => {}
        }
    }
}

/// A request to the store that is undone unless it becomes a guard.
struct Place {
    client: Arc<Client>,
    request: Request,
    armed: bool,
}

impl Place {
    fn new(client: &Arc<Client>, request: Request) -> Self {
        Self {
            client: Arc::clone(client),
            request,
            armed: true,
        }
    }

    fn register(mut self) -> Request {
        self.armed = false;
        self.request.clone()
    }

    fn unless_unknown<T>(&mut self, answer: Result<T, LockError>) -> Result<T, LockError> {
        if answer.is_err() && self.client.has(Defect::UnknownOutcomeIsForgotten) {
            self.armed = false;
        }
        answer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (
            store,
            Request {
                name, owner, ttl, ..
            },
        ) = (Arc::clone(&self.client.store), self.request.clone());
        let end = Clock::Tokio.now() + ttl;
        self.client.guards.tasks().spawn(async move {
            while Clock::Tokio.now() < end {
                let name = name.clone();
                let owner = owner.clone();
                if store
                    .call(move |state, _| state.remove(&name, &owner))
                    .await
                    .is_ok()
                {
                    return;
                }
            }
        });
    }
}

struct Counted(Arc<Client>);

impl Counted {
    fn new(client: &Arc<Client>) -> Self {
        client.waiting.fetch_add(1, SeqCst);
        Self(Arc::clone(client))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.0.has(Defect::WaiterIsLeaked) {
            self.0.waiting.fetch_sub(1, SeqCst);
        }
    }
}
