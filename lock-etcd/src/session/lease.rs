use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::LeaseGrantOptions;
use lock_core::{
    ErrorKind, LockError, Operation,
    backend::{RenewOutcome, Renewer},
};

use crate::{error::Failure, transport::Cluster};

/// A lease as the store granted it.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantedLease {
    pub(super) id: i64,
    pub(super) ttl: Duration,
}

/// Grants a lease with this id, or finds that an earlier attempt has.
pub(super) async fn grant(
    cluster: &Cluster,
    id: i64,
    ttl: Duration,
) -> Result<GrantedLease, LockError> {
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let answer = cluster.call(|client| {
        let mut leases = client.lease_client();
        let options = LeaseGrantOptions::new().with_id(id);
        async move { leases.grant(seconds, Some(options)).await }
    });
    let ttl = match answer.await {
        Ok(answer) => ttl_of(answer.ttl())?,
        // An attempt without an answer has granted it.
        Err(failure) if already_exists(&failure) => granted_ttl(cluster, id)
            .await
            .map_err(LockError::indeterminate)?,
        Err(failure) => return Err(failure.error),
    };
    Ok(GrantedLease { id, ttl })
}

fn already_exists(failure: &Failure) -> bool {
    failure.error.to_string().contains("lease already exists")
}

async fn granted_ttl(cluster: &Cluster, id: i64) -> Result<Duration, LockError> {
    let answer = cluster.call(|client| {
        let mut leases = client.lease_client();
        async move { leases.time_to_live(id, None).await }
    });
    ttl_of(answer.await.map_err(|failure| failure.error)?.granted_ttl())
}

fn ttl_of(seconds: i64) -> Result<Duration, LockError> {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(LockError::new(
            ErrorKind::Protocol,
            format!("the server granted a lease of {seconds} seconds"),
        )),
    }
}

/// Extends a lease by its TTL.
///
/// Opens a stream for each renewal: there is one in a third of a TTL, and no stream that can hang
/// unnoticed between two of them.
pub(super) async fn renew(cluster: &Cluster, id: i64, time: Duration) -> Result<(), Failure> {
    cluster
        .call_within(time, |client| {
            let mut leases = client.lease_client();
            // Waits for the server's answer; a lease that is gone is an error.
            async move { leases.keep_alive(id).await.map(drop) }
        })
        .await
}

/// Revokes a lease and tells whether it existed. If that fails, it runs out by itself.
pub(super) async fn revoke(cluster: &Cluster, id: i64) -> Result<bool, Failure> {
    let outcome = cluster.call(|client| {
        let mut leases = client.lease_client();
        async move { leases.revoke(id).await }
    });
    match outcome.await {
        Ok(_) => Ok(true),
        Err(failure) if failure.lease_gone => Ok(false),
        Err(failure) => {
            tracing::debug!(error = %failure.error, "lease not revoked, it runs out with its TTL");
            Err(failure)
        }
    }
}

/// Renews leases for the keeper.
#[derive(Debug)]
pub(super) struct LeaseRenewer {
    pub(super) cluster: Arc<Cluster>,
}

#[async_trait]
impl Renewer for LeaseRenewer {
    type Item = GrantedLease;

    async fn renew(&self, batch: &[Arc<GrantedLease>]) -> Vec<RenewOutcome> {
        futures_util::future::join_all(batch.iter().map(|lease| self.renew_one(**lease))).await
    }
}

impl LeaseRenewer {
    async fn renew_one(&self, lease: GrantedLease) -> RenewOutcome {
        // The keeper waits no longer, so that the next renewal counts from a later instant.
        match renew(&self.cluster, lease.id, lease.ttl / 3).await {
            Ok(()) => RenewOutcome::Renewed(lease.ttl),
            Err(failure) if failure.lease_gone => RenewOutcome::NotHeld,
            Err(failure) => RenewOutcome::Failed(failure.error.during(Operation::Renew)),
        }
    }
}
