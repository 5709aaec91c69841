use std::sync::Arc;

use lock_core::LockError;
use tokio::time::Instant;

use super::{
    state::{Change, WaitOutcomes},
    waiters::Waiters,
};
use crate::{
    key::Prefix,
    transport::{WatchEvent, WatchSink},
};

/// Passes the events of a queue's watch on to its waiters.
pub(super) struct QueueSink {
    waiters: Arc<Waiters>,
    prefix: Prefix,
    watch: u64,
}

impl QueueSink {
    pub(super) fn new(waiters: Arc<Waiters>, watch: u64) -> Self {
        Self {
            prefix: waiters.prefix(),
            waiters,
            watch,
        }
    }
}

impl WatchSink for QueueSink {
    fn opened(&self, revision: i64) {
        self.waiters
            .wake_with(|state| state.opened(self.watch, revision, Instant::now()));
    }

    fn events(&self, revision: i64, events: Vec<WatchEvent>) {
        let changes = events
            .into_iter()
            .filter(|event| self.prefix.has_entry(&event.key))
            .map(change)
            .collect();
        self.waiters
            .update(|state| state.changed(self.watch, revision, changes));
    }

    fn interrupted(&self) {
        self.waiters.update(|state| {
            state.interrupted(self.watch);
            WaitOutcomes::new()
        });
    }

    fn refused(&self, error: LockError) {
        if self.waiters.is_watched_by(self.watch) {
            self.waiters.refuse(error);
        }
    }
}

fn change(event: WatchEvent) -> Change {
    // Keys of clients with another layout are compared as bytes, and shown as well as possible.
    let key = String::from_utf8_lossy(&event.key).into_owned();
    match event.created {
        Some(revision) => Change::Created { key, revision },
        None => Change::Deleted { key },
    }
}

/// Reports the end of one entry to those who sleep until then.
pub(super) struct EndSink {
    waiters: Arc<Waiters>,
    watch: u64,
    key: String,
}

impl EndSink {
    pub(super) fn new(waiters: Arc<Waiters>, watch: u64, key: String) -> Self {
        Self {
            waiters,
            watch,
            key,
        }
    }

    fn ended(&self, revision: i64) {
        self.waiters
            .wake_with(|state| state.ended(self.watch, &self.key, revision));
    }
}

impl WatchSink for EndSink {
    fn opened(&self, revision: i64) {
        self.waiters
            .wake_with(|state| state.ends_opened(self.watch, revision));
    }

    fn events(&self, revision: i64, _: Vec<WatchEvent>) {
        self.ended(revision);
    }

    fn interrupted(&self) {
        self.waiters
            .wake_with(|state| state.ends_interrupted(self.watch));
    }

    fn refused(&self, _: LockError) {
        // The watch of the queue, which follows, is refused as well, and reports why.
        self.ended(i64::MAX);
    }
}
