use std::{
    fmt::{self, Debug},
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use slab::Slab;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    ErrorKind, FencingToken, GuardState, LockError, LockGuard, LockName, LossReason, Operation, OwnerId, RetryAdvice,
    acquisition::{Acquisition, Registered, Status},
    backend::{Keep, Lease, Left, Patience, Removal, Tasks, ensure_runtime},
    latch::Latch,
    sync::locked,
};

/// One acquisition's own entry in the store: the part of a guard that a backend implements.
#[async_trait]
pub trait Entry: Debug + Send + Sync + 'static {
    /// Removes this acquisition's entry, and no other; `false` if it was not there any more.
    ///
    /// Called again after an error, until it is definite or the lease has ended.
    ///
    /// # Errors
    ///
    /// Those of the store; marked [indeterminate](LockError::is_indeterminate) if the entry may have been removed.
    async fn release(&self) -> Result<bool, LockError>;

    /// Does the same without I/O and without a runtime, if the backend can.
    fn release_now(&self) -> Option<bool> {
        None
    }
}

/// What a backend got from its store, to be made a guard.
#[derive(Debug)]
pub struct Grant {
    /// What was acquired.
    pub name: LockName,
    /// The acquisition's unique id.
    pub owner: OwnerId,
    /// Its token.
    pub token: Option<FencingToken>,
    /// What keeps it valid.
    pub lease: Arc<Lease>,
    /// What renews its lease, if the lease is its own; ended before the release.
    pub keep: Option<Keep>,
    /// How to release it.
    pub entry: Arc<dyn Entry>,
}

/// The live guards of one client, and the tasks that work for it.
pub struct Holds {
    backend: &'static str,
    tasks: Tasks,
    live: Mutex<Slab<Weak<Acquisition>>>,
    /// Says the same as `closing`, which takes a lock to be asked.
    closed: AtomicBool,
    closing: CancellationToken,
}

impl Holds {
    /// For a client of the named backend.
    #[must_use]
    pub fn new(backend: &'static str, tasks: Tasks) -> Arc<Self> {
        let (live, closed) = (Mutex::new(Slab::new()), AtomicBool::new(false));
        Arc::new(Self { backend, tasks, live, closed, closing: CancellationToken::new() })
    }

    /// The client's background tasks: clean-ups that end by themselves, for [`shutdown`](Self::shutdown) waits for them.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Fires when [`shutdown`](Self::shutdown) or [`close`](Self::close) has ended all guards.
    #[must_use]
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// How many guards are live; for leak checks.
    #[must_use]
    pub fn live(&self) -> usize {
        locked(&self.live).len()
    }

    /// What every operation checks first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shutdown`] once [`shutdown`](Self::shutdown) has begun; [`ErrorKind::Unavailable`] if there is no runtime to run
    /// on, or the client's own has ended.
    pub fn ensure_open(&self) -> Result<(), LockError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(LockError::new(ErrorKind::Shutdown, "this client has been shut down; connect again").on(self.backend));
        }
        self.tasks.ensure_running()
    }

    /// Makes the guard of an acquisition. Once [`shutdown`](Self::shutdown) has begun the guard is born lost.
    pub fn grant(self: &Arc<Self>, grant: Grant) -> LockGuard {
        let Grant { name, owner, token, lease, keep, entry } = grant;
        let mut live = locked(&self.live);
        let slot = live.vacant_entry();
        let cap = lease.cap();
        let (ended, end, since) = (OnceLock::new(), Latch::new(), lease.clock().now());
        let status = Status { backend: self.backend, name, owner, token, lease, since, ended, end };
        let guard = LockGuard::new(Acquisition {
            status: Arc::new(status),
            keep,
            entry,
            settled: Latch::new(),
            attempts: AtomicUsize::new(0),
            registered: Registered { is_live: AtomicBool::new(true), id: slot.key(), holds: Arc::clone(self) },
            at_cap: OnceLock::new(),
        });
        slot.insert(Arc::downgrade(guard.acquisition()));
        drop(live);
        guard.acquisition().status.lease.keeps(guard.acquisition());
        if let Some(cap) = cap {
            guard.acquisition().release_at(cap);
        }
        if self.closed.load(Ordering::Acquire) {
            guard.acquisition().lose(LossReason::Shutdown);
        }
        guard
    }

    /// Makes all live guards lost and ends their renewal: for a client whose store has lost what it held. Nothing is released.
    pub fn lose_all(&self, reason: LossReason) {
        self.live_guards().iter().for_each(|guard| guard.lose(reason));
    }

    /// Lets in no more acquisitions, makes all guards lost, and then ends the acquisitions that wait.
    /// [`shutdown`](Self::shutdown) does this first.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.lose_all(LossReason::Shutdown);
        // After that: whoever waits may undo what guards stand on.
        self.closing.cancel();
    }

    fn live_guards(&self) -> Vec<Arc<Acquisition>> {
        locked(&self.live).iter().filter_map(|(_, guard)| guard.upgrade()).collect()
    }

    /// [`shutdown_by`](Self::shutdown_by) [`SHUTDOWN_LIMIT`] from now.
    ///
    /// # Errors
    ///
    /// As `shutdown_by`.
    ///
    /// # Cancel safety
    ///
    /// As `shutdown_by`.
    pub async fn shutdown(&self) -> Result<(), LockError> {
        self.shutdown_by(Instant::now() + SHUTDOWN_LIMIT).await
    }

    /// Loses and releases all live guards, and waits until that and every background task is done, but not beyond `give_up`:
    /// for a backend that has more to end than these, all by one deadline.
    ///
    /// # Errors
    ///
    /// The first release that failed, or [`ErrorKind::Unavailable`] if something was not released in time: it ends with its
    /// lease.
    ///
    /// # Cancel safety
    ///
    /// The releases go on in the background, unless it was never polled.
    pub async fn shutdown_by(&self, give_up: Instant) -> Result<(), LockError> {
        self.release_all(give_up).await.map_err(|error| error.during(Operation::Shutdown).on(self.backend))
    }

    async fn release_all(&self, give_up: Instant) -> Result<(), LockError> {
        ensure_runtime()?;
        self.close();
        let live = self.live_guards();
        self.tasks.ensure_removing()?;
        // As tasks of the client's: they go on if this future is dropped, and then nobody listens.
        let (answer, mut answers) = mpsc::unbounded_channel();
        let mut unanswered = live.len();
        for acquisition in live {
            self.tasks.remove(Arc::new(Answered { acquisition, answer: answer.clone() }));
        }
        let in_time = tokio::select! {
            in_time = tokio::time::timeout_at(give_up, self.tasks.idle()) => in_time.is_ok(),
            stopped = self.tasks.stopped() => return Err(stopped),
        };
        let mut outcome = Ok(());
        while let Ok(released) = answers.try_recv() {
            unanswered = unanswered.saturating_sub(1);
            outcome = outcome.and(released.map(drop));
        }
        let missing = match in_time {
            false => Some("the store did not answer in time; what was held ends with its lease"),
            true if unanswered > 0 => Some("the runtime of the client has ended; what was held ends with its lease"),
            true => None,
        };
        match missing {
            Some(message) => outcome.and(Err(LockError::new(ErrorKind::Unavailable, message))),
            None => outcome,
        }
    }

    /// Looks at the guards of a lease that has ended.
    pub(super) fn look(&self, lease: &Arc<Lease>) {
        let live = self.live_guards();
        live.iter().filter(|guard| Arc::ptr_eq(&guard.status.lease, lease)).for_each(|guard| {
            guard.status.state();
        });
    }

    pub(crate) fn forget(&self, id: usize) {
        locked(&self.live).try_remove(id);
    }
}

