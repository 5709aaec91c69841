use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use tokio::task::AbortHandle;

use crate::{
    Acquisition, AcquisitionStatus, ErrorKind, FencingToken, GuardState, LockError, LossReason,
    Operation,
    acquisition::ensure_held,
    backend::{
        Entry, GuardSet, Leftover, Moment, Removal, RenewalHandle, release_until_definite,
        stored_status::StoredStatus,
    },
    latch::Latch,
};

/// The acquisition of an entry in a store, shared by its guard and its client.
pub(crate) struct StoredAcquisition {
    pub(crate) status: Arc<StoredStatus>,
    pub(crate) renewal: Option<RenewalHandle>,
    /// Renewal of a lease that other guards share: not ended with this one.
    pub(crate) shared_renewal: Option<Weak<RenewalHandle>>,
    pub(crate) entry: Arc<dyn Entry>,
    /// The store's definite answer to a release, whether the entry was there: nothing is left to
    /// remove then.
    pub(crate) settled: Latch<bool>,
    /// Attempts to release that have begun, without those that certainly did nothing.
    pub(crate) attempts: AtomicUsize,
    pub(crate) registered: Registration,
    /// Releases at the maximum hold.
    pub(crate) at_cap: OnceLock<AbortHandle>,
}

/// The guard's place among its client's live guards; see [`crate::backend::GuardSet`].
pub(crate) struct Registration {
    /// The place may be another guard's once this one has been forgotten.
    pub(crate) is_live: AtomicBool,
    pub(crate) id: usize,
    pub(crate) guards: Arc<GuardSet>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for StoredAcquisition {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        if let Err(lost) = self.begin_release() {
            return Some(Err(lost));
        }
        self.release_entry_now().map(|held| self.released(held))
    }

    async fn release(&self) -> Result<(), LockError> {
        self.begin_release()?;
        match self.release_entry_by_deadline().await {
            Ok(held) => self.released(held),
            Err(error) => Err(self.during(
                Operation::Release,
                error.noting(&self.status.how_long_it_stays()),
            )),
        }
    }

    fn release_in_background(self: Arc<Self>) {
        self.status.end_by_release();
        self.stop_timers();
        let is_first = self.unregister();
        // Does not go by the state: the removal of an entry may have been read from a server that
        // does not know everything, or no longer does.
        if !is_first || self.settled.get().is_some() || self.entry.release_now().is_some() {
            return;
        }
        let tasks = self.registered.guards.tasks().clone();
        tasks.remove(self);
    }

    async fn extend(&self) -> Result<(), LockError> {
        let tasks = self.registered.guards.tasks();
        tasks
            .ensure_running()
            .map_err(|error| self.during(Operation::Renew, error))?;
        let shared = self.shared_renewal.as_ref().and_then(Weak::upgrade);
        if let Some(renewal) = self.renewal.as_ref().or(shared.as_deref()) {
            tokio::select! {
                () = renewal.renew(&self.status.lease) => {}
                _ = Arc::clone(&self.status).ended() => {}
                stopped = tasks.stopped() => return Err(self.during(Operation::Renew, stopped)),
            }
        }
        ensure_held(&*self.status).map_err(|lost| lost.during(Operation::Renew))
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        let outcome = async {
            self.registered.guards.tasks().ensure_running()?;
            ensure_held(&*self.status)?;
            let raised = self.entry.raise_token(at_least).await?;
            if let Some(token) = &self.status.token {
                token.fetch_max(raised.as_u64(), Ordering::AcqRel);
            }
            ensure_held(&*self.status)?;
            Ok(self.status.token().unwrap_or(raised))
        };
        outcome
            .await
            .map_err(|error| self.during(Operation::RaiseToken, error))
    }
}

impl StoredAcquisition {
    /// Ends the acquisition unless it has ended, without a release.
    pub(crate) fn lose(&self, reason: LossReason) {
        self.status.finish(GuardState::Lost(reason));
        self.stop_timers();
    }

    /// Ends the renewal, and the task that would have released at the maximum hold.
    pub(crate) fn stop_timers(&self) {
        if let Some(renewal) = &self.renewal {
            renewal.stop();
        }
        if let Some(task) = self.at_cap.get() {
            task.abort();
        }
    }

