use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_client::{Compare, CompareOp, TxnOp};
use lock_core::{
    LockName,
    backend::{Clock, Moment},
};

use crate::{
    batch::{self, Company},
    cluster::LATE_REQUEST,
    core::Core,
    error::Failure,
    keys::Prefix,
    session::Session,
};

/// One acquisition's entry in the store, of a waiter or of a holder.
pub(crate) struct OwnEntry {
    pub(crate) core: Arc<Core>,
    pub(crate) session: Arc<Session>,
    pub(crate) name: LockName,
    pub(crate) prefix: Prefix,
    pub(crate) key: String,
    pub(crate) number: u64,
    /// The create revision.
    pub(crate) created: i64,
    /// Until when an attempt whose answer was lost may still make the entry, again if it has been removed by then.
    pub(crate) late_until: Option<Moment>,
    /// The entry is gone, and its key has been given up.
    pub(crate) given_up: AtomicBool,
}

impl OwnEntry {
    /// Whether the entry under this key is still the one that was made, and not a later one.
    pub(crate) fn is_mine(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.created)
    }

    /// Removes the entry; says whether it was there.
    pub(crate) async fn remove(&self) -> Result<bool, Failure> {
        let then = vec![TxnOp::delete(self.key.as_str(), None)];
        let answered = self.core.txn(&batch::Request { when: self.is_mine(), then, otherwise: Vec::new(), company: Company::Any }).await?;
        self.give_up_key();
        // Not there after an attempt without an answer: that attempt has deleted it.
        Ok(answered.answer.succeeded || answered.doubtful)
    }

    /// Removes the entry, until that is done or its lease has ended.
    pub(crate) async fn remove_in_the_end(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        while let Err(failure) = self.remove().await {
            if !self.session.is_alive() {
                return;
            }
            if !failure.transient {
                // A user who may only write may not compare. The key has not been given up: it is nobody else's.
                return remove_key(&self.core, &self.session, &self.key).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lets the key of an entry that is gone be used again, unless a request that is still on its way may make it once more.
    pub(crate) fn give_up_key(&self) {
        if self.given_up.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(late_until) = self.late_until else {
            return self.session.places().give_back(&self.name, self.number);
        };
        let (core, session, key) = (Arc::clone(&self.core), Arc::clone(&self.session), self.key.clone());
        self.core.holds.tasks().spawn(async move { remove_after(&core, &session, &key, late_until).await });
    }
}

impl fmt::Debug for OwnEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnEntry").field("key", &self.key).field("created", &self.created).finish_non_exhaustive()
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Deletes an entry whose key is not used again, until that is done or its lease has ended.
async fn remove_key(core: &Core, session: &Session, key: &str) {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = core.cluster.call(|etcd| {
            let mut kv = etcd.kv_client();
            async move { kv.delete(key, None).await }
        });
        match answer.await {
            Ok(_) => return,
            Err(_) if !session.is_alive() => return,
            Err(failure) if !failure.transient => return core.sessions.retire(session),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Removes an entry that a request may still make: now, and once more when that request cannot take effect any more.
pub(crate) async fn remove_for_sure(core: &Core, session: &Session, key: &str) {
    remove_key(core, session, key).await;
    // Counted from now: what was stuck on the way may be delivered as soon as the way is free again.
    let late_until = Clock::Suspend.now() + LATE_REQUEST;
    remove_after(core, session, key, late_until).await;
}

async fn remove_after(core: &Core, session: &Session, key: &str, late_until: Moment) {
    tokio::select! {
        () = Clock::Suspend.sleep_until(late_until) => remove_key(core, session, key).await,
        // The leases are revoked then, and every entry goes with them.
        () = core.holds.closing().cancelled() => {}
        () = session.lease().ended().cancelled() => {}
    }
}
