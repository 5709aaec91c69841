use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use lock_core::{
    LockError, LockName, OwnerId,
    backend::{Tasks, locked},
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    BACKEND,
    claim::Look,
    cluster::Cluster,
    error::{Failure, runtime_ended},
    keys::Prefix,
    listing::Listing,
    own_entry::OwnEntry,
    queue::{Queue, Snapshot, Verdict, Verdicts},
    watch::{Watch, Watched, Watches},
};

mod approach;
mod feed;
use approach::{Approach, Approached};
use feed::Feed;

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
    approached: Approached,
    /// Which watch feeds the queue; others are not listened to.
    watch: u64,
    /// Whether there is one.
    follows: bool,
    /// Whether that watch is to report creations as well.
    creations: bool,
    /// When to read the queue because that watch may tell late.
    suspicion: Option<Suspicion>,
    /// When the last waiter left.
    idle_since: Option<Instant>,
    /// The queue is long, and not with waiters of this process: not worth watching when nobody waits here.
    crowded: bool,
    /// The key that is at the head of the queue and is not a lock's entry, and what it is.
    blocked_by: Option<(Vec<u8>, String)>,
    /// Refused by the server: new waiters get the error, and the view closes.
    refused: Option<LockError>,
}

/// A new watch may tell late: etcd looks up the revision from which "from now on" counts before it registers the watch, and
/// when something is written in between, the watch is served from a loop with a period of 100 ms. The first event dispels it.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    read_at: Instant,
    pause: Duration,
}

/// A few times as long as a release takes to be told.
const FIRST_SUSPICION: Duration = Duration::from_millis(8);
/// 8, 24, 56 and 120 ms after the opening the loop has been round.
const LAST_SUSPICION: Duration = Duration::from_millis(64);

impl Suspicion {
    fn of_a_new_watch() -> Self {
        Self { read_at: Instant::now() + FIRST_SUSPICION, pause: FIRST_SUSPICION }
    }

    /// After the queue has been read.
    fn next(self) -> Option<Self> {
        let pause = self.pause * 2;
        (pause <= LAST_SUSPICION).then(|| Self { read_at: self.read_at + pause, pause })
    }
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
/// How often the queue is read again although the watch is open: covers a stale member and lost events.
const BACKSTOP: Duration = Duration::from_secs(5);
/// Before a read is tried again.
const READ_PAUSE: Duration = Duration::from_millis(100);

impl Views {
    pub(crate) fn new(cluster: Arc<Cluster>, watches: Watches, tasks: Tasks, stop: CancellationToken) -> Self {
        Self { cluster, watches, tasks, stop, open: Arc::default() }
    }

    /// What a new entry is to look at.
    pub(crate) fn look(&self, name: &LockName) -> Look {
        let open = locked(&self.open);
        let Some(state) = open.get(name).map(|view| view.state()) else { return Look::Some };
        match &state.approached.neighbour {
            // The watch tells of new entries.
            _ if state.creations => Look::Away,
            Some(neighbour) => Look::At(neighbour.clone()),
            None => Look::Some,
        }
    }

    /// Fails all waiters, and those that join before their views are closed.
    pub(crate) fn refuse(&self, error: &LockError) {
        let open: Vec<_> = locked(&self.open).values().cloned().collect();
        open.iter().for_each(|view| view.refused(error.clone()));
    }

    pub(crate) fn forget_neighbour(&self, name: &LockName) {
        if let Some(view) = locked(&self.open).get(name) {
            view.state().approached.neighbour = None;
        }
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
            let view = Arc::new(View { prefix: entry.prefix.clone(), state: Mutex::default(), wake: Notify::new() });
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
            () = self.keep() => {}
            () = self.views.stop.cancelled() => {}
        }
    }

    /// Keeps the queue in view until nobody has waited in it for a while.
    async fn keep(&self) {
        let (views, view) = (&self.views, &self.view);
        let mut approach = Approach::default();
        loop {
            approach.wait(views, view).await;
            self.follow().await;
            view.state().rest();
            while view.state().waiters.is_empty() {
                if self.close_if_over(approach.has_bell()) {
                    return;
                }
                tokio::select! {
                    () = view.wake.notified() => {}
                    () = tokio::time::sleep_until(view.look_again(Instant::now())) => {}
                }
            }
        }
    }

