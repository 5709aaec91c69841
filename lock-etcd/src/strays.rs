use std::time::Duration;

use etcd_client::{GetOptions, LeaseTimeToLiveOptions, Txn, TxnOp, TxnOpResponse};

use crate::{
    cluster::Cluster,
    error::Failure,
    history::{Known, Stamp},
    keys::parse,
    session::Session,
};

/// How often the entries under each lease are compared with those that this client has.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);
/// Keys that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;

/// Looks for entries under the lease of a session that had been removed, and are back because the store went back: they block their
/// locks for as long as the lease is renewed. Their client may want nothing of the store, and so not notice.
pub(crate) async fn look(cluster: &Cluster, namespace: &str, session: &Session) {
    if let Err(failure) = find(cluster, namespace, session).await {
        tracing::debug!(error = %failure.error, "entries that came back were not looked for");
    }
}

async fn find(cluster: &Cluster, namespace: &str, session: &Session) -> Result<(), Failure> {
    let (id, known) = (session.id(), cluster.history().known());
    let answer = cluster.call(|etcd| {
        let mut leases = etcd.lease_client();
        async move { leases.time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await }
    });
    let answer = answer.await?;
    if let Some(stamp) = Stamp::of(answer.header()) {
        cluster.history().note(known, stamp);
    }
    let is_stray = |key: &Vec<u8>| parse(namespace, key).is_some_and(|(name, number)| !session.places().is_taken(&name, number));
    let suspects: Vec<_> = answer.keys().iter().map(|key| key.to_vec()).filter(is_stray).collect();
    for keys in suspects.chunks(BATCH) {
        confirm(cluster, session, known, keys).await?;
    }
    Ok(())
}

/// The member that was asked may lag behind, and a key may be used again meanwhile. But nobody used these after it was known how far
/// the store was: what was created before has been removed.
async fn confirm(cluster: &Cluster, session: &Session, known: Known, keys: &[Vec<u8>]) -> Result<(), Failure> {
    let read: Vec<_> = keys.iter().map(|key| TxnOp::get(key.as_slice(), Some(GetOptions::new().with_keys_only()))).collect();
    for response in cluster.txn(&Txn::new().and_then(read)).await?.op_responses() {
        let TxnOpResponse::Get(found) = response else { continue };
        if let Some(entry) = found.kvs().first().filter(|entry| entry.lease() == session.id() && known.includes(entry.create_revision())) {
            cluster.history().came_back(known, &String::from_utf8_lossy(entry.key())).map_err(Failure::definite)?;
        }
    }
    Ok(())
}
