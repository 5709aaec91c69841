use std::sync::{Arc, Weak};

use async_trait::async_trait;
use lock_core::{
    Acquisition, AcquisitionObserver, AcquisitionStatus, FencingToken, GuardState, LockError,
    LockGuard,
};
use tracing::{Instrument, Span};

/// Hears of an acquisition's releases, too.
pub(crate) trait GuardObserver: AcquisitionObserver {
    /// A release begins; it runs in the returned span.
    fn release_begins(&self) -> Span;

    /// An attempt to release has ended.
    fn release_ends(&self, outcome: &Result<(), LockError>);
}

/// An acquisition with an observer, whose status is that of the acquisition itself: so a view that
/// is kept knows nothing of the layer.
#[derive(Debug)]
struct Observed<O> {
    inner: Arc<dyn Acquisition>,
    observer: Arc<O>,
}

/// The same guard, observed.
pub(crate) fn observed<O: GuardObserver>(guard: LockGuard, observer: O) -> LockGuard {
    let inner = guard.into_acquisition();
    let observer = Arc::new(observer);
    let told: Weak<O> = Arc::downgrade(&observer);
    inner.status().observe(told);
    LockGuard::new(Arc::new(Observed { inner, observer }))
}

impl<O: GuardObserver> Observed<O> {
    /// Tells an end that an acquisition of another layer may not have told.
    fn tell_end(&self) {
        match self.inner.status().state() {
            GuardState::Held => {}
            end => self.observer.ended(end),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<O: GuardObserver> Acquisition for Observed<O> {
    fn status(&self) -> &dyn AcquisitionStatus {
        self.inner.status()
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        self.inner.view()
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        let span = self.observer.release_begins();
        let outcome = span.in_scope(|| self.inner.release_now());
        self.tell_end();
        if let Some(outcome) = &outcome {
            self.observer.release_ends(outcome);
        }
        outcome
    }

    async fn release(&self) -> Result<(), LockError> {
        let span = self.observer.release_begins();
        let outcome = self.inner.release().instrument(span).await;
        self.tell_end();
        self.observer.release_ends(&outcome);
        outcome
    }

    fn release_in_background(self: Arc<Self>) {
        Arc::clone(&self.inner).release_in_background();
        self.tell_end();
    }

    async fn extend(&self) -> Result<(), LockError> {
        self.inner.extend().await
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        self.inner.raise_token(at_least).await
    }
}
