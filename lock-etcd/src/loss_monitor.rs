use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::stream::{self, StreamExt};
use lock_core::{LockError, backend::locked};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender, WeakUnboundedSender},
    },
    time::Instant,
};

use crate::{
    error::Failure,
    held_entry::HeldEntry,
    transport::{Cluster, WatchEvent, WatchSink, WatchTarget, Watches},
};

/// Marks guards lost when their entries disappear, with one watch for each lock that is held for
/// more than [`WATCH_AFTER`].
///
/// A lock that is released earlier costs no watch: its release finds out. It does not wake the
/// monitor either, which looks for guards to watch once in that time.
#[derive(Debug)]
pub(crate) struct LossMonitor {
    recent: Arc<RecentGuards>,
    /// Ends the task when dropped.
    _opened: UnboundedSender<Weak<HeldEntry>>,
}

/// Guards that are not watched yet, by the instant at which they will be.
#[derive(Debug, Default)]
struct RecentGuards {
    queue: Mutex<VecDeque<(Instant, Weak<HeldEntry>)>>,
    first: Notify,
}

/// The least time for which a lock is held before its entry is watched; at most twice as long.
const WATCH_AFTER: Duration = Duration::from_millis(200);
/// The number of entries that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;
/// The period at which all held entries are read although their watches are open: covers a stale
/// member and lost events.
const BACKSTOP: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);

impl LossMonitor {
    /// Makes the monitor of a client, and the future that serves it until the monitor is dropped.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        watches: Watches,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (opened, received) = mpsc::unbounded_channel();
        let recent = Arc::new(RecentGuards::default());
        let server = MonitorTask {
            cluster,
            watches,
            recent: Arc::clone(&recent),
            opened: opened.downgrade(),
            watched: Vec::new(),
            unread: Vec::new(),
        };
        (
            Self {
                recent,
                _opened: opened,
            },
            server.run(received),
        )
    }

    /// Adds a new guard.
    pub(crate) fn granted(&self, held: &Arc<HeldEntry>) {
        let mut queue = self.recent.lock();
        queue.push_back((Instant::now() + WATCH_AFTER, Arc::downgrade(held)));
        if queue.len() == 1 {
            self.recent.first.notify_one();
        }
    }
}

impl RecentGuards {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Weak<HeldEntry>)>> {
        locked(&self.queue)
    }

    /// Waits until there may be guards to watch.
    async fn next_due(&self) {
        if self.lock().is_empty() {
            self.first.notified().await;
        }
        tokio::time::sleep(WATCH_AFTER).await;
    }

    fn pop_due(&self) -> Option<Weak<HeldEntry>> {
        let mut queue = self.lock();
        let is_due = queue.front().is_some_and(|(due, _)| *due <= Instant::now());
        is_due
            .then(|| queue.pop_front())
            .flatten()
            .map(|(_, held)| held)
    }
}

struct MonitorTask {
    cluster: Arc<Cluster>,
    watches: Watches,
    recent: Arc<RecentGuards>,
    opened: WeakUnboundedSender<Weak<HeldEntry>>,
    watched: Vec<Weak<HeldEntry>>,
    /// Guards whose entry is to be read: their watch has been opened, and does not report earlier
    /// changes.
    unread: Vec<Weak<HeldEntry>>,
}

impl MonitorTask {
    async fn run(mut self, mut opened: UnboundedReceiver<Weak<HeldEntry>>) {
        let recent = Arc::clone(&self.recent);
        let mut next_due = Box::pin(recent.next_due());
        let mut read_again = Instant::now() + BACKSTOP;
        loop {
            tokio::select! {
                held = opened.recv() => {
                    let Some(held) = held else { return };
                    self.unread.push(held);
                    while let Ok(held) = opened.try_recv() {
                        self.unread.push(held);
                    }
                }
                () = &mut next_due => {
                    self.watch_recent().await;
                    next_due.set(recent.next_due());
                }
                () = tokio::time::sleep_until(read_again) => {
                    self.watched.retain(is_live);
                    self.unread.clone_from(&self.watched);
                    read_again = Instant::now() + BACKSTOP;
                }
            }
            if !self.read_unread().await {
                read_again = Instant::now() + RETRY;
            }
        }
    }

    async fn watch_recent(&mut self) {
        let mut value_updates = Vec::new();
        while let Some(weak) = self.recent.pop_due() {
            let Some(held) = weak.upgrade().filter(|held| !held.is_released()) else {
                continue;
            };
            let sink = Arc::new(DeletionSink {
                held: Weak::clone(&weak),
                opened: self.opened.clone(),
            });
            held.set_watch(Some(
                self.watches
                    .open(WatchTarget::Deletion(held.key().to_owned()), sink),
            ));
            if held.is_released() {
                held.set_watch(None);
                continue;
            }
            self.watched.push(weak);
            value_updates.extend(held.value_update());
        }
        // For inspection only: not worth a retry, nor a delay of other watches.
        let cluster = &self.cluster;
        stream::iter(value_updates)
            .for_each_concurrent(BATCH, |txn| async move { drop(cluster.txn(&txn).await) })
            .await;
    }

    /// Reads the entries that are to be read; false if that failed and is to be tried again.
    async fn read_unread(&mut self) -> bool {
        while !self.unread.is_empty() {
            let rest = self
                .unread
                .split_off(self.unread.len().saturating_sub(BATCH));
            let batch: Vec<_> = rest
                .iter()
                .filter_map(Weak::upgrade)
                .filter(|held| !held.is_released())
                .collect();
            if let Err(failure) = self.read(&batch).await {
                tracing::debug!(error = %failure.error, "held entries not read, will be tried again");
                self.unread.extend(rest);
                return false;
            }
        }
        true
    }

    async fn read(&self, batch: &[Arc<HeldEntry>]) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let get = |held: &Arc<HeldEntry>| {
            TxnOp::get(held.key(), Some(GetOptions::new().with_keys_only()))
        };
        let answer = self
            .cluster
            .txn(&Txn::new().and_then(batch.iter().map(get).collect::<Vec<_>>()))
            .await?;
        for (held, response) in batch.iter().zip(answer.op_responses()) {
            let TxnOpResponse::Get(found) = response else {
                continue;
            };
            if found
                .kvs()
                .first()
                .is_none_or(|kv| kv.create_revision() != held.created())
            {
                held.lost();
            }
        }
        Ok(())
    }
}

fn is_live(held: &Weak<HeldEntry>) -> bool {
    held.upgrade().is_some_and(|held| !held.is_released())
}

struct DeletionSink {
    held: Weak<HeldEntry>,
    opened: WeakUnboundedSender<Weak<HeldEntry>>,
}

impl WatchSink for DeletionSink {
    fn opened(&self, _: i64) {
        if let Some(opened) = self.opened.upgrade() {
            let _ = opened.send(Weak::clone(&self.held));
        }
    }

    fn events(&self, revision: i64, _: Vec<WatchEvent>) {
        // Keys are used again: a member that lags behind reports the end of the entry that had this
        // key before.
        if let Some(held) = self.held.upgrade().filter(|held| revision > held.created()) {
            held.lost();
        }
    }

    fn interrupted(&self) {}

    fn refused(&self, error: LockError) {
        tracing::warn!(%error, "a held lock cannot be watched; a removal by others is noticed late");
    }
}
