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
        majority::Tally,
        member::{Member, Members},
    },
    renewal::{Kept, renew_all},
};

/// Extends leases on all servers: renewed if a majority renewed, over if a majority has it no more.
#[derive(Debug)]
pub(crate) struct QuorumRenewer {
    pub(crate) members: Arc<Members>,
}

#[async_trait]
impl Renewer for QuorumRenewer {
    type Item = Kept;

    async fn renew(&self, batch: &[Arc<Kept>]) -> Vec<RenewOutcome> {
        let leases: Arc<[_]> = batch.into();
        let mut answers = self.members.ask(|member| renew_on(member, Arc::clone(&leases)));
        let mut tallies = vec![Tally::new(self.members.majority()); batch.len()];
        while !tallies.iter().all(Tally::is_complete)
            && let Some((_, answer)) = answers.next().await
        {
            let mut answer = answer.unwrap_or_default().into_iter();
            tallies.iter_mut().for_each(|tally| tally.count(answer.next().flatten()));
        }
        batch.iter().zip(tallies).map(|(kept, tally)| outcome(kept, &tally)).collect()
    }
}

/// Whether each lease was extended, where the server's answer tells.
async fn renew_on(member: Arc<Member>, leases: Arc<[Arc<Kept>]>) -> Result<Vec<Option<bool>>, Failure> {
    let Some(first) = leases.first() else { return Ok(Vec::new()) };
    let connection = member.connection(&first.keys.lock).await?;
    let answers = member.heard(renew_all(&connection, &leases).await)?;
    let renewed = |answer| match answer {
        Ok(Value::Int(renewed @ 0..=1)) => Some(renewed == 1),
        _ => None,
    };
    Ok(answers.into_iter().map(renewed).collect())
}

fn outcome(kept: &Kept, tally: &Tally) -> RenewOutcome {
    match tally.verdict() {
        Some(true) => RenewOutcome::Renewed(kept.validity),
        Some(false) => RenewOutcome::NotHeld,
        None => RenewOutcome::Failed(LockError::new(ErrorKind::Unavailable, "no majority of the servers answered the renewal").on(BACKEND)),
    }
}