impl Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (live, tasks) = (self.live(), self.tasks.running());
        f.debug_struct("Holds").field("backend", &self.backend).field("live", &live).field("tasks", &tasks).finish_non_exhaustive()
    }
}

/// Makes one guard lost from outside, without keeping it alive: for a backend that sees an entry disappear.
#[derive(Clone, Debug)]
pub struct LossTrigger(Weak<Acquisition>);

impl LossTrigger {
    /// The trigger of a guard.
    #[must_use]
    pub fn of(guard: &LockGuard) -> Self {
        Self(Arc::downgrade(guard.acquisition()))
    }

    /// Makes the guard lost, unless it has ended, be it by its deadline: what is gone after that was to be expected.
    pub fn lose(&self, reason: LossReason) {
        if let Some(acquisition) = self.0.upgrade()
            && acquisition.status.state() == GuardState::Held
        {
            acquisition.status.finish(GuardState::Lost(reason));
        }
    }
}

/// A release of which a shutdown tells the outcome.
struct Answered {
    acquisition: Arc<Acquisition>,
    answer: mpsc::UnboundedSender<Result<bool, LockError>>,
}

#[async_trait]
impl Removal for Answered {
    async fn remove(&self) {
        drop(self.answer.send(self.acquisition.release_entry().await));
    }

    fn left(&self) -> Left {
        self.acquisition.left()
    }
}

impl Debug for Acquisition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.describe(f.debug_struct("Acquisition"))
    }
}

/// Runs an acquire until its patience or its client ends; without a patience, until its client does.
///
/// Dropping `acquire` must undo it: that is what happens when the time is up. It is dropped before the error is made, so
/// that it can still say [who holds the lock](Patience::held_by).
///
/// # Errors
///
/// Those of `acquire`; [`ErrorKind::TimedOut`] and [`ErrorKind::Unavailable`] as [`Patience`] has them;
/// [`ErrorKind::Shutdown`]; [`ErrorKind::Unavailable`] without a runtime, or if that of the client has ended or does not run.
pub async fn bounded<T: Send>(
    holds: &Holds,
    patience: Option<&Patience>,
    acquire: impl Future<Output = Result<T, LockError>> + Send,
) -> Result<T, LockError> {
    holds.ensure_open()?;
    let over = async {
        match patience {
            Some(patience) => (patience, patience.over().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = holds.closing.cancelled() => Err(holds.ensure_open().err().unwrap_or_else(|| LockError::new(ErrorKind::Shutdown, "closing"))),
        outcome = acquire => match outcome {
            Ok(acquired) => Ok(acquired),
            Err(error) => Err(holds.tasks.explain(error).await),
        },
        (patience, over) = over => Err(patience.error(over)),
        stopped = holds.tasks.stopped() => Err(stopped),
    }
}

/// How long a shutdown waits for a store that does not answer.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// First pause between two attempts to release; doubles up to [`RELEASE_PAUSE_MAX`], with jitter.
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Releases until the store gives a definite answer, or nothing is left to release because the lease has ended.
pub(crate) async fn release_until_definite(entry: &dyn Entry, lease: &Lease) -> Result<bool, LockError> {
    let (mut pause, mut doubtful) = (RELEASE_PAUSE, false);
    loop {
        let error = match entry.release().await {
            // An earlier attempt whose answer was lost has removed it.
            Ok(held) => return Ok(held || doubtful),
            Err(error) => error,
        };
        doubtful |= error.is_indeterminate();
        if error.retry() == RetryAdvice::Never || lease.deadline().is_err() {
            return Err(if doubtful { error.indeterminate() } else { error });
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(RELEASE_PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests;
