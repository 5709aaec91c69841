//! Release and renewal by the client; the defects of both are here.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, FencingToken, LockError, LockName, LossReason,
    backend::{Entry, Lease, RenewOutcome, Renewer, ensure_runtime},
};

use crate::{
    client::Client,
    defects::simulated::Defect,
    state::{Request, State},
    store::{Store, locked},
};

/// A guard's entry.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) client: Arc<Client>,
    pub(crate) request: Request,
    pub(crate) lease: Arc<Lease>,
    /// Set once the entry should have been released where there is no runtime.
    pub(crate) asked: AtomicBool,
}

#[async_trait]
impl Entry for Held {
    async fn release(&self) -> Result<bool, LockError> {
        // Cases release in their own future; the release that runs in a task is the background
        // release of a dropped guard.
        if self.client.has(Defect::DroppedGuardKeepsItsEntry) && tokio::task::try_id().is_some() {
            return Ok(true);
        }
        let guards = &self.client.guards;
        if self.client.has(Defect::EndOfTheRuntimeReleasesNothing)
            && guards.tasks().have_moved()
            && !guards.closing().has_fired()
        {
            return Ok(true);
        }
        if self.client.has(Defect::MaxHoldKeepsTheEntry)
            && self.lease.deadline() == Err(LossReason::MaxHold)
        {
            return Ok(true);
        }
        locked(&self.client.triggers).remove(self.request.owner.as_str());
        let name = self.request.name.clone();
        let owner = self.request.owner.clone();
        self.client
            .store
            .call(move |state, _| state.remove(&name, &owner))
            .await
    }

    fn release_now(&self) -> Option<bool> {
        // A release asks this first. The drop of the guard asks again, and is told that nothing is
        // left to do.
        let forgets =
            self.client.has(Defect::FailedReleaseIsForgotten) && ensure_runtime().is_err();
        (forgets && self.asked.swap(true, SeqCst)).then_some(true)
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        let request = self.request.clone();
        let raised = self
            .client
            .store
            .call(move |state, _| state.raise(&request, at_least))
            .await?;
        raised.ok_or_else(|| LockError::new(ErrorKind::Lost, "somebody else holds it"))
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
        let requests = batch.to_vec();
        let misdirected = locked(&self.misdirected).clone();
        let renewed = move |state: &mut State, now| {
            let renew = |request: &Arc<Request>| {
                misdirected.contains(&request.name) || state.renew(request, now)
            };
            requests.iter().map(renew).collect::<Vec<_>>()
        };
        let outcomes = self.store.call(renewed).await;
        let outcome = |(at, request): (usize, &Arc<Request>)| match (&outcomes, self.store.defect) {
            (Ok(renewed), _) if renewed[at] => RenewOutcome::Renewed(request.ttl),
            (Ok(_), Defect::NotHeldIsRetried) => {
                RenewOutcome::Failed(LockError::new(ErrorKind::Unavailable, "not held"))
            }
            (Ok(_), _) => RenewOutcome::NotHeld,
            (Err(_), Defect::FailedRenewalIsSilent) => RenewOutcome::Renewed(request.ttl),
            (Err(_), Defect::FailedRenewalIsALoss) => RenewOutcome::NotHeld,
            (Err(error), _) => {
                RenewOutcome::Failed(LockError::new(error.kind(), "no answer").indeterminate())
            }
        };
        batch.iter().enumerate().map(outcome).collect()
    }
}
