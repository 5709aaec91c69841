use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use lock_core::{
    ErrorKind, FencingToken, LockError, LossReason,
    backend::{Entry, RenewOutcome, Renewer, ensure_runtime},
};

use crate::{MemStore, entry::MemEntry};

/// The entry of a guard, with the store that it is in.
#[derive(Debug)]
pub(crate) struct HeldEntry {
    pub(crate) store: MemStore,
    pub(crate) entry: Arc<MemEntry>,
}

/// Highest number that a token may be raised to, so that numbers never run out.
const LAST_TOKEN: FencingToken = FencingToken::new(u64::MAX / 2);

#[async_trait]
impl Entry for HeldEntry {
    async fn release(&self) -> Result<bool, LockError> {
        let request = self.store.ask(&self.entry.key, |queue, now, wake| {
            queue.leave(now, self.entry.number(), wake)
        });
        tokio::select! {
            biased;
            outcome = request => outcome.map(|(_, held)| held),
            () = tokio::time::sleep(self.entry.ttl) => {
                Err(LockError::new(ErrorKind::Unavailable, "no answer within the TTL").indeterminate())
            }
        }
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        if at_least > LAST_TOKEN {
            let message = format!(
                "the token {at_least} is beyond {LAST_TOKEN}, up to which this store counts"
            );
            return Err(LockError::new(ErrorKind::InvalidOptions, message));
        }
        let at_least = at_least.as_u64();
        ensure_runtime()?;
        let request = self.store.ask(&self.entry.key, |queue, now, wake| {
            queue.raise(now, self.entry.number(), at_least, wake)
        });
        let unanswered =
            |_| LockError::new(ErrorKind::Unavailable, "no answer within the TTL").indeterminate();
        let (_, raised) = tokio::time::timeout(self.entry.ttl, request)
            .await
            .map_err(unanswered)??;
        let Some(raised) = raised else {
            return Err(LockError::new(
                ErrorKind::Lost,
                LossReason::Removed.to_string(),
            ));
        };
        Ok(FencingToken::new(raised))
    }

    fn release_now(&self) -> Option<bool> {
        self.store
            .ask_now(&self.entry.key, |queue, now, wake| {
                queue.leave(now, self.entry.number(), wake)
            })
            .map(|(_, held)| held)
    }
}

/// Renews in the store that each entry is in.
#[derive(Debug)]
pub(crate) struct MemRenewer(pub(crate) MemStore);

#[async_trait]
impl Renewer for MemRenewer {
    type Item = MemEntry;

    async fn renew(&self, batch: &[Arc<MemEntry>]) -> Vec<RenewOutcome> {
        // Together, as over a pipeline: replies that are late are late once.
        join_all(batch.iter().map(|entry| self.renew_one(entry))).await
    }
}

impl MemRenewer {
    async fn renew_one(&self, entry: &MemEntry) -> RenewOutcome {
        let renewed = self.0.ask(&entry.key, |queue, now, wake| {
            queue.renew(now, entry.number(), entry.ttl, wake)
        });
        match renewed.await {
            Ok((_, true)) => RenewOutcome::Renewed(entry.ttl),
            Ok((_, false)) => RenewOutcome::NotHeld,
            Err(error) => RenewOutcome::Failed(error),
        }
    }
}
