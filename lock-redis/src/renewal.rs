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
use redis::Value;

use crate::{
    error::Failure,
    keys::Keys,
    replicas::Replicas,
    scripts::{self, millis},
    transport::reconnect::Connection,
    transport::routing::Servers,
};

/// Extends leases, a batch in one round trip to each server.
#[derive(Debug)]
pub(crate) struct RedisRenewer {
    pub(crate) servers: Arc<Servers>,
    /// Replicas that must confirm the renewal.
    pub(crate) replicas: Option<Arc<Replicas>>,
}

/// One lock to keep.
#[derive(Debug)]
pub(crate) struct StoredEntry {
    pub(crate) keys: Keys,
    pub(crate) owner: OwnerId,
    pub(crate) ttl: Duration,
    /// How long the counter outlives the lease.
    pub(crate) counter_ttl: Duration,
    /// For how much of the TTL a guard relies on it.
    pub(crate) validity: Duration,
}

impl StoredEntry {
    /// Returns what the companion's TTL is set to together with the lock's, in milliseconds.
    pub(crate) fn companion_ttl(&self) -> u64 {
        millis(self.ttl + self.counter_ttl)
    }
}

#[async_trait]
impl Renewer for RedisRenewer {
    type Item = StoredEntry;

    async fn renew(&self, batch: &[Arc<StoredEntry>]) -> Vec<RenewOutcome> {
        if let Some(replicas) = &self.replicas {
            return confirmed(replicas, batch).await;
        }
        let mut outcomes: Vec<_> = batch.iter().map(|_| None).collect();
        let groups = self
            .servers
            .group(batch.iter().map(|stored| &*stored.keys.lock));
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
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(missing))
            .collect()
    }
}

/// Returns how long to wait for those servers of a cluster that do not answer. After a third of the
/// validity the lease keeper would give up what the others have renewed as well.
fn limit(batch: &[Arc<StoredEntry>]) -> Duration {
    // Four fifths of a third.
    batch
        .iter()
        .map(|stored| stored.validity)
        .min()
        .unwrap_or_default()
        * 4
        / 15
}

/// Renews and has replicas confirm it, over a connection that no acquisition uses. What they have
/// not confirmed is not renewed.
async fn confirmed(replicas: &Arc<Replicas>, batch: &[Arc<StoredEntry>]) -> Vec<RenewOutcome> {
    match replicas.renew(batch.to_vec()).await {
        Ok(answers) => batch
            .iter()
            .zip(answers)
            .map(|(stored, answer)| outcome(stored, answer))
            .collect(),
        Err(error) => {
            tracing::debug!(%error, "renewals are not confirmed");
            let failed = |_| {
                RenewOutcome::Failed(LockError::new(
                    error.kind(),
                    "too few replicas confirmed the renewal",
                ))
            };
            batch.iter().map(failed).collect()
        }
    }
}

impl RedisRenewer {
    /// Renews what one server keeps.
    async fn renew_group(&self, group: &[Arc<StoredEntry>], until: Instant) -> Vec<RenewOutcome> {
        let Some(first) = group.first() else {
            return Vec::new();
        };
        let mut route = self.servers.route(&first.keys.lock);
        let answers = async { renew_all(&route.renewals().await?, group).await };
        match self
            .servers
            .in_cluster_within(Some(left(until)), answers)
            .await
        {
            Ok(answers) => {
                let route = &route;
                let renewals = group
                    .iter()
                    .zip(answers)
                    .map(|(stored, answer)| async move {
                        let Err(failure) = answer else {
                            return outcome(stored, answer);
                        };
                        route.note(&failure);
                        if failure.redirection().is_none() {
                            return outcome(stored, Err(failure));
                        }
                        outcome(
                            stored,
                            self.servers
                                .in_cluster_within(
                                    Some(left(until)),
                                    self.renew_where_it_is(stored),
                                )
                                .await,
                        )
                    });
                join_all(renewals).await
            }
            Err(failure) => {
                route.note(&failure);
                group
                    .iter()
                    .map(|_| RenewOutcome::Failed(failure.clone().into()))
                    .collect()
            }
        }
    }

    /// Renews a lock that another server keeps now.
    async fn renew_where_it_is(&self, stored: &Arc<StoredEntry>) -> Result<Value, Failure> {
        let mut route = self.servers.route(&stored.keys.lock);
        loop {
            let connection = route.renewals().await?;
            let mut answers = renew_all(&connection, std::slice::from_ref(stored)).await?;
            match answers.pop() {
                Some(Err(failure)) if route.follow(&failure).await => {}
                Some(answer) => return answer.map_err(|failure| self.servers.given_up(failure)),
                None => return Err(Failure::unexpected("no answer to a renewal")),
            }
        }
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// One answer for each lease of the batch.
pub(crate) async fn renew_all(
    connection: &Connection,
    batch: &[Arc<StoredEntry>],
) -> Result<Vec<Result<Value, Failure>>, Failure> {
    connection
        .run_script_for_all(
            &scripts::RENEW,
            batch.iter().map(|stored| &stored.keys),
            |at, command| {
                let stored = &*batch[at];
                command
                    .arg(stored.owner.as_str())
                    .arg(millis(stored.ttl))
                    .arg(stored.companion_ttl());
            },
        )
        .await
}

fn outcome(stored: &StoredEntry, answer: Result<Value, Failure>) -> RenewOutcome {
    match answer {
        Ok(Value::Int(1)) => RenewOutcome::Renewed(stored.validity),
        Ok(Value::Int(0)) => RenewOutcome::NotHeld,
        Ok(_) => RenewOutcome::Failed(Failure::unexpected("neither 0 nor 1 from a renewal").into()),
        Err(failure) => RenewOutcome::Failed(failure.into()),
    }
}
