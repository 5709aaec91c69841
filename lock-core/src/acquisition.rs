use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;

use crate::{ErrorKind, FencingToken, GuardState, LockError, LockName, Operation, OwnerId};

/// The future of [`AcquisitionStatus::ended`].
pub type Ended = Pin<Box<dyn Future<Output = GuardState> + Send>>;

/// One grant of a name to one caller, on which a [`LockGuard`](crate::LockGuard) is built.
///
/// A backend does not implement this trait: [`GuardSet::grant`](crate::backend::GuardSet::grant)
/// does. A layer that wraps guards does, or combines what
/// [`LockGuard::with_name`](crate::LockGuard::with_name),
/// [`with_token`](crate::LockGuard::with_token) and [`join`](crate::LockGuard::join) offer. Code
/// that has one outside a guard must release it.
#[async_trait]
pub trait Acquisition: Debug + Send + Sync + 'static {
    /// Returns the status of the acquisition.
    fn status(&self) -> &dyn AcquisitionStatus;

    /// Returns the same status to keep, as a [`GuardView`](crate::GuardView) does.
    fn view(&self) -> Arc<dyn AcquisitionStatus>;

    /// Begins the release, and completes it if that needs no waiting: saves
    /// [`release`](Self::release) and its allocation.
    ///
    /// The state is [`Released`](GuardState::Released) afterwards, unless the acquisition was lost
    /// before.
    fn release_now(&self) -> Option<Result<(), LockError>>;

    /// Continues a release for which [`release_now`](Self::release_now) had no answer. After an
    /// error both may be called again.
    ///
    /// # Errors
    ///
    /// As [`LockGuard::release`](crate::LockGuard::release).
    async fn release(&self) -> Result<(), LockError>;

    /// Releases in the background what is not released yet: does not wait, does not panic, inside
    /// or outside a runtime, and does nothing the second time.
    fn release_in_background(self: Arc<Self>);

    /// As [`LockGuard::extend`](crate::LockGuard::extend).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] unless it is overridden.
    async fn extend(&self) -> Result<(), LockError> {
        Err(
            unsupported(self.status(), "the lease of this guard cannot be extended")
                .during(Operation::Renew),
        )
    }

    /// As [`LockGuard::raise_token`](crate::LockGuard::raise_token).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] unless it is overridden.
    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        let _ = at_least;
        Err(
            unsupported(self.status(), "the token of this guard cannot be raised")
                .during(Operation::RaiseToken),
        )
    }
}

/// Status of an [`Acquisition`], on which its guard's views are built. A status that is kept must
/// keep nothing else alive, neither the client nor the lease.
pub trait AcquisitionStatus: Debug + Send + Sync + 'static {
    /// The backend's name, for errors.
    fn backend(&self) -> &str;

    /// Name of the lock.
    fn name(&self) -> &LockName;

    /// The acquisition's id in the store.
    fn owner(&self) -> &OwnerId;

    /// The number to send to the protected resource.
    fn token(&self) -> Option<FencingToken>;

    /// Current state of the lock: reads a clock, never waits. An end is final.
    fn state(&self) -> GuardState;

    /// Time for which the acquisition stays valid if no renewal succeeds from now on; zero once it
    /// has ended.
    fn remaining(&self) -> Duration;

    /// Waits until the acquisition ends, for whatever reason; a late call returns at once.
    fn ended(self: Arc<Self>) -> Ended;

    /// Has an observer told of renewals and of the end, without a task that waits for them. An
    /// acquisition that does not come from
    /// [`GuardSet::grant`](crate::backend::GuardSet::grant) need not tell it anything: the default
    /// does not.
    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        drop(observer);
    }
}

/// Hears of an acquisition's renewals and of its end: for a layer that reports them.
///
/// It is called from whichever thread finds the event, and must neither block nor panic.
pub trait AcquisitionObserver: Debug + Send + Sync + 'static {
    /// The lease was renewed, this long before the acquisition would have been lost.
    fn renewed(&self, margin: Duration);

    /// The acquisition has ended. May be called more than once: an acquisition that was
    /// [joined](crate::LockGuard::join) from several tells the end of each, and only the first
    /// counts.
    fn ended(&self, end: GuardState);
}

pub(crate) fn unsupported(status: &dyn AcquisitionStatus, what: &'static str) -> LockError {
    LockError::new(ErrorKind::Unsupported, what)
        .on(status.backend().to_owned())
        .of(status.name())
}

/// Fails unless the lock is held.
pub(crate) fn ensure_held(status: &dyn AcquisitionStatus) -> Result<(), LockError> {
    let message = match status.state() {
        GuardState::Held => return Ok(()),
        GuardState::Lost(reason) => reason.to_string(),
        GuardState::Released => "the guard was released".to_owned(),
    };
    Err(LockError::new(ErrorKind::Lost, message)
        .on(status.backend().to_owned())
        .of(status.name()))
}

/// Both steps of a release.
pub(crate) async fn release(acquisition: &dyn Acquisition) -> Result<(), LockError> {
    match acquisition.release_now() {
        Some(outcome) => outcome,
        None => acquisition.release().await,
    }
}
