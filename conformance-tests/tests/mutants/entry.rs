//! How the client releases and renews; the defects of both are here.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, LockError, LockName, LossReason,
    backend::{Entry, Lease, RenewOutcome, Renewer},
};

use crate::{
    client::Client,
    defect::Defect,
    state::{Request, State},
    store::{Store, locked},
};

/// A guard's entry.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) client: Arc<Client>,
    pub(crate) request: Request,
    pub(crate) lease: Arc<Lease>,
}

#[async_trait]
impl Entry for Held {
    async fn release(&self) -> Result<bool, LockError> {
        // Cases release in their own future; what runs in a task is the background release of a dropped guard.
        if self.client.has(Defect::DroppedGuardKeepsItsEntry) && tokio::task::try_id().is_some() {
            return Ok(true);
        }
        if self.client.has(Defect::MaxHoldKeepsTheEntry) && self.lease.deadline() == Err(LossReason::MaxHold) {
            return Ok(true);
        }
        locked(&self.client.triggers).remove(self.request.owner.as_str());
        let (name, owner) = (self.request.name.clone(), self.request.owner.clone());
        self.client.store.call(move |state, _| state.remove(&name, &owner)).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        locked(&self.client.triggers).remove(self.request.owner.as_str());
    }
}

#[derive(Debug)]
pub(crate) struct Renewals {
    pub(crate) store: Arc<Store>,
    pub(crate) misdirected: Arc<Mutex<BTreeSet<LockName>>>,
}

#[async_trait]
impl Renewer for Renewals {
    type Item = Request;

    async fn renew(&self, batch: &[Arc<Request>]) -> Vec<RenewOutcome> {
        let (requests, misdirected) = (batch.to_vec(), locked(&self.misdirected).clone());
        let renewed = move |state: &mut State, now| {
            let renew = |request: &Arc<Request>| misdirected.contains(&request.name) || state.renew(request, now);
            requests.iter().map(renew).collect::<Vec<_>>()
        };
        let outcomes = self.store.call(renewed).await;
        let outcome = |(at, request): (usize, &Arc<Request>)| match (&outcomes, self.store.defect) {
            (Ok(renewed), _) if renewed[at] => RenewOutcome::Renewed(request.ttl),
            (Ok(_), Defect::NotHeldIsRetried) => RenewOutcome::Failed(LockError::new(ErrorKind::Unavailable, "not held")),
            (Ok(_), _) => RenewOutcome::NotHeld,
            (Err(_), Defect::FailedRenewalIsSilent) => RenewOutcome::Renewed(request.ttl),
            (Err(_), Defect::FailedRenewalIsALoss) => RenewOutcome::NotHeld,
            (Err(error), _) => RenewOutcome::Failed(LockError::new(error.kind(), "no answer").indeterminate()),
        };
        batch.iter().enumerate().map(outcome).collect()
    }
}
