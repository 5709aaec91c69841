use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use futures_util::future::select;
use lock_core::{
    AcquisitionObserver, AcquisitionStatus, Ended, ErrorKind, FencingToken, GuardState, LockError,
    LockName, Operation, OwnerId,
    backend::{Signal, locked},
};

/// Status of an acquisition that a layer may end before the acquisition below ends.
#[derive(Debug)]
pub(crate) struct EndStatus {
    inner: Arc<dyn AcquisitionStatus>,
    end: OnceLock<GuardState>,
    ended: Signal,
    observers: Mutex<Vec<Weak<dyn AcquisitionObserver>>>,
}

impl EndStatus {
    pub(crate) fn new(inner: Arc<dyn AcquisitionStatus>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            end: OnceLock::new(),
            ended: Signal::new(),
            observers: Mutex::default(),
        })
    }

    /// Ends it, unless it has ended; returns how it ended.
    pub(crate) fn finish(&self, end: GuardState) -> GuardState {
        if self.inner.state() != GuardState::Held && self.end.get().is_none() {
            return self.inner.state();
        }
        if self.end.set(end).is_ok() {
            self.ended.fire();
            let observers = std::mem::take(&mut *locked(&self.observers));
            observers
                .iter()
                .filter_map(Weak::upgrade)
                .for_each(|observer| observer.ended(end));
        }
        self.state()
    }

    /// The error of a release that comes after a loss; `None` if it is not lost.
    pub(crate) fn loss(&self) -> Option<LockError> {
        let GuardState::Lost(reason) = self.state() else {
            return None;
        };
        let error = LockError::new(ErrorKind::Lost, reason.to_string())
            .during(Operation::Release)
            .on(self.backend().to_owned())
            .of(self.name());
        Some(error)
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for EndStatus {
    fn backend(&self) -> &str {
        self.inner.backend()
    }

    fn name(&self) -> &LockName {
        self.inner.name()
    }

    fn owner(&self) -> &OwnerId {
        self.inner.owner()
    }

    fn token(&self) -> Option<FencingToken> {
        self.inner.token()
    }

    fn state(&self) -> GuardState {
        let end = self.end.get();
        end.copied().unwrap_or_else(|| self.inner.state())
    }

    fn remaining(&self) -> Duration {
        match self.end.get() {
            Some(_) => Duration::ZERO,
            None => self.inner.remaining(),
        }
    }

    fn ended(self: Arc<Self>) -> Ended {
        Box::pin(async move {
            let below = Arc::clone(&self.inner).ended();
            select(below, Box::pin(self.ended.fired())).await;
            self.state()
        })
    }

    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        locked(&self.observers).push(observer.clone());
        self.inner.observe(observer.clone());
        // Either this sees the end, or the end sees the observer.
        if let (Some(end), Some(observer)) = (self.end.get(), observer.upgrade()) {
            observer.ended(*end);
        }
    }
}
