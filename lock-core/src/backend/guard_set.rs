use std::{
    borrow::Cow,
    fmt::{self, Debug},
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use slab::Slab;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    AcquisitionStatus as _, ErrorKind, GuardState, LockError, LockGuard, LockName, LossReason,
    Operation,
    backend::{
        Grant, Lease, Leftover, Removal, RenewalHandle, Signal, Tasks, ensure_runtime,
        observers::Observers,
        stored_acquisition::{Registration, StoredAcquisition},
        stored_status::StoredStatus,
    },
    latch::Latch,
    sync::locked,
};

/// The live guards of one client, and the tasks that work for it.
pub struct GuardSet {
    backend: Cow<'static, str>,
    tasks: Tasks,
    live: Mutex<Slab<Weak<StoredAcquisition>>>,
    /// Same as `closing`, which takes a lock to read.
    closed: AtomicBool,
    closing: Signal,
}

impl GuardSet {
    /// Makes the set for a client of the named backend.
    #[must_use]
    pub fn new(backend: impl Into<Cow<'static, str>>, tasks: Tasks) -> Arc<Self> {
        let live = Mutex::new(Slab::new());
        let closed = AtomicBool::new(false);
        Arc::new(Self {
            backend: backend.into(),
            tasks,
            live,
            closed,
            closing: Signal::new(),
        })
    }

    /// The client's background tasks: clean-ups that end by themselves, for
    /// [`shutdown`](Self::shutdown) waits for them.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Fires when [`shutdown`](Self::shutdown) or [`close`](Self::close) has ended all guards.
    #[must_use]
    pub fn closing(&self) -> &Signal {
        &self.closing
    }

    /// Number of live guards; for leak checks.
    #[must_use]
    pub fn live(&self) -> usize {
        locked(&self.live).len()
    }

