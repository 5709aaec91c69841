use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use etcd_client::{PutOptions, Txn, TxnOp};
use lock_core::{
    FencingToken, LockError, LossReason, OwnerId,
    backend::{Entry, LossTrigger, locked},
};

use crate::{entry::StoreEntry, entry_value::EntryValue, transport::Watch};

/// The entry of a guard.
pub(crate) struct HeldEntry {
    entry: Arc<StoreEntry>,
    token: FencingToken,
    metadata: Option<String>,
    released: AtomicBool,
    trigger: OnceLock<LossTrigger>,
    /// Reports the entry's deletion, once the lock has been held for a moment.
    watch: Mutex<Option<Watch>>,
    /// Keeps the client alive.
    _client: Arc<dyn Send + Sync>,
}

impl HeldEntry {
    pub(crate) fn new(
        entry: Arc<StoreEntry>,
        token: FencingToken,
        metadata: Option<String>,
        client: Arc<dyn Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            entry,
            token,
            metadata,
            released: AtomicBool::new(false),
            trigger: OnceLock::new(),
            watch: Mutex::new(None),
            _client: client,
        })
    }

    /// Sets the trigger that ends the guard.
    pub(crate) fn ends_with(&self, trigger: LossTrigger) {
        let _ = self.trigger.set(trigger);
        if !self.entry.session.is_current() {
            // The store has gone back, and the loss of all guards may have missed this one.
            self.lost();
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.entry.key
    }

    pub(crate) fn created(&self) -> i64 {
        self.entry.created
    }

    pub(crate) fn owner(&self) -> OwnerId {
        let entry = &self.entry;
        entry.prefix.owner(&entry.key, entry.created)
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Marks the guard lost, because its entry is not in the store any more. The background release
    /// makes sure of that before the key is used again.
    pub(crate) fn lost(&self) {
        if let Some(trigger) = self.trigger.get() {
            trigger.lose(LossReason::Removed);
        }
    }

    pub(crate) fn set_watch(&self, watch: Option<Watch>) {
        *locked(&self.watch) = watch;
    }

    /// The transaction that writes down the token and the time of an acquisition that had to wait:
    /// they were not known when its entry was made.
    pub(crate) fn value_update(&self) -> Option<Txn> {
        let waited = self.token.as_u64() != self.entry.created.unsigned_abs();
        waited.then(|| {
            let value = EntryValue::holding(self.token, self.metadata.clone()).encode();
            let put = TxnOp::put(
                self.key(),
                value,
                Some(PutOptions::new().with_ignore_lease()),
            );
            Txn::new().when([self.entry.is_unchanged()]).and_then([put])
        })
    }
}

#[async_trait]
impl Entry for HeldEntry {
    async fn release(&self) -> Result<bool, LockError> {
        self.released.store(true, Ordering::Release);
        self.set_watch(None);
        if let Some(error) = self.entry.session.end_failed() {
            return Err(error.clone());
        }
        self.entry.remove().await.map_err(|failure| {
            if !failure.transient {
                self.entry.abandon();
            }
            failure.error
        })
    }

    fn release_now(&self) -> Option<bool> {
        self.entry.session.is_revoked().then_some(true)
    }
}

impl fmt::Debug for HeldEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldEntry")
            .field("entry", &self.entry)
            .field("token", &self.token)
            .field("released", &self.released)
            .finish_non_exhaustive()
    }
}
