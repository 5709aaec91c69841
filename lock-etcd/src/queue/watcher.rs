use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use etcd_client::{GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use lock_core::{
    LockError, LockName,
    backend::{Tasks, locked},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    position::{QueuePosition, QueueRead},
    sink::{EndSink, QueueSink},
    snapshot::Snapshot,
    step::{Step, Watched},
    waiters::{Waiter, Waiters},
};
use crate::{
    entry::StoreEntry,
    error::Failure,
    listing::Listing,
    transport::{Cluster, Watch, WatchTarget, Watches},
};

/// Watches the queues that this client waits in, with one task for each name.
#[derive(Clone)]
pub(crate) struct QueueWatchers {
    cluster: Arc<Cluster>,
    watches: Watches,
    tasks: Tasks,
    stop: CancellationToken,
    open: Arc<Mutex<HashMap<LockName, Arc<Waiters>>>>,
}

impl QueueWatchers {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        watches: Watches,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        Self {
            cluster,
            watches,
            tasks,
            stop,
            open: Arc::default(),
        }
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }

    /// The part of its queue that a new entry is to read.
    pub(crate) fn queue_read(&self, name: &LockName) -> QueueRead {
        let open = locked(&self.open);
        open.get(name)
            .map_or(QueueRead::Short, |waiters| waiters.queue_read())
    }

    /// Fails all waiters, and those that join before their watchers are closed.
    pub(crate) fn refuse(&self, error: &LockError) {
        let open: Vec<_> = locked(&self.open).values().cloned().collect();
        for waiters in open {
            waiters.refuse(error.clone());
        }
    }

    /// The number of open watchers, for leak checks.
    pub(crate) fn count(&self) -> usize {
        locked(&self.open).len()
    }

    /// Joins a queue with an entry.
    pub(crate) fn join(&self, entry: &StoreEntry, position: QueuePosition) -> Waiter {
        let name = &entry.name;
        let mut task = None;
        let mut open = locked(&self.open);
        let waiters = open.get(name).cloned().unwrap_or_else(|| {
            let waiters = Waiters::new(entry.prefix.clone());
            open.insert(name.clone(), Arc::clone(&waiters));
            task = Some(WatcherTask {
                watchers: self.clone(),
                name: name.clone(),
                waiters: Arc::clone(&waiters),
            });
            waiters
        });
        // While the table is locked, so that the watcher cannot close in between.
        let waiter = waiters.join(entry, position);
        drop(open);
        // Not earlier: if the client's runtime has ended, the task is dropped at once.
        if let Some(task) = task {
            self.tasks.spawn(task.run());
        }
        waiter
    }
}

/// Watches one queue. However it ends, the watcher is closed, and no waiter is left.
struct WatcherTask {
    watchers: QueueWatchers,
    name: LockName,
    waiters: Arc<Waiters>,
}

impl WatcherTask {
    async fn run(self) {
        tokio::select! {
            () = self.watch() => {}
            () = self.watchers.stop.cancelled() => {}
        }
    }

    async fn watch(&self) {
        let mut _queue = None;
        let mut _ends = Vec::new();
        loop {
            match self.waiters.step() {
                Step::Watch { watch, watched } => _queue = self.watch_queue(watch, watched),
                Step::WatchEnds {
                    watch,
                    predecessor,
                    own,
                } => {
                    _ends = [Some(predecessor), own]
                        .into_iter()
                        .flatten()
                        .map(|key| self.watch_end(watch, key))
                        .collect();
                }
                Step::Read => self.read().await,
                Step::Check {
                    predecessor,
                    own,
                    created,
                } => {
                    let exist = self.exist(&predecessor, &own, created).await;
                    // After an error the queue is followed, which finds out more.
                    let exist = exist.unwrap_or(false);
                    self.waiters
                        .wake_with(|state| state.checked(&predecessor, exist));
                }
                Step::Sleep { until } => {
                    tokio::select! {
                        () = self.waiters.woken() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                Step::Close if self.close() => return,
                Step::Close => {}
            }
        }
    }

    fn watch_queue(&self, watch: u64, watched: Watched) -> Option<Watch> {
        let Watched::Queue { creations } = watched else {
            return None;
        };
        let target = WatchTarget::Prefix {
            prefix: self.waiters.prefix().as_str().to_owned(),
            creations,
        };
        let sink = QueueSink::new(Arc::clone(&self.waiters), watch);
        Some(self.watchers.watches.open(target, Arc::new(sink)))
    }

    fn watch_end(&self, watch: u64, key: String) -> Watch {
        let sink = EndSink::new(Arc::clone(&self.waiters), watch, key.clone());
        let target = WatchTarget::Deletion(key);
        self.watchers.watches.open(target, Arc::new(sink))
    }

    async fn read(&self) {
        let sent = Instant::now();
        let prefix = self.waiters.prefix();
        match Listing::read(&self.watchers.cluster, &prefix, None).await {
            Ok(listing) => {
                let snapshot = Snapshot::of(&prefix, &listing.entries, listing.revision);
                self.waiters
                    .update(|state| state.read(snapshot, sent, Instant::now()));
            }
            Err(failure) if failure.transient => {
                self.waiters
                    .wake_with(|state| state.read_failed(Instant::now()));
            }
            Err(failure) => self.waiters.refuse(failure.error),
        }
    }

    /// Reads whether the own entry exists, and an older one under the predecessor's key.
    async fn exist(&self, predecessor: &str, own: &str, created: i64) -> Result<bool, Failure> {
        let read =
            [predecessor, own].map(|key| TxnOp::get(key, Some(GetOptions::new().with_keys_only())));
        let answer = self
            .watchers
            .cluster
            .txn(&Txn::new().and_then(read))
            .await?;
        let found: Vec<_> = answer.op_responses().iter().map(created_at).collect();
        Ok(matches!(found[..], [Some(older), Some(own)] if older < created && own == created))
    }

    /// Closes the watcher, unless a waiter has joined.
    fn close(&self) -> bool {
        let mut open = locked(&self.watchers.open);
        let is_empty = self.waiters.is_empty();
        if is_empty {
            open.remove(&self.name);
        }
        is_empty
    }
}

fn created_at(response: &TxnOpResponse) -> Option<i64> {
    match response {
        TxnOpResponse::Get(found) => found.kvs().first().map(KeyValue::create_revision),
        _ => None,
    }
}

impl Drop for WatcherTask {
    fn drop(&mut self) {
        let mut open = locked(&self.watchers.open);
        // After a close there may be another watcher for the name.
        if open
            .get(&self.name)
            .is_some_and(|waiters| Arc::ptr_eq(waiters, &self.waiters))
        {
            open.remove(&self.name);
        }
        self.waiters.abandon();
    }
}

impl fmt::Debug for QueueWatchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueWatchers")
            .field("open", &self.count())
            .finish_non_exhaustive()
    }
}
