use std::{fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    Acquisition, AcquisitionStatus, FencingToken, GuardState, LockError, LockName, LossReason,
    OwnerId,
    acquisition::{ensure_held, release},
};

/// A live acquisition: the lock is held while the guard is in [`GuardState::Held`].
///
/// Dropping a guard releases its lock in the background: the drop does not panic, inside or outside
/// a runtime, and reports nothing. If the store cannot be reached the lock ends with its TTL. Call
/// [`release`](Self::release) to know. Mind that `let _ = locks.acquire(..).await?` drops the guard
/// at once; write `let _guard = ..` to hold the lock until the end of the block.
///
/// # Renewal needs a runtime that runs
///
/// The client renews its locks in the background, as tasks of the runtime on which it was made. A
/// current-thread runtime runs them only while somebody is inside `block_on`: between two calls of
/// it, or while a task blocks the thread, nothing is renewed, and after a TTL the guard is lost. So
/// use a multi-thread runtime, or give the client a thread of its own:
/// `with_background_thread(true)` of its builder, or `background_thread=true` in its URL.
///
/// # At the end of `main`
///
/// A guard that is alive when the runtime ends is dropped with it, and nothing in the background
/// runs any more. The end of the runtime then waits while a thread releases what its clients still
/// hold, for at most half a second each ([`EXIT_LIMIT`](crate::backend::EXIT_LIMIT)); so does the
/// drop of a guard after that. A lock that is not released by then stays locked until its lease
/// ends, also for the next run of the program, and a warning on
/// [`tracing`](https://docs.rs/tracing) names it. `with_release_at_exit(false)` and
/// `release_at_exit=false` turn that off.
///
/// Nothing can be done where nothing is dropped: after [`std::process::exit`], an abort or a
/// signal, or for a guard or a runtime that is in a static or forgotten; and `shutdown_background`
/// of a runtime does not wait. To be sure, release the guards, or [shut the client
/// down](crate::DistributedLock::shutdown), before `main` ends.
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    acquisition: Arc<dyn Acquisition>,
    release_on_drop: bool,
}

/// A view of a [`LockGuard`] that can be cloned, sent and kept: it tells the guard's state, and
/// cannot release it. Keeping a view keeps nothing else alive: neither the lock, nor its renewal,
/// nor the client.
#[derive(Clone)]
pub struct GuardView(Arc<dyn AcquisitionStatus>);

impl LockGuard {
    /// Creates the guard of an acquisition, which it releases. For backends and layers; a backend
    /// gets its guards from [`GuardSet::grant`](crate::backend::GuardSet::grant).
    pub fn new(acquisition: Arc<dyn Acquisition>) -> Self {
        Self {
            acquisition,
            release_on_drop: true,
        }
    }

    /// Takes the guard apart, for a layer that wraps its acquisition: the caller must then release
    /// that.
    #[must_use = "nobody else releases it"]
    pub fn into_acquisition(mut self) -> Arc<dyn Acquisition> {
        self.release_on_drop = false;
        Arc::clone(&self.acquisition)
    }

    fn status(&self) -> &dyn AcquisitionStatus {
        self.acquisition.status()
    }

