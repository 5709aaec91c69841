use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    Acquisition, AcquisitionObserver, AcquisitionStatus, Ended, ErrorKind, FencingToken,
    GuardState, LockError, LockGuard, LockName, Operation, OwnerId,
};

use crate::{capabilities::BACKEND, error::in_both};

/// An acquisition in both stores: that of the joined guards, under the name of this layer.
#[derive(Debug)]
struct InBoth {
    inner: Arc<dyn Acquisition>,
    status: Arc<Status>,
}

#[derive(Debug)]
struct Status(Arc<dyn AcquisitionStatus>);

/// The two as one.
pub(crate) fn joined(source: LockGuard, target: LockGuard) -> LockGuard {
    named(source.join([target]))
}

/// A guard of several parts, under the name of this layer.
pub(crate) fn named(guard: LockGuard) -> LockGuard {
    let inner = guard.into_acquisition();
    let status = Arc::new(Status(inner.view()));
    LockGuard::new(Arc::new(InBoth { inner, status }))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for InBoth {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        let outcome = self.inner.release_now()?;
        Some(outcome.map_err(|error| in_both(error, Operation::Release)))
    }

    async fn release(&self) -> Result<(), LockError> {
        let outcome = self.inner.release().await;
        outcome.map_err(|error| in_both(error, Operation::Release))
    }

    fn release_in_background(self: Arc<Self>) {
        Arc::clone(&self.inner).release_in_background();
    }

    async fn extend(&self) -> Result<(), LockError> {
        let outcome = self.inner.extend().await;
        outcome.map_err(|error| in_both(error, Operation::Renew))
    }

    async fn raise_token(&self, _: FencingToken) -> Result<FencingToken, LockError> {
        let message = "tokens of a migration follow those of its stores and cannot be raised";
        Err(LockError::new(ErrorKind::Unsupported, message)
            .during(Operation::RaiseToken)
            .on(BACKEND)
            .of(self.status.name()))
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for Status {
    fn backend(&self) -> &str {
        BACKEND
    }

    fn name(&self) -> &LockName {
        self.0.name()
    }

    fn owner(&self) -> &OwnerId {
        self.0.owner()
    }

    fn token(&self) -> Option<FencingToken> {
        self.0.token()
    }

    fn state(&self) -> GuardState {
        self.0.state()
    }

    fn remaining(&self) -> Duration {
        self.0.remaining()
    }

    fn ended(self: Arc<Self>) -> Ended {
        Arc::clone(&self.0).ended()
    }

    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        self.0.observe(observer);
    }
}
