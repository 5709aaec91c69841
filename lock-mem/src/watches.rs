use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use lock_core::backend::locked;
use tokio::sync::Notify;

use crate::key::Key;

/// The watches of a store, by name.
#[derive(Default)]
pub(crate) struct Watches {
    count: AtomicUsize,
    changes: Mutex<HashMap<Key, Vec<Arc<Notify>>>>,
}

/// One watch of a name.
pub(crate) struct Watch {
    watches: Arc<Watches>,
    pub(crate) key: Key,
    /// Remembers a change that came while nobody listened.
    pub(crate) change: Arc<Notify>,
}

impl Watch {
    pub(crate) fn new(watches: &Arc<Watches>, key: Key) -> Self {
        let change = Arc::new(Notify::new());
        watches.add(&key, &change);
        Self {
            watches: Arc::clone(watches),
            key,
            change,
        }
    }
}

impl Watches {
    fn add(&self, key: &Key, change: &Arc<Notify>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        locked(&self.changes)
            .entry(key.clone())
            .or_default()
            .push(Arc::clone(change));
    }

    fn remove(&self, key: &Key, change: &Arc<Notify>) {
        let mut changes = locked(&self.changes);
        if let Some(of_name) = changes.get_mut(key) {
            of_name.retain(|other| !Arc::ptr_eq(other, change));
            if of_name.is_empty() {
                changes.remove(key);
            }
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn tell(&self, key: &Key) {
        if self.count.load(Ordering::SeqCst) > 0 {
            locked(&self.changes)
                .get(key)
                .into_iter()
                .flatten()
                .for_each(|change| change.notify_one());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.remove(&self.key, &self.change);
    }
}
