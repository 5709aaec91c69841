use std::{
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    Acquisition, AcquisitionObserver, AcquisitionStatus, Ended, FencingToken, GuardState,
    LockError, LockGuard, LockName, OwnerId,
    backend::{Lease, locked},
};
use tokio_util::sync::CancellationToken;

use super::Ticket;
use crate::capabilities::BACKEND;

/// The part of a guard that is valid as long as the membership. Joined with the guard's other
/// parts, it makes the guard lost when the membership is, and gives the ticket back when the guard
/// ends.
#[derive(Debug)]
pub(super) struct Share {
    status: Arc<ShareStatus>,
    ticket: Mutex<Option<Ticket>>,
}

#[derive(Debug)]
struct ShareStatus {
    name: LockName,
    owner: OwnerId,
    membership: Arc<Lease>,
    /// Fires with the end of the membership, and with this share's.
    over: CancellationToken,
    end: OnceLock<GuardState>,
}

impl Share {
    /// The ticket's part of the guard that it led to.
    pub(super) fn guard(
        ticket: Ticket,
        guard: &LockGuard,
        membership: Arc<Lease>,
        over: &CancellationToken,
    ) -> LockGuard {
        let status = Arc::new(ShareStatus {
            name: guard.name().clone(),
            owner: guard.owner().clone(),
            membership,
            over: over.child_token(),
            end: OnceLock::new(),
        });
        LockGuard::new(Arc::new(Self {
            status,
            ticket: Mutex::new(Some(ticket)),
        }))
    }

    fn end(&self) {
        if self.status.state() == GuardState::Held {
            let _ = self.status.end.set(GuardState::Released);
        }
        self.status.over.cancel();
        drop(locked(&self.ticket).take());
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Share {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        self.end();
        // The guard as a whole reports its loss.
        Some(Ok(()))
    }

    async fn release(&self) -> Result<(), LockError> {
        self.end();
        Ok(())
    }

    fn release_in_background(self: Arc<Self>) {
        self.end();
    }

    async fn extend(&self) -> Result<(), LockError> {
        Ok(())
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        Ok(at_least)
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for ShareStatus {
    fn backend(&self) -> &str {
        BACKEND
    }

    fn name(&self) -> &LockName {
        &self.name
    }

    fn owner(&self) -> &OwnerId {
        &self.owner
    }

    fn token(&self) -> Option<FencingToken> {
        None
    }

    fn state(&self) -> GuardState {
        if let Some(end) = self.end.get() {
            return *end;
        }
        match self.membership.deadline() {
            Ok(_) => GuardState::Held,
            Err(reason) => *self.end.get_or_init(|| GuardState::Lost(reason)),
        }
    }

    fn remaining(&self) -> Duration {
        match self.state() {
            GuardState::Held => self.membership.remaining(),
            _ => Duration::ZERO,
        }
    }

    fn ended(self: Arc<Self>) -> Ended {
        Box::pin(async move {
            self.over.cancelled().await;
            self.state()
        })
    }

    /// The guard's other parts tell.
    fn observe(&self, _observer: Weak<dyn AcquisitionObserver>) {}
}
