use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use lock_core::{
    LockError, OwnerId,
    backend::{RenewOutcome, Renewer},
};
use redis::{Cmd, Pipeline, Value};

use crate::{
    error::Failure,
    keys::Keys,
    link::Connection,
    replicas::Replicas,
    scripts::{self, millis},
    servers::Servers,
};

/// Extends leases, a batch in one round trip to each server.
#[derive(Debug)]
pub(crate) struct RedisRenewer {
    pub(crate) servers: Arc<Servers>,
    /// Who must confirm what was renewed.
    pub(crate) replicas: Option<Arc<Replicas>>,
}

/// One lock to keep.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) keys: Keys,
    pub(crate) owner: OwnerId,
    pub(crate) ttl: Duration,
    /// For how much of the TTL a guard relies on it.
    pub(crate) validity: Duration,
}

#[async_trait]
impl Renewer for RedisRenewer {
    type Item = Kept;

    async fn renew(&self, batch: &[Arc<Kept>]) -> Vec<RenewOutcome> {
        let mut outcomes: Vec<_> = batch.iter().map(|_| None).collect();
        let groups = self.servers.group(batch.iter().map(|kept| &*kept.keys.lock));
        let until = Instant::now() + limit(batch);
        let renewals = groups.iter().map(|places| async move {
            let group: Vec<_> = places.iter().map(|at| Arc::clone(&batch[*at])).collect();
            (places, self.renew_group(&group, until).await)
        });
        for (places, renewed) in join_all(renewals).await {
            for (at, outcome) in places.iter().zip(renewed) {
                outcomes[*at] = Some(outcome);
            }
        }
        let missing = || RenewOutcome::Failed(Failure::unexpected("no answer to a renewal").into());
        let mut outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect();
        if let Some(replicas) = &self.replicas {
            confirm(replicas, batch, &mut outcomes).await;
        }
        outcomes
    }
}

/// How long to wait for those servers of a cluster that do not answer. After a third of the validity the keeper would give up what the
/// others have renewed as well.
fn limit(batch: &[Arc<Kept>]) -> Duration {
    // Four fifths of a third.
    batch.iter().map(|kept| kept.validity).min().unwrap_or_default() * 4 / 15
}

/// What replicas have not confirmed is not renewed. They are all renewed once more on the way, for it may lead to another server.
async fn confirm(replicas: &Arc<Replicas>, batch: &[Arc<Kept>], outcomes: &mut [RenewOutcome]) {
    let renewed: Vec<_> = (0..batch.len()).filter(|at| matches!(outcomes[*at], RenewOutcome::Renewed(_))).collect();
    if renewed.is_empty() {
        return;
    }
    match replicas.confirm_all(renewed.iter().map(|at| Arc::clone(&batch[*at])).collect()).await {
        Ok(answers) => {
            for (at, answer) in renewed.into_iter().zip(answers) {
                outcomes[at] = outcome(&batch[at], answer);
            }
        }
        Err(error) => {
            tracing::debug!(%error, "renewals are not confirmed");
            for at in renewed {
                outcomes[at] = RenewOutcome::Failed(LockError::new(error.kind(), "too few replicas confirmed the renewal"));
            }
        }
    }
}

impl RedisRenewer {
    /// Renews what one server keeps.
    async fn renew_group(&self, group: &[Arc<Kept>], until: Instant) -> Vec<RenewOutcome> {
        let Some(first) = group.first() else { return Vec::new() };
        let mut route = self.servers.route(&first.keys.lock);
        let answers = async { renew_all(&route.commands().await?, group).await };
        match self.servers.in_cluster_within(Some(left(until)), answers).await {
            Ok(answers) => {
                let route = &route;
                let renewals = group.iter().zip(answers).map(|(kept, answer)| async move {
                    let Err(failure) = answer else { return outcome(kept, answer) };
                    route.note(&failure);
                    if failure.redirection().is_none() {
                        return outcome(kept, Err(failure));
                    }
                    outcome(kept, self.servers.in_cluster_within(Some(left(until)), self.renew_where_it_is(kept)).await)
                });
                join_all(renewals).await
            }
            Err(failure) => {
                route.note(&failure);
                group.iter().map(|_| RenewOutcome::Failed(failure.clone().into())).collect()
            }
        }
    }

    /// Renews a lock that another server keeps now.
    async fn renew_where_it_is(&self, kept: &Arc<Kept>) -> Result<Value, Failure> {
        let renew = |connection: Connection| async move {
            let mut answers = renew_all(&connection, std::slice::from_ref(kept)).await?;
            answers.pop().unwrap_or_else(|| Err(Failure::unexpected("no answer to a renewal")))
        };
        self.servers.at(&kept.keys.lock, renew).await
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// One answer for each lease of the batch.
pub(crate) async fn renew_all(connection: &Connection, batch: &[Arc<Kept>]) -> Result<Vec<Result<Value, Failure>>, Failure> {
    // The first in full is what the others are known by.
    let mut tell = !connection.has_run(&scripts::RENEW);
    let first_in_full = pipeline(batch, |keys| match std::mem::take(&mut tell) {
        true => scripts::RENEW.in_full(keys),
        false => scripts::RENEW.by_hash(keys),
    });
    let mut answers = connection.run_all(&first_in_full, batch.len()).await?;
    if answers.first().is_some_and(Result::is_ok) {
        connection.ran(&scripts::RENEW);
    }
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

fn pipeline(batch: &[Arc<Kept>], mut script: impl FnMut(&Keys) -> Cmd) -> Pipeline {
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
        Ok(Value::Int(1)) => RenewOutcome::Renewed(kept.validity),
        Ok(Value::Int(0)) => RenewOutcome::NotHeld,
        Ok(_) => RenewOutcome::Failed(Failure::unexpected("neither 0 nor 1 from a renewal").into()),
        Err(failure) => RenewOutcome::Failed(failure.into()),
    }
}
