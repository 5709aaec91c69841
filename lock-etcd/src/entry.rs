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
    backend::{Leftover, Pauses, Removal},
};

use crate::{
    BACKEND,
    error::Failure,
    key::Prefix,
    session::Session,
    transport::batch::{self, Merging},
};

/// The entry of one acquisition in the store, of a waiter or of a holder.
pub(crate) struct StoreEntry {
    pub(crate) session: Arc<Session>,
    pub(crate) name: LockName,
    pub(crate) prefix: Prefix,
    pub(crate) key: String,
    pub(crate) number: u64,
    /// The create revision.
    pub(crate) created: i64,
    /// An attempt without an answer may make the entry again after it has been removed.
    pub(crate) indeterminate: bool,
    /// The entry is gone, and its key has been given up.
    pub(crate) given_up: AtomicBool,
}

impl StoreEntry {
    /// Compares the entry under this key with the one that was made, rather than a later one.
    pub(crate) fn is_unchanged(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.created)
    }

    /// Removes the entry; tells whether it existed.
    pub(crate) async fn remove(&self) -> Result<bool, Failure> {
        let request = batch::Request {
            when: self.is_unchanged(),
            then: vec![TxnOp::delete(self.key.as_str(), None)],
            otherwise: Vec::new(),
            merging: Merging::Any,
            contended: self.session.numbers().are_contended(&self.name),
        };
        let answered = self.session.cluster().merged_txn(&request).await?;
        self.free_key();
        // If it is missing after an attempt without an answer, that attempt has deleted it.
        Ok(answered.answer.succeeded || answered.indeterminate)
    }

    /// Removes the entry, trying until it is gone or its lease has ended.
    async fn remove_eventually(&self) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        while let Err(failure) = self.remove().await {
            if !self.session.is_alive() {
                return;
            }
            if !failure.transient {
                return self.abandon();
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    /// Makes an entry whose removal was refused an orphan. The refusal may end, and a user who may
    /// only write may not compare, but may delete.
    pub(crate) fn abandon(&self) {
        // The key is nobody else's from now on.
        if !self.given_up.swap(true, Ordering::Relaxed) {
            self.session.remove_orphan(&self.key);
        }
    }

    /// Lets the key of an entry that is gone be used again, unless a request under way may make the
    /// entry once more.
    pub(crate) fn free_key(&self) {
        if self.given_up.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.indeterminate {
            self.session.remove_orphan(&self.key);
        } else {
            self.session.numbers().free(&self.name, self.number);
        }
    }
}

#[async_trait]
impl Removal for StoreEntry {
    async fn remove(&self) {
        self.remove_eventually().await;
    }

    fn left(&self) -> Leftover {
        Leftover {
            what: format!("`{}` on {BACKEND}, waited for", self.name),
            ends_in: self.session.lease().remaining(),
        }
    }
}

impl fmt::Debug for StoreEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreEntry")
            .field("key", &self.key)
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
