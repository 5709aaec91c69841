use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::{
    AcquisitionObserver, ErrorKind, FencingToken, GuardState, LockError, LockGuard, LockName,
    OwnerId, backend::locked,
};
use tracing::{Span, field::Empty};

use crate::{observed::GuardObserver, words};

/// The spans of one acquisition.
#[derive(Debug)]
pub(super) struct Hold {
    name: LockName,
    backend: Arc<str>,
    owner: OwnerId,
    /// Time that was left when it was granted.
    granted: Duration,
    renewals: AtomicU64,
    /// Open until the acquisition ends.
    hold: Mutex<Option<Span>>,
    /// Open while it is released, perhaps by several attempts.
    release: Mutex<Option<Span>>,
}

impl Hold {
    pub(super) fn new(
        name: &LockName,
        backend: &Arc<str>,
        guard: &LockGuard,
        acquire: &Span,
    ) -> Self {
        let hold = tracing::info_span!(
            "lock.hold",
            lock.name = name.as_str(),
            lock.backend = &**backend,
            lock.owner = guard.owner().as_str(),
            lock.token = guard.token().map(FencingToken::as_u64),
            lock.outcome = Empty,
            lock.loss.reason = Empty,
            lock.renewals = Empty,
        );
        hold.follows_from(acquire);
        Self {
            name: name.clone(),
            backend: Arc::clone(backend),
            owner: guard.owner().clone(),
            granted: guard.remaining(),
            renewals: AtomicU64::new(0),
            hold: Mutex::new(Some(hold)),
            release: Mutex::new(None),
        }
    }

    fn release_span(&self) -> Span {
        let span = tracing::info_span!(
            "lock.release",
            otel.kind = "client",
            lock.name = self.name.as_str(),
            lock.backend = &*self.backend,
            lock.owner = self.owner.as_str(),
            lock.outcome = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
        );
        if let Some(hold) = &*locked(&self.hold) {
            span.follows_from(hold);
        }
        span
    }
}

impl AcquisitionObserver for Hold {
    fn renewed(&self, margin: Duration) {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        let Some(span) = locked(&self.hold).clone() else {
            return;
        };
        if margin < self.granted / 3 {
            tracing::warn!(parent: &span, backend = &*self.backend, name = %self.name, ?margin, "lease renewed late");
        } else {
            tracing::trace!(parent: &span, ?margin, "lease renewed");
        }
    }

    fn ended(&self, end: GuardState) {
        let Some(span) = locked(&self.hold).take() else {
            return;
        };
        span.record("lock.renewals", self.renewals.load(Ordering::Relaxed));
        match end {
            GuardState::Lost(reason) => {
                span.record("lock.outcome", words::LOST);
                span.record("lock.loss.reason", words::reason(reason));
            }
            GuardState::Held | GuardState::Released | _ => {
                span.record("lock.outcome", words::RELEASED);
            }
        }
    }
}

impl GuardObserver for Hold {
    fn release_begins(&self) -> Span {
        let mut release = locked(&self.release);
        release.get_or_insert_with(|| self.release_span()).clone()
    }

    fn release_ends(&self, outcome: &Result<(), LockError>) {
        let Some(span) = locked(&self.release).take() else {
            return;
        };
        let Err(error) = outcome else {
            span.record("lock.outcome", words::RELEASED);
            tracing::debug!(parent: &span, "lock released");
            return;
        };
        span.record("lock.outcome", words::kind(error.kind()));
        super::note_error(&span, error);
        match error.kind() {
            ErrorKind::Lost => tracing::debug!(parent: &span, %error, "lock released late"),
            _ => tracing::warn!(parent: &span, %error, "lock not released"),
        }
    }
}
