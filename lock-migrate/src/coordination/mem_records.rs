use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, FencingToken, LockError, LossReason,
    backend::{Clock, Lease, locked},
};
use tokio::sync::watch;

use super::{Record, RecordLease, RecordStore, RecordWatch, RecordWrite, Write};

/// Records in memory: for tests, where the target is in memory too. Clones are the same store.
#[derive(Clone, Debug, Default)]
pub struct MemRecords(Arc<Store>);

#[derive(Debug, Default)]
struct Store {
    state: Mutex<State>,
    revision: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Stored>,
    revision: i64,
    leases: BTreeMap<u64, Arc<Lease>>,
    last_lease: u64,
}

#[derive(Debug)]
struct Stored {
    value: Vec<u8>,
    revision: i64,
    lease: Option<u64>,
}

/// Ends its lease when it is dropped.
#[derive(Debug)]
struct Handle {
    store: Arc<Store>,
    id: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.store.end(self.id);
    }
}

impl MemRecords {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all leases, as when no holder could renew them.
    pub fn expire_leases(&self) {
        let ids: Vec<_> = locked(&self.0.state).leases.keys().copied().collect();
        ids.into_iter().for_each(|id| self.0.end(id));
    }
}

impl Store {
    fn end(&self, id: u64) {
        let mut state = locked(&self.state);
        let Some(lease) = state.leases.remove(&id) else {
            return;
        };
        lease.lose(LossReason::Expired);
        state.records.retain(|_, record| record.lease != Some(id));
        state.revision += 1;
        self.revision.send_replace(state.revision);
    }
}

impl State {
    fn read(&self, name: &str) -> Option<Record> {
        self.records.get(name).map(|stored| Record {
            name: name.to_owned(),
            value: stored.value.clone(),
            revision: stored.revision,
        })
    }

    fn put(&mut self, name: &str, value: &[u8], lease: Option<u64>) {
        let stored = Stored {
            value: value.to_vec(),
            revision: self.revision,
            lease,
        };
        self.records.insert(name.to_owned(), stored);
    }
}

#[async_trait]
impl RecordStore for MemRecords {
    async fn read(&self, name: &str) -> Result<Option<Record>, LockError> {
        Ok(locked(&self.0.state).read(name))
    }

    async fn read_at(&self, name: &str, _token: FencingToken) -> Result<Option<Record>, LockError> {
        RecordStore::read(self, name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, LockError> {
        let state = locked(&self.0.state);
        let names = state.records.keys().filter(|name| name.starts_with(prefix));
        Ok(names.filter_map(|name| state.read(name)).collect())
    }

    async fn write(&self, writes: &[RecordWrite<'_>]) -> Result<Option<i64>, LockError> {
        let mut state = locked(&self.0.state);
        let is_as_expected = |write: &RecordWrite<'_>| {
            let revision = state.records.get(write.name).map(|stored| stored.revision);
            revision.unwrap_or_default() == write.if_revision
        };
        if !writes.iter().all(is_as_expected) {
            return Ok(None);
        }
        let mut leases = Vec::new();
        for write in writes {
            let Write::PutUnder(lease, _) = write.write else {
                leases.push(None);
                continue;
            };
            let handle: &dyn Any = &*lease.handle;
            let id = handle.downcast_ref::<Handle>().map(|handle| handle.id);
            let live = id.filter(|id| state.leases.contains_key(id));
            let gone = || LockError::new(ErrorKind::Lost, "the lease is gone");
            leases.push(Some(live.ok_or_else(gone)?));
        }
        state.revision += 1;
        for (write, lease) in writes.iter().zip(leases) {
            match write.write {
                Write::Check => {}
                Write::Put(value) | Write::PutUnder(_, value) => {
                    state.put(write.name, value, lease);
                }
                Write::Delete => drop(state.records.remove(write.name)),
            }
        }
        self.0.revision.send_replace(state.revision);
        Ok(Some(state.revision))
    }

    async fn lease(&self) -> Result<RecordLease, LockError> {
        let mut state = locked(&self.0.state);
        state.last_lease += 1;
        let id = state.last_lease;
        let clock = Clock::Tokio;
        let lease = Lease::new(clock, clock.now() + NEVER, None);
        state.leases.insert(id, Arc::clone(&lease));
        let store = Arc::clone(&self.0);
        Ok(RecordLease {
            lease,
            handle: Arc::new(Handle { store, id }),
        })
    }

    fn watch(&self, _name: &str) -> Box<dyn RecordWatch> {
        let mut watch = self.0.revision.subscribe();
        watch.mark_changed();
        Box::new(Changes(tokio::sync::Mutex::new(watch)))
    }
}

/// A process in memory renews for as long as it lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[derive(Debug)]
struct Changes(tokio::sync::Mutex<watch::Receiver<i64>>);

#[async_trait]
impl RecordWatch for Changes {
    async fn changed(&self) {
        // The sender lives as long as the store, which the reader has.
        let _ = self.0.lock().await.changed().await;
    }
}
