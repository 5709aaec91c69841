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
    cluster::Cluster,
    entry::Held,
    error::Failure,
    watch::{Event, Sink, Watched, Watches},
};

/// Tells guards when their entries disappear: one watch for each lock that is held for more than a moment.
///
/// A lock that is released within that moment costs no watch: its release finds out. Nor does it wake the monitor, which
/// looks for guards that have come of age once in a moment, however many there are.
#[derive(Debug)]
pub(crate) struct Monitor {
    fresh: Arc<Fresh>,
    /// Ends the server when dropped.
    _opened: UnboundedSender<Weak<Held>>,
}

/// Guards too young to be watched, by the instant at which they will be.
#[derive(Debug, Default)]
struct Fresh {
    queue: Mutex<VecDeque<(Instant, Weak<Held>)>>,
    first: Notify,
}

/// How long a lock is held before its entry is watched, at least; at most twice as long.
const MOMENT: Duration = Duration::from_millis(200);
/// Entries that one transaction reads; etcd takes 128 operations by default.
const BATCH: usize = 100;
/// How often all held entries are read although their watches are open: covers a stale member and lost events.
const BACKSTOP: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);

impl Monitor {
    /// The monitor of a client, and the future that serves it: it ends when the monitor is dropped.
    pub(crate) fn new(cluster: Arc<Cluster>, watches: Watches) -> (Self, impl Future<Output = ()> + Send) {
        let (opened, received) = mpsc::unbounded_channel();
        let fresh = Arc::new(Fresh::default());
        let server =
            Server { cluster, watches, fresh: Arc::clone(&fresh), opened: opened.downgrade(), watched: Vec::new(), unread: Vec::new() };
        (Self { fresh, _opened: opened }, server.run(received))
    }

    /// Takes note of a new guard.
    pub(crate) fn granted(&self, held: &Arc<Held>) {
        let mut queue = self.fresh.lock();
        queue.push_back((Instant::now() + MOMENT, Arc::downgrade(held)));
        if queue.len() == 1 {
            self.fresh.first.notify_one();
        }
    }
}

impl Fresh {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Weak<Held>)>> {
        locked(&self.queue)
    }

    /// When to look for guards that have come of age.
    async fn look_again(&self) {
        if self.lock().is_empty() {
            self.first.notified().await;
        }
        tokio::time::sleep(MOMENT).await;
    }

    fn pop_aged(&self) -> Option<Weak<Held>> {
        let mut queue = self.lock();
        let aged = queue.front().is_some_and(|(due, _)| *due <= Instant::now());
        aged.then(|| queue.pop_front()).flatten().map(|(_, held)| held)
    }
}

struct Server {
    cluster: Arc<Cluster>,
    watches: Watches,
    fresh: Arc<Fresh>,
    opened: WeakUnboundedSender<Weak<Held>>,
    watched: Vec<Weak<Held>>,
    /// Guards whose entry is to be read: their watch has been opened, and does not tell of the time before.
    unread: Vec<Weak<Held>>,
}

impl Server {
    async fn run(mut self, mut opened: UnboundedReceiver<Weak<Held>>) {
        let fresh = Arc::clone(&self.fresh);
        let mut look_again = Box::pin(fresh.look_again());
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
                () = &mut look_again => {
                    self.watch_the_aged().await;
                    look_again.set(fresh.look_again());
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

    async fn watch_the_aged(&mut self) {
        let mut annotations = Vec::new();
        while let Some(weak) = self.fresh.pop_aged() {
            let Some(held) = weak.upgrade().filter(|held| !held.is_released()) else { continue };
            let sink = Arc::new(DeletionSink { held: Weak::clone(&weak), opened: self.opened.clone() });
            held.watched_by(Some(self.watches.open(Watched::Deletion(held.key().to_owned()), sink)));
            if held.is_released() {
                held.watched_by(None);
                continue;
            }
            self.watched.push(weak);
            annotations.extend(held.annotation());
        }
        // For inspection only: not worth a retry, nor to hold up the watches of others.
        let cluster = &self.cluster;
        stream::iter(annotations).for_each_concurrent(BATCH, |txn| async move { drop(cluster.txn(&txn).await) }).await;
    }

    /// Reads the entries that are to be read; `false` if that failed and is to be tried again.
    async fn read_unread(&mut self) -> bool {
        while !self.unread.is_empty() {
            let rest = self.unread.split_off(self.unread.len().saturating_sub(BATCH));
            let batch: Vec<_> = rest.iter().filter_map(Weak::upgrade).filter(|held| !held.is_released()).collect();
            if let Err(failure) = self.read(&batch).await {
                tracing::debug!(error = %failure.error, "held entries not read, will be tried again");
                self.unread.extend(rest);
                return false;
            }
        }
        true
    }

    async fn read(&self, batch: &[Arc<Held>]) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let get = |held: &Arc<Held>| TxnOp::get(held.key(), Some(GetOptions::new().with_keys_only()));
        let answer = self.cluster.txn(&Txn::new().and_then(batch.iter().map(get).collect::<Vec<_>>())).await?;
        for (held, response) in batch.iter().zip(answer.op_responses()) {
            let TxnOpResponse::Get(found) = response else { continue };
            if found.kvs().first().is_none_or(|kv| kv.create_revision() != held.created()) {
                held.lost();
            }
        }
        Ok(())
    }
}

fn is_live(held: &Weak<Held>) -> bool {
    held.upgrade().is_some_and(|held| !held.is_released())
}

struct DeletionSink {
    held: Weak<Held>,
    opened: WeakUnboundedSender<Weak<Held>>,
}

impl Sink for DeletionSink {
    fn opened(&self, _: i64) {
        if let Some(opened) = self.opened.upgrade() {
            let _ = opened.send(Weak::clone(&self.held));
        }
    }

    fn events(&self, revision: i64, _: Vec<Event>) {
        // Keys are used again: a member that lags behind reports the end of the entry that had this key before.
        if let Some(held) = self.held.upgrade().filter(|held| revision > held.created()) {
            held.lost();
        }
    }

    fn interrupted(&self) {}

    fn refused(&self, error: LockError) {
        tracing::warn!(%error, "a held lock cannot be watched; a removal by others is noticed late");
    }
}
