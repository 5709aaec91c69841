use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{GetOptions, ResponseHeader};
use lock_core::{ErrorKind, LockError, LockName, backend::Tasks};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    error::Failure,
    keys::Prefix,
    own_entry::OwnEntry,
    queue::{Queue, Snapshot, Verdict, Verdicts},
    watch::{Watch, Watched, Watches},
};

mod feed;
use feed::{Bell, Feed};

/// The queues that this client waits in: one picture, one watch and one task for each name, shared by all its waiters.
#[derive(Clone)]
pub(crate) struct Views {
    cluster: Arc<Cluster>,
    watches: Watches,
    tasks: Tasks,
    stop: CancellationToken,
    open: Arc<Mutex<HashMap<LockName, Arc<View>>>>,
}

/// The picture of one name's queue, and who waits for what in it.
pub(crate) struct View {
    prefix: Prefix,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    queue: Queue,
    waiters: HashMap<String, oneshot::Sender<Result<Verdict, LockError>>>,
    /// An entry not far ahead of the first waiter: until it goes, the queue is not followed.
    approach: Option<String>,
    /// Which watch feeds the queue; others are not listened to.
    watch: u64,
    /// Whether that watch is to report creations as well.
    creations: bool,
    /// When the last waiter left.
    idle_since: Option<Instant>,
    /// The queue is long, and not with waiters of this process: not worth watching when nobody waits here.
    crowded: bool,
    /// Refused by the server: new waiters get the error, and the view closes.
    refused: Option<LockError>,
}

/// What a new waiter knows of the queue.
pub(crate) enum Seen {
    /// All of it, as of the creation of its entry.
    All(Snapshot),
    /// That it is long, and one of the older entries not far ahead.
    Far { older: String },
    /// Nothing.
    None,
}

/// A place in a view; given up when dropped.
pub(crate) struct Waiter {
    view: Arc<View>,
    created: i64,
    key: String,
    verdict: oneshot::Receiver<Result<Verdict, LockError>>,
}

/// A view without waiters stays this long: a lock that changes hands often finds it open.
const LINGER: Duration = Duration::from_secs(1);
/// With so many waiters of one process the watch reports creations too: cheaper than to read the queue for each of them.
const MANY: usize = 4;
/// How long a view relies on the entry that it approaches: it may have gone just before its watch was open.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the queue is read again although the watch is open: covers a stale member and lost events.
const BACKSTOP: Duration = Duration::from_secs(5);
/// Before a read is tried again.
const READ_PAUSE: Duration = Duration::from_millis(100);

impl Views {
    pub(crate) fn new(cluster: Arc<Cluster>, watches: Watches, tasks: Tasks, stop: CancellationToken) -> Self {
        Self { cluster, watches, tasks, stop, open: Arc::default() }
    }

    /// Whether the picture needs no help from new waiters, because the watch tells of their entries.
    pub(crate) fn sees_creations(&self, name: &LockName) -> bool {
        locked(&self.open).get(name).is_some_and(|view| view.state().creations)
    }

    /// How many views are open; for leak checks.
    pub(crate) fn count(&self) -> usize {
        locked(&self.open).len()
    }

    /// Joins the queue of a name with an own entry.
    pub(crate) fn join(&self, name: &LockName, entry: &OwnEntry, seen: Seen) -> Waiter {
        let mut serving = None;
        let mut open = locked(&self.open);
        let view = open.get(name).cloned().unwrap_or_else(|| {
            let approach = if let Seen::Far { older } = &seen { Some(older.clone()) } else { None };
            let state = State { approach, ..State::default() };
            let view = Arc::new(View { prefix: entry.prefix.clone(), state: Mutex::new(state), wake: Notify::new() });
            open.insert(name.clone(), Arc::clone(&view));
            serving = Some(Serving { views: self.clone(), name: name.clone(), view: Arc::clone(&view) });
            view
        });
        // The table stays locked until the waiter is in: the view cannot close in between.
        let waiter = view.join(entry.key.clone(), entry.created, seen);
        drop(open);
        // Not before: where the client's runtime has ended it is dropped at once, and closes the view.
        if let Some(serving) = serving {
            self.tasks.spawn(serving.run());
        }
        waiter
    }

    /// Far back in a queue it is not followed, or every release would wake everybody: waits until the turn of the first
    /// waiter may be near.
    async fn approach(&self, view: &Arc<View>) {
        let Some(older) = view.state().approach.clone() else { return };
        let _watch = self.watches.open(Watched::Deletion(older), Arc::new(Bell(Arc::clone(view))));
        let patience = Instant::now() + PATIENCE;
        while view.is_approaching() && Instant::now() < patience {
            tokio::select! {
                () = view.wake.notified() => {}
                () = tokio::time::sleep_until(patience) => {}
            }
        }
        view.state().approach = None;
    }

    /// Opens the watch that the view is to be fed by from now on.
    fn watch(&self, view: &Arc<View>) -> Watch {
        let (id, creations) = view.state().change_watch();
        let watched = Watched::Prefix { prefix: view.prefix.as_str().to_owned(), creations };
        self.watches.open(watched, Arc::new(Feed { view: Arc::clone(view), id, creations }))
    }
}

/// Keeps one view up to date. However that ends, the view is closed, and nobody is left waiting in it.
struct Serving {
    views: Views,
    name: LockName,
    view: Arc<View>,
}

