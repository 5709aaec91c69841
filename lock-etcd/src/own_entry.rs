use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, TxnOp};
use lock_core::{
    LockName,
    backend::{Left, Removal},
};

use crate::{
    BACKEND,
    batch::{self, Company},
    core::Core,
    error::Failure,
    ghosts::exorcise,
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
    /// An attempt whose answer was lost may make the entry again after it has been removed.
    pub(crate) doubtful: bool,
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
        let expects_others = self.session.places().are_shared(&self.name);
        let request = batch::Request { when: self.is_mine(), then, otherwise: Vec::new(), company: Company::Any, expects_others };
        let answered = self.core.txn(&request).await?;
        self.give_up_key();
        // Not there after an attempt without an answer: that attempt has deleted it.
        Ok(answered.answer.succeeded || answered.doubtful)
    }

    /// Removes the entry, until that is done or its lease has ended.
    async fn remove_in_the_end(&self) {
        let mut pause = FIRST_PAUSE;
        while let Err(failure) = self.remove().await {
            if !self.session.is_alive() {
                return;
            }
            if !failure.transient {
                return self.left_behind();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Has an entry whose removal was refused looked after until it is gone: the refusal may end, and a user who may only write
    /// may not compare, but may delete.
    pub(crate) fn left_behind(&self) {
        // The key is nobody else's from now on.
        if !self.given_up.swap(true, Ordering::Relaxed) {
            exorcise(&self.core, &self.session, &self.key);
        }
    }

    /// Lets the key of an entry that is gone be used again, unless a request that is still on its way may make it once more.
    pub(crate) fn give_up_key(&self) {
        if self.given_up.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.doubtful {
            exorcise(&self.core, &self.session, &self.key);
        } else {
            self.session.places().give_back(&self.name, self.number);
        }
    }
}

#[async_trait]
impl Removal for OwnEntry {
    async fn remove(&self) {
        self.remove_in_the_end().await;
    }

    fn left(&self) -> Left {
        Left { what: format!("`{}` on {BACKEND}, waited for", self.name), ends_in: self.session.lease().remaining() }
    }
}

impl fmt::Debug for OwnEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnEntry").field("key", &self.key).field("created", &self.created).finish_non_exhaustive()
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
