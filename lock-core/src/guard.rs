use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    ErrorKind, FencingToken, LockError, LockName, Operation, OwnerId,
    backend::{Entry, Keep, Lease, Moment, release_until_definite},
    latch::{Code, Latch},
};

/// A live acquisition: the lock is held while the guard is in [`GuardState::Held`].
///
/// Dropping a guard releases its lock in the background: the drop neither blocks nor panics, inside or outside a
/// runtime, and reports nothing. If the runtime is gone, or the store cannot be reached, the lock ends with its TTL. Call
/// [`release`](Self::release) to know.
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    hold: Hold,
    release_on_drop: bool,
}

/// A view of a [`LockGuard`] that can be cloned, sent and kept: it tells the guard's state, and cannot release it.
#[derive(Clone)]
pub struct Hold(Arc<Acquisition>);

pub(crate) struct Acquisition {
    pub(crate) backend: &'static str,
    pub(crate) name: LockName,
    pub(crate) owner: OwnerId,
    pub(crate) token: Option<FencingToken>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) keep: Option<Keep>,
    pub(crate) entry: Arc<dyn Entry>,
    /// Fires when the acquisition is lost; made when somebody wants to be told.
    pub(crate) ended: OnceLock<CancellationToken>,
    pub(crate) end: Latch<GuardState>,
    /// The store's definite answer to a release, whether the entry was there: nothing is left to remove then.
    pub(crate) settled: Latch<bool>,
    /// How many attempts to release have begun.
    pub(crate) attempts: AtomicUsize,
    pub(crate) registered: Registered,
}

/// The guard's place among its client's live guards; see [`crate::backend::Holds`].
pub(crate) struct Registered {
    pub(crate) id: usize,
    pub(crate) holds: Arc<crate::backend::Holds>,
}

/// Whether an acquisition is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuardState {
    /// The lock is held, at this instant and until the deadline.
    Held,
    /// The acquisition ended without a release. Final.
    Lost(LossReason),
    /// Released, or about to be. Final.
    Released,
}

/// Why an acquisition ended without its holder releasing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The deadline passed without an acknowledged renewal.
    Expired,
    /// The store no longer has the acquisition: it was deleted, its lease revoked, or somebody forced its release.
    Removed,
    /// The maximum hold time was reached.
    MaxHold,
    /// The client was shut down.
    Shutdown,
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

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its deadline passed without an acknowledged renewal",
            Self::Removed => "its entry was removed from the store",
            Self::MaxHold => "its maximum hold time was reached",
            Self::Shutdown => "its client was shut down",
        })
    }
}

impl LockGuard {
    pub(crate) fn new(acquisition: Acquisition) -> Self {
        Self { hold: Hold(Arc::new(acquisition)), release_on_drop: true }
    }

    /// What is locked.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.hold.name()
    }

    /// This acquisition's id in the store.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        self.hold.owner()
    }

    /// The number to send to the protected resource; `None` if the backend has no
    /// [`fencing`](crate::Capabilities::fencing).
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.hold.token()
    }

    /// Whether the lock is still held. Reads a clock, never waits.
    #[must_use]
    pub fn state(&self) -> GuardState {
        self.hold.state()
    }

    /// Shorthand for [`GuardState::Held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.hold.is_held()
    }

    /// Shorthand for [`GuardState::Lost`].
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.hold.is_lost()
    }

    /// How long the guard stays valid if no renewal succeeds from now on; zero once lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.hold.remaining()
    }

    /// For use with `?` before each protected step.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the lock is not held any more.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.hold.ensure_held()
    }

    /// Waits until the lock is lost, and says why; late calls return at once. Never completes because of a release.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        self.hold.lost()
    }

    /// A view of this guard to hand to others.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Releases the lock and says whether it was still held.
    ///
    /// Only this acquisition's own entry is ever removed. Transient errors are retried until the guard's deadline, so the
    /// call takes no longer than [`remaining`](Self::remaining); after an error the attempts go on in the background.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the lock had been lost before. Otherwise the store's last error: the lock ends with its
    /// TTL, unless the error is [indeterminate](LockError::is_indeterminate) and the lock is free already.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the release goes on in the background.
    pub async fn release(mut self) -> Result<(), LockError> {
        let acquisition = &*self.hold.0;
        let deadline = match acquisition.lease.deadline() {
            Ok(deadline) if acquisition.finish(GuardState::Released) == GuardState::Released => deadline,
            _ => return Err(acquisition.lost_error().during(Operation::Release)),
        };
        acquisition.stop_renewal();
        let outcome = match acquisition.release_entry_now() {
            Some(held) => Ok(held),
            None => tokio::select! {
                biased;
                outcome = acquisition.release_entry_in_time() => outcome,
                () = acquisition.lease.clock().sleep_until(deadline) => Err(LockError::new(
                    ErrorKind::Unavailable,
                    "no answer before the guard's deadline; the lock ends with its TTL",
                )
                .indeterminate()),
            },
        };
        let outcome = match outcome {
            Ok(held) => {
                acquisition.unregister();
                if held { Ok(()) } else { Err(acquisition.loss(LossReason::Removed).during(Operation::Release)) }
            }
            Err(error) => return Err(error.during(Operation::Release).on(acquisition.backend).of(&acquisition.name)),
        };
        self.release_on_drop = false;
        outcome
    }

    pub(crate) fn acquisition(&self) -> &Arc<Acquisition> {
        &self.hold.0
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.release_on_drop {
            self.hold.0.release_in_background();
        }
    }
}

