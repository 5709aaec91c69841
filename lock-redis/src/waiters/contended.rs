use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use lock_core::backend::locked;

/// The names for which this client had to wait lately: it enters their queues at once.
#[derive(Debug, Default)]
pub(crate) struct Contended(Mutex<HashSet<Arc<str>>>);

/// Most names of which that is remembered.
const CONTENDED_MAX: usize = 4096;

impl Contended {
    pub(crate) fn is(&self, key: &str) -> bool {
        locked(&self.0).contains(key)
    }

    /// An acquisition as a waiter was `refused` before it was granted, or not.
    pub(crate) fn note(&self, key: &Arc<str>, refused: bool) {
        let mut names = locked(&self.0);
        if !refused {
            names.remove(key);
        } else if names.len() < CONTENDED_MAX {
            names.insert(Arc::clone(key));
        } else {
            names.clear();
        }
    }
}
