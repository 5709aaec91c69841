use std::time::Duration;

use etcd_client::{GetOptions, LeaseTimeToLiveOptions, Txn, TxnOp, TxnOpResponse};

use crate::{
    entry_numbers::EntryNumbers,
    error::Failure,
    key::parse,
    transport::{Cluster, KnownStore, StorePosition},
};

/// The period at which the entries under each lease are compared with those of this client.
pub(crate) const CHECK_PERIOD: Duration = Duration::from_secs(10);
/// The number of keys that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;

/// Looks for removed entries that are back under the lease of a session because the store went
/// back. They block their locks for as long as the lease is renewed, and a client that asks the
/// store for nothing would not notice.
pub(crate) async fn check(cluster: &Cluster, namespace: &str, lease: i64, numbers: &EntryNumbers) {
    if let Err(failure) = find(cluster, namespace, lease, numbers).await {
        tracing::debug!(error = %failure.error, "restored entries were not looked for");
    }
}

async fn find(
    cluster: &Cluster,
    namespace: &str,
    lease: i64,
    numbers: &EntryNumbers,
) -> Result<(), Failure> {
    let known = cluster.history().known();
    let answer = cluster.call(|etcd| {
        let mut leases = etcd.lease_client();
        async move {
            leases
                .time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys()))
                .await
        }
    });
    let answer = answer.await?;
    if let Some(position) = StorePosition::of(answer.header()) {
        cluster.history().note(known, position);
    }
    let is_unknown = |key: &Vec<u8>| {
        parse(namespace, key).is_some_and(|(name, number)| !numbers.is_in_use(&name, number))
    };
    let suspects: Vec<_> = answer
        .keys()
        .iter()
        .map(|key| key.to_vec())
        .filter(is_unknown)
        .collect();
    for keys in suspects.chunks(BATCH) {
        confirm(cluster, lease, known, keys).await?;
    }
    Ok(())
}

/// Reads suspected keys again, because the member may lag behind, and a key may be in use again
/// meanwhile. None was used after `known` was current: an entry that was created before it had been
/// removed.
async fn confirm(
    cluster: &Cluster,
    lease: i64,
    known: KnownStore,
    keys: &[Vec<u8>],
) -> Result<(), Failure> {
    let read: Vec<_> = keys
        .iter()
        .map(|key| TxnOp::get(key.as_slice(), Some(GetOptions::new().with_keys_only())))
        .collect();
    let answer = cluster.txn(&Txn::new().and_then(read)).await?;
    for response in answer.op_responses() {
        let TxnOpResponse::Get(found) = response else {
            continue;
        };
        if let Some(entry) = found
            .kvs()
            .first()
            .filter(|entry| entry.lease() == lease && known.includes(entry.create_revision()))
        {
            cluster
                .history()
                .reappeared(known, &String::from_utf8_lossy(entry.key()))
                .map_err(Failure::definite)?;
        }
    }
    Ok(())
}
