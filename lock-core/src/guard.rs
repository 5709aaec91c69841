use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    ErrorKind, FencingToken, LockError, LockName, Operation, OwnerId,
    acquisition::{Acquisition, Status},
    backend::Moment,
};

/// A live acquisition: the lock is held while the guard is in [`GuardState::Held`].
///
/// Dropping a guard releases its lock in the background: the drop does not panic, inside or outside a runtime, and reports
/// nothing. If the store cannot be reached the lock ends with its TTL. Call [`release`](Self::release) to know. Mind that
/// `let _ = locks.acquire(..).await?` drops the guard at once; write `let _guard = ..` to hold the lock until the end of the block.
///
/// # Renewal needs a runtime that runs
///
/// The client renews its locks in the background, as tasks of the runtime on which it was made. A current-thread runtime runs them only
/// while somebody is inside `block_on`: between two calls of it, or while a task blocks the thread, nothing is renewed, and after a
/// TTL the guard is lost. So use a multi-thread runtime, or give the client a thread of its own: `with_background_thread(true)` of its
/// builder, or `background_thread=true` in its URL.
///
/// # At the end of `main`
///
/// A guard that is alive when the runtime ends is dropped with it, and nothing in the background runs any more. The end of the runtime
/// then waits while a thread releases what its clients still hold, for at most half a second each
/// ([`EXIT_LIMIT`](crate::backend::EXIT_LIMIT)); so does the drop of a guard after that. What is not released by then stays locked
/// until its lease ends, also for the next run of the program, and a warning on [`tracing`](https://docs.rs/tracing) names it.
/// `with_release_at_exit(false)` and `release_at_exit=false` turn that off.
///
/// Nothing can be done where nothing is dropped: after [`std::process::exit`], an abort or a signal, or for a guard or a runtime in a
/// static or forgotten; and `shutdown_background` of a runtime does not wait. To be sure, release the guards, or [shut the client down](crate::DistributedLock::shutdown), before `main` ends.
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    hold: Hold,
    acquisition: Arc<Acquisition>,
    release_on_drop: bool,
}

/// A view of a [`LockGuard`] that can be cloned, sent and kept: it tells the guard's state, and cannot release it. One that is
/// kept keeps nothing alive: neither the lock, nor its renewal, nor the client.
#[derive(Clone)]
pub struct Hold(Arc<Status>);

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
        let hold = Hold(Arc::clone(&acquisition.status));
        Self { hold, acquisition: Arc::new(acquisition), release_on_drop: true }
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

    /// Waits until the guard ends in whichever way, released, dropped or lost, and returns its final state; late calls
    /// return at once. For a task that watches over a guard and must not outlive it.
    ///
    /// ```
    /// # async fn example(guard: lock_core::LockGuard) -> Result<(), lock_core::LockError> {
    /// use lock_core::GuardState;
    ///
    /// let ended = guard.ended();
    /// tokio::spawn(async move {
    ///     if let GuardState::Lost(reason) = ended.await {
    ///         eprintln!("lost: {reason}");
    ///     }
    /// });
    /// guard.release().await
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn ended(&self) -> impl Future<Output = GuardState> + Send + use<> {
        self.hold.ended()
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
    /// [`ErrorKind::Lost`] if the lock had been lost before; [`ErrorKind::Unavailable`] without a runtime, or if that of the
    /// client is not polled. Otherwise the store's last error: the lock ends with its TTL, unless the error is
    /// [indeterminate](LockError::is_indeterminate) and the lock is free already.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the release goes on in the background.
    pub async fn release(mut self) -> Result<(), LockError> {
        let (acquisition, status) = (&*self.acquisition, &*self.hold.0);
        let deadline = match status.lease.deadline() {
            Ok(deadline) if status.finish(GuardState::Released) == GuardState::Released => deadline,
            _ => return Err(status.lost_error().during(Operation::Release)),
        };
        acquisition.stop_timers();
        let outcome = match acquisition.release_entry_now() {
            Some(held) => Ok(held),
            None => released_by(acquisition, deadline).await,
        };
        let outcome = match outcome {
            Ok(held) => {
                acquisition.unregister();
                if held { Ok(()) } else { Err(status.loss(LossReason::Removed).during(Operation::Release)) }
            }
            Err(error) => {
                let error = error.noting(&status.how_long_it_stays());
                return Err(error.during(Operation::Release).on(status.backend).of(&status.name));
            }
        };
        self.release_on_drop = false;
        outcome
    }

    pub(crate) fn acquisition(&self) -> &Arc<Acquisition> {
        &self.acquisition
    }
}

/// The rest of a release, which the deadline ends.
async fn released_by(acquisition: &Acquisition, deadline: Moment) -> Result<bool, LockError> {
    let tasks = acquisition.registered.holds.tasks();
    tasks.ensure_removing()?;
    tokio::select! {
        biased;
        outcome = acquisition.release_entry_in_time() => outcome,
        () = acquisition.status.lease.clock().sleep_until(deadline) => Err(LockError::new(
            ErrorKind::Unavailable,
            "no answer before the guard's deadline",
        )
        .indeterminate()),
        stopped = tasks.stopped() => Err(stopped.indeterminate()),
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.release_on_drop {
            self.acquisition.release_in_background();
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
        let ended = self.ended();
        async move {
            match ended.await {
                GuardState::Lost(reason) => reason,
                // Who still listens does not keep the client alive.
                GuardState::Held | GuardState::Released => std::future::pending().await,
            }
        }
    }

    /// Waits until the guard ends in whichever way, released, dropped or lost, and returns its final state; late calls
    /// return at once.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn ended(&self) -> impl Future<Output = GuardState> + Send + use<> {
        let status = Arc::clone(&self.0);
        async move {
            loop {
                let until = match status.state() {
                    GuardState::Held => status.lease.deadline().unwrap_or(Moment::from_origin(Duration::ZERO)),
                    end => return end,
                };
                tokio::select! {
                    () = status.ended().cancelled() => {}
                    () = status.lease.clock().sleep_until(until) => {}
                }
            }
        }
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