    /// Runs one operation of the client, on one name or on none. An operation of a client that was
    /// shut down does not begin, whatever else is wrong with it. Its errors tell the operation, the
    /// backend and the name.
    ///
    /// # Errors
    ///
    /// Those of [`ensure_open`](Self::ensure_open) and of `run`.
    pub async fn call<'a, T: Send>(
        &self,
        operation: Operation,
        name: impl Into<Option<&'a LockName>> + Send,
        run: impl Future<Output = Result<T, LockError>> + Send,
    ) -> Result<T, LockError> {
        let outcome = match self.ensure_open() {
            Ok(()) => run.await,
            Err(closed) => Err(closed),
        };
        outcome.map_err(|error| {
            let error = error.during(operation).on(self.backend.clone());
            match name.into() {
                Some(name) => error.of(name),
                None => error,
            }
        })
    }

    /// Checks that an operation may begin, as [`call`](Self::call) does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shutdown`] once [`shutdown`](Self::shutdown) has begun;
    /// [`ErrorKind::Unavailable`] if there is no runtime to run on, or the client's own has ended.
    pub fn ensure_open(&self) -> Result<(), LockError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(LockError::new(
                ErrorKind::Shutdown,
                "this client has been shut down; connect again",
            )
            .on(self.backend.clone()));
        }
        self.tasks.ensure_running()
    }

    /// Makes the guard of an acquisition. Once [`shutdown`](Self::shutdown) has begun the guard is
    /// born lost.
    pub fn grant(self: &Arc<Self>, grant: Grant) -> LockGuard {
        LockGuard::new(self.store(grant))
    }

    /// As [`grant`](Self::grant), for a backend that sees entries disappear.
    pub fn grant_watched(self: &Arc<Self>, grant: Grant) -> (LockGuard, LossTrigger) {
        let stored = self.store(grant);
        let trigger = LossTrigger(Arc::downgrade(&stored));
        (LockGuard::new(stored), trigger)
    }

    fn store(self: &Arc<Self>, grant: Grant) -> Arc<StoredAcquisition> {
        let Grant {
            name,
            owner,
            token,
            lease,
            renewal,
            shared_renewal,
            entry,
        } = grant;
        let cap = lease.cap();
        // Avoids reading the clock where possible: this is on the path of every acquisition.
        let since = renewal
            .as_ref()
            .map_or_else(|| lease.clock().now(), RenewalHandle::sent);
        let status = Arc::new(StoredStatus {
            backend: self.backend.clone(),
            name,
            owner,
            token: token.map(|token| AtomicU64::new(token.as_u64())),
            lease,
            since,
            ended: OnceLock::new(),
            observers: Observers::default(),
            end: Latch::new(),
        });
        let mut live = locked(&self.live);
        let slot = live.vacant_entry();
        let stored = Arc::new(StoredAcquisition {
            status,
            renewal,
            shared_renewal,
            entry,
            settled: Latch::new(),
            attempts: AtomicUsize::new(0),
            registered: Registration {
                is_live: AtomicBool::new(true),
                id: slot.key(),
                guards: Arc::clone(self),
            },
            at_cap: OnceLock::new(),
        });
        slot.insert(Arc::downgrade(&stored));
        drop(live);
        stored.status.lease.attach(&stored);
        if let Some(cap) = cap {
            stored.release_at(cap);
        }
        if self.closed.load(Ordering::Acquire) {
            stored.lose(LossReason::Shutdown);
        }
        stored
    }

    /// Makes all live guards lost and ends their renewal: for a client whose store has lost what it
    /// held. Nothing is released.
    pub fn lose_all(&self, reason: LossReason) {
        self.live_guards()
            .iter()
            .for_each(|guard| guard.lose(reason));
    }

    /// Lets in no more acquisitions, makes all guards lost, and then ends the acquisitions that
    /// wait. [`shutdown`](Self::shutdown) does this first.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.lose_all(LossReason::Shutdown);
        // After that, because waiters may undo what guards rely on.
        self.closing.fire();
    }

    fn live_guards(&self) -> Vec<Arc<StoredAcquisition>> {
        locked(&self.live)
            .iter()
            .filter_map(|(_, guard)| guard.upgrade())
            .collect()
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

    /// Loses and releases all live guards, and waits until that and every background task is done,
    /// but not beyond `give_up`: for a backend that has more to end than these, all by one
    /// deadline.
    ///
    /// # Errors
    ///
    /// The first release that failed, or [`ErrorKind::Unavailable`] if something was not released
    /// in time: it ends with its lease.
    ///
    /// # Cancel safety
    ///
    /// The releases go on in the background, unless the future was never polled.
    pub async fn shutdown_by(&self, give_up: Instant) -> Result<(), LockError> {
        self.release_all(give_up)
            .await
            .map_err(|error| error.during(Operation::Shutdown).on(self.backend.clone()))
    }

    async fn release_all(&self, give_up: Instant) -> Result<(), LockError> {
        ensure_runtime()?;
        self.close();
        let live = self.live_guards();
        self.tasks.ensure_removing()?;
        // As tasks of the client: they go on if this future is dropped, with nobody listening.
        let (answer, mut answers) = mpsc::unbounded_channel();
        let mut unanswered = live.len();
        for acquisition in live {
            self.tasks.remove(Arc::new(AnsweredRelease {
                acquisition,
                answer: Mutex::new(Some(answer.clone())),
            }));
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
            true if unanswered > 0 => {
                Some("the runtime of the client has ended; what was held ends with its lease")
            }
            true => None,
        };
        match missing {
            Some(message) => outcome.and(Err(LockError::new(ErrorKind::Unavailable, message))),
            None => outcome,
        }
    }

    /// Does something with each live guard of a lease.
    pub(super) fn for_each_of(&self, lease: &Arc<Lease>, act: &dyn Fn(&StoredAcquisition)) {
        let live = self.live_guards();
        live.iter()
            .filter(|guard| Arc::ptr_eq(&guard.status.lease, lease))
            .for_each(|guard| act(guard));
    }

    pub(crate) fn forget(&self, id: usize) {
        locked(&self.live).try_remove(id);
    }
}

impl Debug for GuardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live();
        let tasks = self.tasks.running();
        f.debug_struct("Holds")
            .field("backend", &self.backend)
            .field("live", &live)
            .field("tasks", &tasks)
            .finish_non_exhaustive()
    }
}

/// Time that a shutdown waits for a store that does not answer.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// Makes one guard lost from outside, without keeping it alive: for a backend that sees an entry
/// disappear.
#[derive(Clone, Debug)]
pub struct LossTrigger(Weak<StoredAcquisition>);

impl LossTrigger {
    /// Makes the guard lost, unless it has ended. Passing its deadline counts as an end: an entry
    /// is expected to be gone after that.
    pub fn lose(&self, reason: LossReason) {
        if let Some(acquisition) = self.0.upgrade()
            && acquisition.status.state() == GuardState::Held
        {
            acquisition.status.finish(GuardState::Lost(reason));
        }
    }
}

/// A release whose outcome a shutdown reports.
struct AnsweredRelease {
    acquisition: Arc<StoredAcquisition>,
    /// A removal may be made twice, by the runtime that ends and by the thread that takes over.
    answer: Mutex<Option<mpsc::UnboundedSender<Result<bool, LockError>>>>,
}

#[async_trait]
impl Removal for AnsweredRelease {
    async fn remove(&self) {
        let released = self.acquisition.release_entry().await;
        if let Some(answer) = locked(&self.answer).take() {
            drop(answer.send(released));
        }
    }

    fn left(&self) -> Leftover {
        self.acquisition.left()
    }
}

#[cfg(test)]
mod tests;