    /// Name of the lock.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.status().name()
    }

    /// This acquisition's id in the store.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        self.status().owner()
    }

    /// The number to send to the protected resource; `None` if the backend has no
    /// [`fencing`](crate::Capabilities::fencing).
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.status().token()
    }

    /// Current state of the lock. Reads a clock, never waits.
    #[must_use]
    pub fn state(&self) -> GuardState {
        self.status().state()
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

    /// Time for which the guard stays valid if no renewal succeeds from now on; zero once lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.status().remaining()
    }

    /// For use with `?` before each protected step.
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock is not held any more.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        ensure_held(self.status())
    }

    /// Waits until the lock is lost, and says why; late calls return at once. Never completes
    /// because of a release.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        lost(self.acquisition.view())
    }

    /// Waits until the guard ends, whether released, dropped or lost, and returns its final state;
    /// late calls return at once. For a task that watches over a guard and must not outlive it.
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
        self.acquisition.view().ended()
    }

    /// A view of this guard to hand to others.
    #[must_use]
    pub fn view(&self) -> GuardView {
        GuardView(self.acquisition.view())
    }

    /// Renews the lease once, now, for the TTL that it was acquired with: for a guard that was
    /// acquired [without renewal](crate::AcquireOptions::without_renewal), which can thus be kept
    /// for as long as its holder makes progress. A transient failure is retried until the deadline.
    /// A [maximum hold](crate::AcquireOptions::with_max_hold) stays where it is.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    ///
    /// let guard = locks.acquire_with("import", AcquireOptions::new().without_renewal()).await?;
    /// for file in ["a", "b", "c"] {
    ///     guard.extend().await?;
    ///     // ... import the file, within one TTL ...
    ///     # let _ = file;
    /// }
    /// guard.release().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock is not held any more, or was lost before the
    /// answer came. (On etcd an entry that was removed by hand is noticed a moment later, as ever.)
    /// [`Unsupported`](crate::ErrorKind::Unsupported) from a layer that cannot do it.
    ///
    /// # Cancel safety
    ///
    /// The renewal goes on in the background.
    pub async fn extend(&self) -> Result<(), LockError> {
        self.acquisition.extend().await
    }

    /// Raises the token to at least this number, for this holder and for all later ones, and
    /// returns the new token. For a holder that continues the tokens of another store. Call it
    /// before the token is used: a write with the old one may be refused once the new one has been
    /// seen.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without
    /// [`Capabilities::raise_token`](crate::Capabilities::raise_token);
    /// [`InvalidOptions`](crate::ErrorKind::InvalidOptions) for a token that the store cannot count
    /// to; [`Lost`](crate::ErrorKind::Lost) if the lock is not held any more; errors of the store.
    ///
    /// # Cancel safety
    ///
    /// The store's counter may have been raised; the guard's token has not.
    pub async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        self.acquisition.raise_token(at_least).await
    }

    /// Releases the lock and says whether it was still held.
    ///
    /// Only this acquisition's own entry is ever removed. Transient errors are retried until the
    /// guard's deadline, so the call takes no longer than [`remaining`](Self::remaining); after an
    /// error the attempts go on in the background.
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock had been lost before;
    /// [`Unavailable`](crate::ErrorKind::Unavailable) without a runtime, or if the client's runtime
    /// is not polled. Otherwise the store's last error: the lock ends with its TTL, unless the
    /// error is [indeterminate](LockError::is_indeterminate) and the lock is free already.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the release goes on in the background.
    pub async fn release(mut self) -> Result<(), LockError> {
        release(&*self.acquisition).await?;
        self.release_on_drop = false;
        Ok(())
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.release_on_drop {
            Arc::clone(&self.acquisition).release_in_background();
        }
    }
}

impl GuardView {
    /// Name of the lock.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.0.name()
    }

    /// The acquisition's id in the store.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        self.0.owner()
    }

    /// The number to send to the protected resource.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.0.token()
    }

    /// Current state of the lock. Reads a clock, never waits.
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

    /// Time for which the guard stays valid if no renewal succeeds from now on; zero once lost or
    /// released.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.remaining()
    }

    /// For use with `?` before each protected step.
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock is not held any more.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        ensure_held(&*self.0)
    }

    /// Waits until the lock is lost, and says why; late calls return at once. Never completes
    /// because of a release.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        lost(Arc::clone(&self.0))
    }

    /// Waits until the guard ends, whether released, dropped or lost, and returns its final state;
    /// late calls return at once.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub fn ended(&self) -> impl Future<Output = GuardState> + Send + use<> {
        Arc::clone(&self.0).ended()
    }
}

fn lost(status: Arc<dyn AcquisitionStatus>) -> impl Future<Output = LossReason> + Send + use<> {
    let ended = status.ended();
    async move {
        match ended.await {
            GuardState::Lost(reason) => reason,
            // A future that still listens does not keep the client alive.
            GuardState::Held | GuardState::Released => std::future::pending().await,
        }
    }
}

fn describe(status: &dyn AcquisitionStatus, mut f: fmt::DebugStruct<'_, '_>) -> fmt::Result {
    f.field("backend", &status.backend())
        .field("name", status.name())
        .field("owner", status.owner())
        .field("token", &status.token())
        .field("state", &status.state())
        .finish_non_exhaustive()
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(self.status(), f.debug_struct("LockGuard"))
    }
}

impl fmt::Debug for GuardView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(&*self.0, f.debug_struct("GuardView"))
    }
}
