use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{
    ErrorKind, LockError,
    backend::{RenewOutcome, Renewer},
};
use redis::Value;

use crate::{
    error::Failure,
    quorum::{
        capabilities::BACKEND,
        majority::Count,
        server::{QuorumServer, QuorumServers},
    },
    renewal::{StoredEntry, renew_all},
};

/// Extends leases on all servers: renewed if a majority renewed, over if a majority has it no more.
#[derive(Debug)]
pub(crate) struct QuorumRenewer {
    pub(crate) quorum: Arc<QuorumServers>,
}

#[async_trait]
impl Renewer for QuorumRenewer {
    type Item = StoredEntry;

    async fn renew(&self, batch: &[Arc<StoredEntry>]) -> Vec<RenewOutcome> {
        let leases: Arc<[_]> = batch.into();
        let mut answers = self
            .quorum
            .ask(|member| renew_on(member, Arc::clone(&leases)));
        let mut tallies = vec![Count::new(self.quorum.majority()); batch.len()];
        while !tallies.iter().all(Count::is_complete)
            && let Some((_, answer)) = answers.next().await
        {
            let mut answer = answer.unwrap_or_default().into_iter();
            tallies
                .iter_mut()
                .for_each(|count| count.count(answer.next().flatten()));
        }
        batch
            .iter()
            .zip(tallies)
            .map(|(stored, count)| outcome(stored, &count))
            .collect()
    }
}

/// Returns whether each lease was extended, where the server's answer tells.
async fn renew_on(
    member: Arc<QuorumServer>,
    leases: Arc<[Arc<StoredEntry>]>,
) -> Result<Vec<Option<bool>>, Failure> {
    let Some(first) = leases.first() else {
        return Ok(Vec::new());
    };
    let connection = member.renewals(&first.keys.lock).await?;
    let answers = member.heard(renew_all(&connection, &leases).await)?;
    let renewed = |answer| match answer {
        Ok(Value::Int(renewed @ 0..=1)) => Some(renewed == 1),
        _ => None,
    };
    Ok(answers.into_iter().map(renewed).collect())
}

fn outcome(stored: &StoredEntry, count: &Count) -> RenewOutcome {
    match count.verdict() {
        Some(true) => RenewOutcome::Renewed(stored.validity),
        Some(false) => RenewOutcome::NotHeld,
        None => RenewOutcome::Failed(
            LockError::new(
                ErrorKind::Unavailable,
                "no majority of the servers answered the renewal",
            )
            .on(BACKEND),
        ),
    }
}
