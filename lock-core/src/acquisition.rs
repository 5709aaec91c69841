use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};

use async_trait::async_trait;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    ErrorKind, FencingToken, GuardState, LockError, LockName, LossReason, OwnerId,
    backend::{Entry, Holds, Keep, Lease, Left, Moment, Removal, release_until_definite},
    latch::{Code, Latch},
};

/// What a guard and its views share: a view that is kept keeps nothing else, neither the client nor its session.
pub(crate) struct Status {
    pub(crate) backend: &'static str,
    pub(crate) name: LockName,
    pub(crate) owner: OwnerId,
    pub(crate) token: Option<FencingToken>,
    pub(crate) lease: Arc<Lease>,
    /// When it was acquired, for whoever is told how long it was held.
    pub(crate) since: Moment,
    /// Fires when the acquisition ends; made when somebody wants to be told.
    pub(crate) ended: OnceLock<CancellationToken>,
    pub(crate) end: Latch<GuardState>,
}

/// What a guard shares with its client.
pub(crate) struct Acquisition {
    pub(crate) status: Arc<Status>,
    pub(crate) keep: Option<Keep>,
    pub(crate) entry: Arc<dyn Entry>,
    /// The store's definite answer to a release, whether the entry was there: nothing is left to remove then.
    pub(crate) settled: Latch<bool>,
    /// How many attempts to release have begun.
    pub(crate) attempts: AtomicUsize,
    pub(crate) registered: Registered,
    /// Releases at the maximum hold.
    pub(crate) at_cap: OnceLock<AbortHandle>,
}

/// The guard's place among its client's live guards; see [`crate::backend::Holds`].
pub(crate) struct Registered {
    /// The place may be another guard's once this one has been forgotten.
    pub(crate) is_live: AtomicBool,
    pub(crate) id: usize,
    pub(crate) holds: Arc<Holds>,
}

impl Status {
    pub(crate) fn state(&self) -> GuardState {
        match (self.end.get(), self.lease.deadline()) {
            (Some(end), _) => end,
            (None, Ok(_)) => GuardState::Held,
            (None, Err(reason)) => self.finish(GuardState::Lost(reason)),
        }
    }

    /// Ends the acquisition unless it has ended; returns how it ended.
    pub(crate) fn finish(&self, end: GuardState) -> GuardState {
        match self.end.try_set(end) {
            Ok(()) => self.tell(end),
            Err(first) => return first,
        }
        fence(Ordering::SeqCst);
        if let Some(ended) = self.ended.get() {
            ended.cancel();
        }
        end
    }

    /// Once for each acquisition, by whoever finds its end.
    fn tell(&self, end: GuardState) {
        let GuardState::Lost(reason) = end else { return };
        let (backend, name, owner) = (self.backend, &self.name, &self.owner);
        let held_for = self.lease.clock().now().saturating_since(self.since);
        match reason {
            LossReason::Shutdown => tracing::debug!(backend, %name, %owner, ?held_for, %reason, "lock lost"),
            _ => tracing::warn!(backend, %name, %owner, ?held_for, %reason, "lock lost"),
        }
    }

    /// Fires at any end, and when the lease ends.
    pub(crate) fn ended(&self) -> &CancellationToken {
        let ended = self.ended.get_or_init(|| self.lease.ended().child_token());
        // Either this sees the end, or the end sees the token: see `finish`.
        fence(Ordering::SeqCst);
        if self.end.get().is_some() {
            ended.cancel();
        }
        ended
    }

    pub(crate) fn lost_error(&self) -> LockError {
        match self.state() {
            GuardState::Lost(reason) => self.loss(reason),
            GuardState::Held | GuardState::Released => {
                LockError::new(ErrorKind::Lost, "the guard was released").on(self.backend).of(&self.name)
            }
        }
    }

    pub(crate) fn loss(&self, reason: LossReason) -> LockError {
        LockError::new(ErrorKind::Lost, reason.to_string()).on(self.backend).of(&self.name)
    }

    /// After a release that failed.
    pub(crate) fn how_long_it_stays(&self) -> String {
        match self.lease.remaining().as_millis() {
            0 => "the lock ends with its TTL".to_owned(),
            left => format!("unless it is removed in the background the lock stays for {}.{:03} s", left / 1000, left % 1000),
        }
    }