impl Hold {
    /// What is locked.
    #[must_use]
    pub fn name(&self) -> &LockName {
        &self.0.name
    }

    /// The acquisition's id in the store.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        &self.0.owner
    }

    /// The number to send to the protected resource.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.0.token
    }

    /// Whether the lock is still held. Reads a clock, never waits.
    #[must_use]
    pub fn state(&self) -> GuardState {
        self.0.state()
    }

    /// Shorthand for [`GuardState::Held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.state() == GuardState::Held
    }

    /// Shorthand for [`GuardState::Lost`].
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.state(), GuardState::Lost(_))
    }

    /// How long the guard stays valid if no renewal succeeds from now on; zero once lost or released.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match (self.state(), self.0.lease.deadline()) {
            (GuardState::Held, Ok(deadline)) => deadline.saturating_since(self.0.lease.clock().now()),
            _ => Duration::ZERO,
        }
    }

    /// For use with `?` before each protected step.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the lock is not held any more.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        match self.state() {
            GuardState::Held => Ok(()),
            GuardState::Lost(_) | GuardState::Released => Err(self.0.lost_error()),
        }
    }

    /// Waits until the lock is lost, and says why; late calls return at once. Never completes because of a release.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        let acquisition = Arc::clone(&self.0);
        async move {
            loop {
                let until = match acquisition.state() {
                    GuardState::Lost(reason) => return reason,
                    GuardState::Released => break,
                    GuardState::Held => acquisition.lease.deadline().unwrap_or(Moment::from_origin(Duration::ZERO)),
                };
                tokio::select! {
                    () = acquisition.ended().cancelled() => {}
                    () = acquisition.lease.clock().sleep_until(until) => {}
                }
            }
            // Who still listens does not keep the client alive.
            drop(acquisition);
            std::future::pending().await
        }
    }
}

impl Acquisition {
    pub(crate) fn state(&self) -> GuardState {
        match (self.end.get(), self.lease.deadline()) {
            (Some(end), _) => end,
            (None, Ok(_)) => GuardState::Held,
            (None, Err(reason)) => self.finish(GuardState::Lost(reason)),
        }
    }

    /// Ends the acquisition unless it has ended; returns how it ended.
    pub(crate) fn finish(&self, end: GuardState) -> GuardState {
        let end = self.end.set(end);
        if end != GuardState::Released {
            fence(Ordering::SeqCst);
            if let Some(ended) = self.ended.get() {
                ended.cancel();
            }
        }
        end
    }

    fn ended(&self) -> &CancellationToken {
        let ended = self.ended.get_or_init(|| self.lease.ended().child_token());
        // Either this sees the end, or the end sees the token: see `finish`.
        fence(Ordering::SeqCst);
        if matches!(self.end.get(), Some(GuardState::Lost(_))) {
            ended.cancel();
        }
        ended
    }

    pub(crate) fn stop_renewal(&self) {
        if let Some(keep) = &self.keep {
            keep.stop();
        }
    }

    pub(crate) fn unregister(&self) {
        self.registered.holds.forget(self.registered.id);
    }

    /// Releases the entry unless that is done; says whether it was there.
    pub(crate) async fn release_entry(&self) -> Result<bool, LockError> {
        match self.release_entry_now() {
            Some(held) => Ok(held),
            None => self.release_entry_in_time().await,
        }
    }

    /// The begin of an attempt, and all of it if that needs no waiting.
    fn release_entry_now(&self) -> Option<bool> {
        if let Some(held) = self.settled.get() {
            return Some(held);
        }
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.entry.release_now().map(|found| self.settle(found))
    }

    /// The rest of an attempt.
    async fn release_entry_in_time(&self) -> Result<bool, LockError> {
        Ok(self.settle(release_until_definite(&*self.entry, &self.lease).await?))
    }

    fn settle(&self, found: bool) -> bool {
        // A release and a shutdown may be under way together: what one does not find, the other has removed. Neither
        // waits for the other, which its caller may have ceased to poll.
        self.settled.set(found || self.attempts.load(Ordering::SeqCst) > 1)
    }

    fn release_in_background(self: &Arc<Self>) {
        let end = match self.state() {
            GuardState::Held => self.finish(GuardState::Released),
            ended => ended,
        };
        self.stop_renewal();
        self.unregister();
        let nothing_left = end == GuardState::Lost(LossReason::Removed) || self.settled.get().is_some();
        if nothing_left || self.entry.release_now().is_some() {
            return;
        }
        let acquisition = Arc::clone(self);
        self.registered.holds.tasks().spawn(async move {
            if let Err(error) = acquisition.release_entry().await {
                let (backend, name) = (acquisition.backend, &acquisition.name);
                tracing::warn!(backend, %name, %error, "background release failed, the lock ends with its TTL");
            }
        });
    }

    pub(crate) fn lost_error(&self) -> LockError {
        match self.state() {
            GuardState::Lost(reason) => self.loss(reason),
            GuardState::Held | GuardState::Released => {
                LockError::new(ErrorKind::Lost, "the guard was released").on(self.backend).of(&self.name)
            }
        }
    }

    fn loss(&self, reason: LossReason) -> LockError {
        LockError::new(ErrorKind::Lost, reason.to_string()).on(self.backend).of(&self.name)
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hold.0.describe(f.debug_struct("LockGuard"))
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f.debug_struct("Hold"))
    }
}

impl Acquisition {
    fn describe(&self, mut f: fmt::DebugStruct<'_, '_>) -> fmt::Result {
        f.field("backend", &self.backend)
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("token", &self.token)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
