use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    OwnerId,
    backend::{RenewOutcome, Renewer},
};
use redis::{Cmd, Pipeline, Value};

use crate::{
    error::Failure,
    keys::Keys,
    link::{Connection, Link},
    scripts::{self, millis},
};

/// Extends leases, a batch in one round trip.
#[derive(Debug)]
pub(crate) struct RedisRenewer {
    pub(crate) link: Arc<Link>,
}

/// One lock to keep.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) keys: Keys,
    pub(crate) owner: OwnerId,
    pub(crate) ttl: Duration,
}

#[async_trait]
impl Renewer for RedisRenewer {
    type Item = Kept;

    async fn renew(&self, batch: &[Arc<Kept>]) -> Vec<RenewOutcome> {
        let outcomes = async {
            let connection = self.link.connection().await?;
            renew_all(&connection, batch).await
        };
        match outcomes.await {
            Ok(answers) => batch.iter().zip(answers).map(|(kept, answer)| outcome(kept, answer)).collect(),
            Err(failure) => batch.iter().map(|_| RenewOutcome::Failed(failure.clone().into())).collect(),
        }
    }
}

async fn renew_all(connection: &Connection, batch: &[Arc<Kept>]) -> Result<Vec<Result<Value, Failure>>, Failure> {
    let by_hash = pipeline(batch, |keys| scripts::RENEW.by_hash(keys));
    let mut answers = connection.run_all(&by_hash, batch.len()).await?;
    let unknown: Vec<_> = (0..answers.len()).filter(|at| answers[*at].as_ref().is_err_and(Failure::is_unknown_script)).collect();
    if !unknown.is_empty() {
        let again: Vec<_> = unknown.iter().filter_map(|at| batch.get(*at).cloned()).collect();
        let in_full = pipeline(&again, |keys| scripts::RENEW.in_full(keys));
        for (at, answer) in unknown.into_iter().zip(connection.run_all(&in_full, again.len()).await?) {
            answers[at] = answer;
        }
    }
    Ok(answers)
}

fn pipeline(batch: &[Arc<Kept>], script: impl Fn(&Keys) -> Cmd) -> Pipeline {
    let mut pipeline = redis::pipe();
    for kept in batch {
        let mut command = script(&kept.keys);
        command.arg(kept.owner.as_str()).arg(millis(kept.ttl)).arg(scripts::companion_ttl(kept.ttl));
        pipeline.add_command(command);
    }
    pipeline
}

fn outcome(kept: &Kept, answer: Result<Value, Failure>) -> RenewOutcome {
    match answer {
        Ok(Value::Int(1)) => RenewOutcome::Renewed(kept.ttl),
        Ok(Value::Int(0)) => RenewOutcome::NotHeld,
        Ok(_) => RenewOutcome::Failed(Failure::unexpected("neither 0 nor 1 from a renewal").into()),
        Err(failure) => RenewOutcome::Failed(failure.into()),
    }
}