    /// Releases at the maximum hold, whether or not anybody looks at the guard then: the store may
    /// keep the entry for longer.
    pub(crate) fn release_at(self: &Arc<Self>, cap: Moment) {
        let clock = self.status.lease.clock();
        let acquisition = Arc::downgrade(self);
        // Counted apart, so that no shutdown waits until a runtime that nobody polls has noticed
        // that this has been stopped.
        let task = self.registered.guards.tasks().apart().spawn(async move {
            clock.sleep_until(cap).await;
            if let Some(acquisition) = acquisition.upgrade() {
                acquisition.release_in_background();
            }
        });
        if let Some(task) = task {
            let _ = self.at_cap.set(task.abort_handle());
        }
    }

    /// Says whether it was registered.
    pub(crate) fn unregister(&self) -> bool {
        let was_live = self.registered.is_live.swap(false, Ordering::Relaxed);
        if was_live {
            self.registered.guards.forget(self.registered.id);
        }
        was_live
    }

    /// Releases the entry unless that is done; says whether it was there.
    pub(crate) async fn release_entry(&self) -> Result<bool, LockError> {
        match self.release_entry_now() {
            Some(held) => Ok(held),
            None => self.release_entry_in_time().await,
        }
    }

    /// Begins an attempt, and completes it if that needs no waiting.
    pub(crate) fn release_entry_now(&self) -> Option<bool> {
        if let Some(held) = self.settled.get() {
            return Some(held);
        }
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.entry.release_now().map(|found| self.settle(found))
    }

    /// Completes an attempt.
    pub(crate) async fn release_entry_in_time(&self) -> Result<bool, LockError> {
        match release_until_definite(&*self.entry, &self.status.lease).await {
            Ok(found) => Ok(self.settle(found)),
            Err(error) => {
                // An attempt that certainly removed nothing does not explain an entry that is
                // missing later.
                if !error.is_indeterminate() {
                    let less = |attempts: usize| attempts.checked_sub(1);
                    let _ = (self.attempts).fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
                }
                Err(error)
            }
        }
    }

    fn settle(&self, found: bool) -> bool {
        // A release and a shutdown may be under way together: if one does not find the entry, the
        // other has removed it. Neither waits for the other, whose caller may have stopped polling
        // it.
        self.settled
            .set(found || self.attempts.load(Ordering::SeqCst) > 1)
    }

    /// The first step of a release: fails if the acquisition was lost.
    fn begin_release(&self) -> Result<(), LockError> {
        if let GuardState::Lost(_) = self.status.end_by_release() {
            return ensure_held(&*self.status).map_err(|lost| lost.during(Operation::Release));
        }
        self.stop_timers();
        Ok(())
    }

    /// The last step of a release, with a definite answer.
    fn released(&self, held: bool) -> Result<(), LockError> {
        self.unregister();
        let removed = || LockError::new(ErrorKind::Lost, LossReason::Removed.to_string());
        if held {
            Ok(())
        } else {
            Err(self.during(Operation::Release, removed()))
        }
    }

    fn during(&self, operation: Operation, error: LockError) -> LockError {
        error
            .during(operation)
            .on(self.status.backend.clone())
            .of(&self.status.name)
    }

    /// Completes a release, until the deadline at most.
    async fn release_entry_by_deadline(&self) -> Result<bool, LockError> {
        let lease = &self.status.lease;
        let tasks = self.registered.guards.tasks();
        let deadline = lease.clock().now() + lease.remaining();
        tasks.ensure_removing()?;
        tokio::select! {
            biased;
            outcome = self.release_entry_in_time() => outcome,
            () = lease.clock().sleep_until(deadline) => {
                Err(LockError::new(ErrorKind::Unavailable, "no answer before the guard's deadline").indeterminate())
            }
            stopped = tasks.stopped() => Err(stopped.indeterminate()),
        }
    }
}

#[async_trait]
impl Removal for StoredAcquisition {
    async fn remove(&self) {
        if let Err(error) = self.release_entry().await {
            let StoredStatus {
                backend,
                name,
                lease,
                ..
            } = &*self.status;
            let stays = lease.remaining();
            match self.status.state() {
                // The loss has been reported.
                GuardState::Lost(_) => {
                    tracing::debug!(%backend, %name, %error, ?stays, "release of a lost lock failed");
                }
                _ => {
                    tracing::warn!(%backend, %name, %error, ?stays, "background release failed, the lock ends with its TTL");
                }
            }
        }
    }

    fn left(&self) -> Leftover {
        let StoredStatus {
            backend,
            name,
            lease,
            ..
        } = &*self.status;
        Leftover {
            what: format!("`{name}` on {backend}"),
            ends_in: lease.remaining(),
        }
    }
}

impl fmt::Debug for StoredAcquisition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredAcquisition")
            .field("status", &self.status)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}