impl Serving {
    async fn run(self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.views.stop.cancelled() => {}
        }
    }

    /// Follows the queue until nobody has waited in it for a while.
    async fn follow(&self) {
        let (views, view) = (&self.views, &self.view);
        views.approach(view).await;
        let mut watch = views.watch(view);
        let mut read_at = Instant::now();
        while !self.close_if_spent() {
            let mut look_again = view.look_again(read_at);
            if view.wants_creations() {
                watch = views.watch(view);
            } else if view.needs_read(read_at) {
                read_at = Instant::now();
                if let Err(failure) = view.read(&views.cluster).await {
                    if !failure.transient {
                        view.refused(failure.error);
                    }
                    look_again = Instant::now() + READ_PAUSE;
                } else {
                    continue;
                }
            }
            tokio::select! {
                () = view.wake.notified() => {}
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
        drop(watch);
    }

    fn close_if_spent(&self) -> bool {
        let mut open = locked(&self.views.open);
        let close = self.view.state().is_spent();
        if close {
            open.remove(&self.name);
        }
        close
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut open = locked(&self.views.open);
        // Once it is closed another may have been opened.
        if open.get(&self.name).is_some_and(|view| Arc::ptr_eq(view, &self.view)) {
            open.remove(&self.name);
        }
        self.view.state().waiters.clear();
    }
}

impl View {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn join(self: &Arc<Self>, key: String, created: i64, seen: Seen) -> Waiter {
        let (sender, verdict) = oneshot::channel();
        let mut state = self.state();
        if let Some(error) = &state.refused {
            let _ = sender.send(Err(repeated(error)));
            drop(state);
            return Waiter { view: Arc::clone(self), created, key, verdict };
        }
        state.idle_since = None;
        state.waiters.insert(key.clone(), sender);
        match seen {
            Seen::All(snapshot) => {
                let verdicts = state.queue.snapshot(snapshot);
                state.settle(verdicts);
            }
            Seen::Far { .. } | Seen::None => state.crowded = true,
        }
        let verdicts = state.queue.join(key.clone(), created);
        state.settle(verdicts);
        let needs_attention = state.queue.needs_snapshot() || state.wants_creations();
        drop(state);
        if needs_attention {
            self.wake.notify_one();
        }
        Waiter { view: Arc::clone(self), created, key, verdict }
    }

    fn is_approaching(&self) -> bool {
        let state = self.state();
        state.approach.is_some() && !state.is_spent()
    }

    fn wants_creations(&self) -> bool {
        self.state().wants_creations()
    }

    fn needs_read(&self, read_at: Instant) -> bool {
        let state = self.state();
        state.queue.needs_snapshot() || !state.waiters.is_empty() && read_at.elapsed() >= BACKSTOP
    }

    /// When to look for idleness or for the backstop read.
    fn look_again(&self, read_at: Instant) -> Instant {
        match self.state().idle_since {
            Some(since) => since + LINGER,
            None => read_at + BACKSTOP,
        }
    }

    async fn read(&self, cluster: &Cluster) -> Result<(), Failure> {
        let answer = cluster
            .call(|client| {
                let mut kv = client.kv_client();
                let prefix = self.prefix.as_str();
                async move { kv.get(prefix, Some(GetOptions::new().with_prefix().with_keys_only())).await }
            })
            .await?;
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        let mut state = self.state();
        let verdicts = state.queue.snapshot(self.prefix.snapshot(answer.kvs(), revision));
        state.settle(verdicts);
        Ok(())
    }

    fn refused(&self, error: LockError) {
        let mut state = self.state();
        for (_, waiter) in state.waiters.drain() {
            let _ = waiter.send(Err(repeated(&error)));
        }
        state.refused = Some(error);
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    fn settle(&mut self, verdicts: Verdicts) {
        for (key, verdict) in verdicts {
            if let Some(waiter) = self.waiters.remove(&key) {
                // A waiter that has just been dropped removes its entry from the store itself.
                let _ = waiter.send(Ok(verdict));
            }
        }
        if self.waiters.is_empty() {
            self.idle_since.get_or_insert_with(Instant::now);
        }
    }

    fn wants_creations(&self) -> bool {
        !self.creations && self.crowded && self.queue.waiting() >= MANY
    }

    fn change_watch(&mut self) -> (u64, bool) {
        self.creations = self.wants_creations();
        self.watch += 1;
        self.queue.interrupted();
        (self.watch, self.creations)
    }

    /// Whether nobody waits here, nor is likely to soon enough to keep watching.
    fn is_spent(&self) -> bool {
        let lingered = self.idle_since.is_some_and(|since| self.crowded && !self.creations || since.elapsed() >= LINGER);
        self.waiters.is_empty() && lingered || self.refused.is_some()
    }
}

impl Waiter {
    /// Waits for the verdict.
    pub(crate) async fn verdict(&mut self) -> Result<Verdict, LockError> {
        let ended = || LockError::new(ErrorKind::Unavailable, "the client's runtime has ended; connect again on a running one");
        (&mut self.verdict).await.unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.view.state();
        state.queue.leave(self.created);
        state.waiters.remove(&self.key);
        state.settle(Verdicts::new());
        let idle = state.idle_since.is_some();
        drop(state);
        if idle {
            self.view.wake.notify_one();
        }
    }
}

/// An error that several are to be told.
fn repeated(error: &LockError) -> LockError {
    let (kind, text) = (error.kind(), error.to_string());
    let message = text.strip_prefix(&format!("{kind}: ")).map(str::to_owned);
    LockError::new(kind, message.unwrap_or(text))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").field("open", &self.count()).finish_non_exhaustive()
    }
}
