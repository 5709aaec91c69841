use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};
use lock_core::backend::{Lease, locked};
use tokio_util::sync::CancellationToken;

use crate::{error::Failure, transport::Cluster};

/// The orphans of one session: keys whose entry nobody wants and whose removal was refused, or
/// under which a request without an answer may still make an entry.
///
/// A request can be delayed for any time: a frozen member carries it out when it goes on. It fails
/// once its lease is revoked, so a session with an orphan is retired at once, and its lease ends
/// with its last guard and waiter. Until then an orphan would block its lock, so the keys are
/// checked periodically.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    keys: Mutex<HashSet<String>>,
    session_ended: CancellationToken,
}

const CHECK_PERIOD: Duration = Duration::from_secs(1);
/// The number of keys that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;

impl Orphans {
    /// Adds a key; true for the first of its session, whose caller runs [`remove`](Self::remove).
    pub(crate) fn add(&self, key: &str) -> bool {
        let mut keys = locked(&self.keys);
        keys.insert(key.to_owned()) && keys.len() == 1
    }

    /// Ends the removal. The lease is revoked then, and no entry is made any more.
    pub(crate) fn session_ended(&self) {
        self.session_ended.cancel();
    }

    /// Removes the entries under all keys until the session or its lease ends.
    pub(crate) fn remove(
        self: &Arc<Self>,
        cluster: Arc<Cluster>,
        lease: Arc<Lease>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let orphans = Arc::clone(self);
        async move {
            tokio::select! {
                () = orphans.remove_periodically(&cluster, &lease) => {}
                () = orphans.session_ended.cancelled() => {}
            }
        }
    }

    async fn remove_periodically(&self, cluster: &Cluster, lease: &Lease) {
        while lease.deadline().is_ok() {
            let keys: Vec<_> = locked(&self.keys).iter().cloned().collect();
            for keys in keys.chunks(BATCH) {
                if let Err(failure) = remove_all(cluster, keys).await {
                    tracing::debug!(error = %failure.error, "orphans not removed, will be tried again");
                }
            }
            tokio::time::sleep(CHECK_PERIOD).await;
        }
    }
}

async fn remove_all(cluster: &Cluster, keys: &[String]) -> Result<(), Failure> {
    let read: Vec<_> = keys
        .iter()
        .map(|key| TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only())))
        .collect();
    let found: Vec<_> = match cluster.txn(&Txn::new().and_then(read)).await {
        Ok(answer) => {
            let exists = |response: &TxnOpResponse| matches!(response, TxnOpResponse::Get(found) if !found.kvs().is_empty());
            keys.iter()
                .zip(answer.op_responses())
                .filter(|(_, response)| exists(response))
                .map(|(key, _)| key)
                .collect()
        }
        // A user may be allowed to write and not to read.
        Err(failure) if !failure.transient => keys.iter().collect(),
        Err(failure) => return Err(failure),
    };
    if found.is_empty() {
        return Ok(());
    }
    let delete: Vec<_> = found
        .into_iter()
        .map(|key| TxnOp::delete(key.as_str(), None))
        .collect();
    cluster.txn(&Txn::new().and_then(delete)).await.map(drop)
}