    /// Follows the queue until nobody waits in it, nor is likely to soon enough to keep watching.
    async fn follow(&self) {
        let (views, view) = (&self.views, &self.view);
        if view.state().is_spent() {
            return;
        }
        let mut watch = views.watch(view);
        let mut read_at = Instant::now();
        while !view.state().is_spent() {
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
                } else if view.state().queue.needs_snapshot() {
                    // Whoever joined meanwhile has woken this task. The others should have been in the picture.
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

    /// `rests`: there is something to keep for the next waiter.
    fn close_if_over(&self, rests: bool) -> bool {
        let mut open = locked(&self.views.open);
        let state = self.view.state();
        let close = state.waiters.is_empty() && (!rests || state.has_lingered() || state.refused.is_some());
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
            let _ = sender.send(Err(error.clone()));
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
            Seen::Far { older } => {
                state.crowded = true;
                if !state.follows && state.queue.waiting() == 0 {
                    state.approached.begin(older, created);
                }
            }
            Seen::None => state.crowded = true,
        }
        if state.queue.first_waiting().is_some_and(|(first, _)| created < first) {
            // What was approached may be behind this one.
            state.approached.older = None;
        }
        let verdicts = state.queue.join(key.clone(), created);
        state.settle(verdicts);
        let reads = state.queue.needs_snapshot() || state.suspicion.is_some();
        let needs_attention = !state.follows || reads || state.wants_creations();
        drop(state);
        if needs_attention {
            self.wake.notify_one();
        }
        Waiter { view: Arc::clone(self), created, key, verdict }
    }

    fn wants_creations(&self) -> bool {
        self.state().wants_creations()
    }

    fn needs_read(&self, read_at: Instant) -> bool {
        let state = self.state();
        state.queue.needs_snapshot() || !state.waiters.is_empty() && state.read_due(read_at) <= Instant::now()
    }

    /// When to look for idleness or for the backstop read.
    fn look_again(&self, read_at: Instant) -> Instant {
        let state = self.state();
        match state.idle_since {
            Some(since) => since + LINGER,
            None => state.read_due(read_at),
        }
    }

    async fn read(&self, cluster: &Cluster) -> Result<(), Failure> {
        let asked = Instant::now();
        let listing = Listing::read(cluster, &self.prefix, None).await?;
        let blocked_by = listing.first().and_then(|first| Some((first.key().to_vec(), self.prefix.stranger(first)?)));
        let mut state = self.state();
        if let Some((_, stranger)) = blocked_by.as_ref().filter(|_| state.blocked_by != blocked_by) {
            tracing::warn!(backend = BACKEND, below = self.prefix.as_str(), "a lock is blocked by {stranger}");
        }
        state.blocked_by = blocked_by;
        state.suspicion =
            state.suspicion.filter(|suspicion| suspicion.read_at > asked).or_else(|| state.suspicion.and_then(Suspicion::next));
        let snapshot = self.prefix.snapshot(&listing.entries, listing.revision);
        if !state.crowded {
            state.approached.neighbour = None;
        } else if let Some(ahead) = state.queue.ahead(&snapshot)
            && let Some(distance) = state.approached.judge(ahead)
        {
            state.approached.neighbour = state.queue.neighbour(&snapshot, distance);
        }
        let verdicts = state.queue.snapshot(snapshot);
        state.settle(verdicts);
        Ok(())
    }

    fn refused(&self, error: LockError) {
        let mut state = self.state();
        for (_, waiter) in state.waiters.drain() {
            let _ = waiter.send(Err(error.clone()));
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

    /// When to read the queue although the watch is open, for whoever waits.
    fn read_due(&self, read_at: Instant) -> Instant {
        let backstop = read_at + BACKSTOP;
        self.suspicion.map_or(backstop, |suspicion| suspicion.read_at.min(backstop))
    }

    fn wants_creations(&self) -> bool {
        !self.creations && self.crowded && self.queue.waiting() >= MANY
    }

    fn change_watch(&mut self) -> (u64, bool) {
        self.creations = self.wants_creations();
        self.watch += 1;
        (self.follows, self.suspicion) = (true, None);
        self.queue.interrupted();
        (self.watch, self.creations)
    }

    /// Whether nobody waits here, nor is likely to soon enough to keep watching.
    fn is_spent(&self) -> bool {
        let at_once = self.crowded && !self.creations;
        self.waiters.is_empty() && (at_once || self.has_lingered()) || self.refused.is_some()
    }

    fn has_lingered(&self) -> bool {
        self.idle_since.is_none_or(|since| since.elapsed() >= LINGER)
    }

    /// The queue is not followed any more.
    fn rest(&mut self) {
        (self.follows, self.creations, self.crowded) = (false, false, false);
        self.watch += 1;
        self.queue.interrupted();
    }
}

impl Waiter {
    /// Waits for the verdict.
    pub(crate) async fn verdict(&mut self) -> Result<Verdict, LockError> {
        (&mut self.verdict).await.unwrap_or_else(|_| Err(runtime_ended()))
    }
}

impl Waiter {
    /// Who holds the lock, as far as is known, or what blocks it.
    pub(crate) fn holder(&self) -> Option<OwnerId> {
        let state = self.view.state();
        if let Some((_, stranger)) = &state.blocked_by {
            return Some(OwnerId::new(stranger.as_str()));
        }
        state.queue.holder().filter(|(created, _)| *created < self.created).map(|(created, key)| self.view.prefix.owner(key, created))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.view.state();
        state.queue.leave(&self.key, self.created);
        state.waiters.remove(&self.key);
        state.settle(Verdicts::new());
        let idle = state.idle_since.is_some();
        drop(state);
        if idle {
            self.view.wake.notify_one();
        }
    }
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").field("open", &self.count()).finish_non_exhaustive()
    }
}