    pub(crate) fn describe(&self, mut f: fmt::DebugStruct<'_, '_>) -> fmt::Result {
        f.field("backend", &self.backend)
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("token", &self.token)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Acquisition {
    /// Ends the acquisition unless it has ended, without a release.
    pub(crate) fn lose(&self, reason: LossReason) {
        self.status.finish(GuardState::Lost(reason));
        self.stop_timers();
    }

    /// Ends the renewal, and what would have ended it.
    pub(crate) fn stop_timers(&self) {
        if let Some(keep) = &self.keep {
            keep.stop();
        }
        if let Some(task) = self.at_cap.get() {
            task.abort();
        }
    }

    /// Releases at the maximum hold, whether or not anybody looks at the guard then: the store may keep the entry for longer.
    pub(crate) fn release_at(self: &Arc<Self>, cap: Moment) {
        let (clock, acquisition) = (self.status.lease.clock(), Arc::downgrade(self));
        let task = self.registered.holds.tasks().spawn(async move {
            clock.sleep_until(cap).await;
            if let Some(acquisition) = acquisition.upgrade() {
                acquisition.release_in_background();
            }
        });
        if let Some(task) = task {
            let _ = self.at_cap.set(task.abort_handle());
        }
    }

    pub(crate) fn unregister(&self) {
        if self.registered.is_live.swap(false, Ordering::Relaxed) {
            self.registered.holds.forget(self.registered.id);
        }
    }

    /// Releases the entry unless that is done; says whether it was there.
    pub(crate) async fn release_entry(&self) -> Result<bool, LockError> {
        match self.release_entry_now() {
            Some(held) => Ok(held),
            None => self.release_entry_in_time().await,
        }
    }

    /// The begin of an attempt, and all of it if that needs no waiting.
    pub(crate) fn release_entry_now(&self) -> Option<bool> {
        if let Some(held) = self.settled.get() {
            return Some(held);
        }
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.entry.release_now().map(|found| self.settle(found))
    }

    /// The rest of an attempt.
    pub(crate) async fn release_entry_in_time(&self) -> Result<bool, LockError> {
        Ok(self.settle(release_until_definite(&*self.entry, &self.status.lease).await?))
    }

    fn settle(&self, found: bool) -> bool {
        // A release and a shutdown may be under way together: what one does not find, the other has removed. Neither
        // waits for the other, which its caller may have ceased to poll.
        self.settled.set(found || self.attempts.load(Ordering::SeqCst) > 1)
    }

    pub(crate) fn release_in_background(self: &Arc<Self>) {
        if self.status.state() == GuardState::Held {
            self.status.finish(GuardState::Released);
        }
        self.stop_timers();
        self.unregister();
        // Not by the state: that an entry was removed may have been read where not everything is known, or known any more.
        if self.settled.get().is_some() || self.entry.release_now().is_some() {
            return;
        }
        self.registered.holds.tasks().remove(Arc::clone(self) as _);
    }
}

#[async_trait]
impl Removal for Acquisition {
    async fn remove(&self) {
        if let Err(error) = self.release_entry().await {
            let Status { backend, name, lease, .. } = &*self.status;
            let stays = lease.remaining();
            tracing::warn!(backend, %name, %error, ?stays, "background release failed, the lock ends with its TTL");
        }
    }

    fn left(&self) -> Left {
        let Status { backend, name, lease, .. } = &*self.status;
        Left { what: format!("`{name}` on {backend}"), ends_in: lease.remaining() }
    }
}

impl Code for GuardState {
    fn code(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Released => 2,
            Self::Lost(LossReason::Expired) => 3,
            Self::Lost(LossReason::Removed) => 4,
            Self::Lost(LossReason::MaxHold) => 5,
            Self::Lost(LossReason::Shutdown) => 6,
        }
    }

    fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::Held,
            2 => Self::Released,
            3 => Self::Lost(LossReason::Expired),
            4 => Self::Lost(LossReason::Removed),
            5 => Self::Lost(LossReason::MaxHold),
            _ => Self::Lost(LossReason::Shutdown),
        })
    }
}
