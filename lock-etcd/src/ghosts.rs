use std::{
    collections::HashSet,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};
use lock_core::backend::locked;
use tokio_util::sync::CancellationToken;

use crate::{cluster::Cluster, core::Core, error::Failure, session::Session};

/// Keys of one session under which there is an entry that nobody wants and whose removal was refused, or under which a request
/// that got no answer may still make one.
///
/// A request can be delayed for any time: a frozen member carries it out when it goes on. It fails once its lease is
/// revoked, so a session is retired as soon as there is one, and its lease ends with its last guard and waiter. While
/// that takes, its ghosts are looked for, for such an entry would block its lock.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    keys: Mutex<HashSet<String>>,
    session_ended: CancellationToken,
}

/// How often ghosts are looked for.
const PERIOD: Duration = Duration::from_secs(1);
/// Keys that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;

impl Ghosts {
    /// To be called when the session ends: its lease is revoked then, and no entry is made any more.
    pub(crate) fn lay_to_rest(&self) {
        self.session_ended.cancel();
    }

    /// Whether it is the first of its session.
    fn add(&self, key: &str) -> bool {
        let mut keys = locked(&self.keys);
        keys.insert(key.to_owned()) && keys.len() == 1
    }

    fn keys(&self) -> Vec<String> {
        locked(&self.keys).iter().cloned().collect()
    }
}

/// Removes the entry under a key that nobody uses any more, now and whenever a late request makes it again, until the
/// session ends.
pub(crate) fn exorcise(core: &Core, session: &Arc<Session>, key: &str) {
    core.sessions.retire(session);
    if session.ghosts().add(key) {
        let (cluster, session, ended) = (Arc::clone(&core.cluster), Arc::downgrade(session), session.ghosts().session_ended.clone());
        let closing = core.holds.closing().clone();
        core.holds.tasks().spawn(async move {
            tokio::select! {
                () = look_for_ghosts(&cluster, &session) => {}
                () = ended.cancelled() => {}
                // The leases are revoked then, and every entry goes with them.
                () = closing.cancelled() => {}
            }
        });
    }
}

async fn look_for_ghosts(cluster: &Cluster, session: &Weak<Session>) {
    loop {
        // Not kept alive by the search.
        let Some(keys) = session.upgrade().filter(|session| session.is_alive()).map(|session| session.ghosts().keys()) else { return };
        for keys in keys.chunks(BATCH) {
            if let Err(failure) = remove_all(cluster, keys).await {
                tracing::debug!(error = %failure.error, "entries of lost requests not removed, will be tried again");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn remove_all(cluster: &Cluster, keys: &[String]) -> Result<(), Failure> {
    let read: Vec<_> = keys.iter().map(|key| TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()))).collect();
    let found: Vec<_> = match cluster.txn(&Txn::new().and_then(read)).await {
        Ok(answer) => {
            let is_there = |response: &TxnOpResponse| matches!(response, TxnOpResponse::Get(found) if !found.kvs().is_empty());
            keys.iter().zip(answer.op_responses()).filter(|(_, response)| is_there(response)).map(|(key, _)| key).collect()
        }
        // A user may be allowed to write and not to read.
        Err(failure) if !failure.transient => keys.iter().collect(),
        Err(failure) => return Err(failure),
    };
    if found.is_empty() {
        return Ok(());
    }
    let delete: Vec<_> = found.into_iter().map(|key| TxnOp::delete(key.as_str(), None)).collect();
    cluster.txn(&Txn::new().and_then(delete)).await.map(drop)
}
