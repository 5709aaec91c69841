use std::{
    collections::HashMap,
    fmt::{self, Debug},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use lock_core::{
    LossReason, OwnerId,
    backend::{Clock, LossTrigger, Moment, StoreHealth, Tasks, locked},
};
use redis::Value;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    keys::lock_of,
    transport::reconnect::{Connection, Listener},
    transport::routing::Servers,
    waiters::local::{Limits, LocalQueues, Step, Ticket, Turn},
    waiters::watched_keys::{ReadValue, WatchedKeys},
};

/// Hears what the server pushes over the tracking connection, and passes it on to the waiters and
/// guards of one client.
pub(crate) struct Watcher {
    invalidations: Arc<Invalidations>,
    driver: Mutex<Option<JoinHandle<()>>>,
    tasks: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What waiters and guards want to be told; the tracking connection's listener.
pub(crate) struct Invalidations {
    queues: Mutex<LocalQueues<Arc<Notify>>>,
    /// Reports that the heads of the queues hear of the server, for all that wait.
    health: Mutex<HashMap<Arc<str>, Weak<StoreHealth>>>,
    held: Mutex<Watched>,
    wake: Notify,
    /// For those who watch a key without waiting for it.
    reports: Mutex<HashMap<Arc<str>, watch::Sender<()>>>,
}

struct Watched {
    held: WatchedKeys<LossTrigger>,
    /// The instant at which the driver looks again by itself; it need not be woken for anything
    /// later.
    asleep_until: Option<Moment>,
}

/// Reads keys over connections that track what is read.
#[async_trait]
pub(crate) trait Reader: Send + Sync + 'static {
    /// Returns what the keys hold, one for each in order; fewer if they cannot be read.
    async fn read(&self, keys: &[Arc<str>]) -> Vec<ReadValue>;
}

const CLOCK: Clock = Clock::Suspend;

impl Invalidations {
    pub(crate) fn new() -> Arc<Self> {
        let held = Watched {
            held: WatchedKeys::new(),
            asleep_until: None,
        };
        let queues = Mutex::new(LocalQueues::new());
        let held = Mutex::new(held);
        let wake = Notify::new();
        Arc::new(Self {
            queues,
            health: Mutex::default(),
            held,
            wake,
            reports: Mutex::default(),
        })
    }

    /// Returns what a report means to the guards and the watches of a key, whose waiters are not
    /// told.
    pub(crate) fn changed_for_holders(&self, key: &str) {
        self.update_watched(|held| held.changed(key, CLOCK.now()));
        if let Some(watched) = locked(&self.reports).get(key) {
            watched.send_replace(());
        }
    }

    /// One for all who wait for the key at the same time.
    fn health(&self, key: &Arc<str>) -> Arc<StoreHealth> {
        let mut all = locked(&self.health);
        let health = all
            .get(key)
            .and_then(Weak::upgrade)
            .unwrap_or_else(|| StoreHealth::new(CLOCK));
        all.insert(Arc::clone(key), Arc::downgrade(&health));
        health
    }

    fn update_watched(&self, update: impl FnOnce(&mut WatchedKeys<LossTrigger>)) {
        let mut watched = locked(&self.held);
        update(&mut watched.held);
        let too_late = |next| watched.asleep_until.is_none_or(|until| next < until);
        if watched.held.next().is_some_and(too_late) {
            self.wake.notify_one();
        }
    }
}

impl Listener for Invalidations {
    fn changed(&self, key: &[u8]) {
        let Ok(key) = str::from_utf8(key) else { return };
        // An entry in the store's queue stands for its lock.
        let Some(lock) = lock_of(key) else { return };
        let head = locked(&self.queues).changed(lock, key);
        if let Some(head) = head {
            head.notify_one();
        }
        if lock.len() == key.len() {
            self.changed_for_holders(key);
        }
    }

    fn missed(&self, concerned: &dyn Fn(&str) -> bool) {
        let heads = locked(&self.queues).missed(concerned);
        heads.iter().for_each(|head| head.notify_one());
        self.update_watched(|held| held.missed(concerned, CLOCK.now()));
        locked(&self.reports)
            .iter()
            .filter(|(key, _)| concerned(key))
            .for_each(|(_, watched)| watched.send_replace(()));
    }
}

impl Watcher {
    pub(crate) fn new(invalidations: Arc<Invalidations>, tasks: Tasks) -> Self {
        let stop = CancellationToken::new();
        Self {
            invalidations,
            driver: Mutex::new(None),
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Returns whether nobody of this client waits for the key.
    pub(crate) fn nobody_waits(&self, key: &str) -> bool {
        locked(&self.invalidations.queues).is_empty(key)
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        locked(&self.invalidations.queues).waiting()
    }

    /// Returns how many guards are watched over.
    pub(crate) fn held(&self) -> usize {
        locked(&self.invalidations.held).held.len()
    }

    /// Takes the last place in the key's queue.
    pub(crate) fn join(&self, key: &Arc<str>, limits: Limits) -> Place {
        let woken = Arc::new(Notify::new());
        let ticket = locked(&self.invalidations.queues).join(key, Arc::clone(&woken), limits);
        Place {
            invalidations: Arc::clone(&self.invalidations),
            key: Arc::clone(key),
            ticket,
            woken,
            limits,
            health: self.invalidations.health(key),
        }
    }

    /// A holder of this client tells the next one of its release; see [`LocalQueues::released`].
    pub(crate) fn released(&self, key: &str, since: Option<Moment>) {
        let head = locked(&self.invalidations.queues).released(key, since);
        if let Some(head) = head {
            head.notify_one();
        }
    }

    /// Watches over a guard, whose key the reader reads, until [`leave`](Self::leave).
    pub(crate) fn hold(
        &self,
        key: &Arc<str>,
        owner: OwnerId,
        guard: LossTrigger,
        reader: Arc<dyn Reader>,
    ) {
        let mut driver = locked(&self.driver);
        if driver.as_ref().is_none_or(JoinHandle::is_finished) {
            locked(&self.invalidations.held).asleep_until = None;
            *driver = self.tasks.spawn(drive(
                Arc::clone(&self.invalidations),
                reader,
                self.stop.clone(),
            ));
        }
        drop(driver);
        self.invalidations
            .update_watched(|held| held.insert(key, owner, guard, CLOCK.now()));
    }

    pub(crate) fn leave(&self, key: &str, owner: &OwnerId) {
        locked(&self.invalidations.held).held.remove(key, owner);
    }

    /// Returns what is reported of a key from now on.
    pub(crate) fn reports(&self, key: &Arc<str>) -> Reports {
        let heard = locked(&self.invalidations.reports)
            .entry(Arc::clone(key))
            .or_default()
            .subscribe();
        Reports {
            invalidations: Arc::clone(&self.invalidations),
            key: Arc::clone(key),
            heard,
        }
    }

    /// Ends the watch over guards.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("waiting", &self.waiting())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// Report that a key has changed, or may have.
pub(crate) struct Reports {
    invalidations: Arc<Invalidations>,
    key: Arc<str>,
    heard: watch::Receiver<()>,
}

impl Reports {
    /// Only what comes from now on counts.
    pub(crate) fn forget(&mut self) {
        self.heard.mark_unchanged();
    }

    pub(crate) async fn next(&mut self) {
        // Its sender stays for as long as this.
        let _ = self.heard.changed().await;
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let mut reports = locked(&self.invalidations.reports);
        if reports
            .get(&self.key)
            .is_some_and(|watched| watched.receiver_count() <= 1)
        {
            reports.remove(&self.key);
        }
    }
}

/// A waiter's place in its key's queue; given up when dropped.
pub(crate) struct Place {
    invalidations: Arc<Invalidations>,
    key: Arc<str>,
    ticket: Ticket,
    woken: Arc<Notify>,
    limits: Limits,
    health: Arc<StoreHealth>,
}

impl Place {
    /// Waits until it is this waiter's turn to compete.
    pub(crate) async fn turn(&self) -> Turn {
        loop {
            let step = locked(&self.invalidations.queues).step(&self.key, self.ticket, CLOCK.now());
            match step {
                Step::Try(turn) => return turn,
                Step::Wait(until) => tokio::select! {
                    () = self.woken.notified() => {}
                    () = CLOCK.sleep_until(until) => {}
                },
                Step::Follow(look) => tokio::select! {
                    () = self.woken.notified() => {}
                    () = tokio::time::sleep(look) => {}
                },
                Step::Rejoin => locked(&self.invalidations.queues).rejoin(
                    &self.key,
                    self.ticket,
                    Arc::clone(&self.woken),
                    self.limits,
                ),
            }
        }
    }

    /// Which `entry`, or else the lock, is looked at next.
    pub(crate) fn listen(&self, entry: Option<&str>) {
        locked(&self.invalidations.queues).listen(&self.key, self.ticket, entry);
    }

    pub(crate) fn taken(&self, turn: Turn, expires_in: Option<Duration>, poll: Duration) {
        locked(&self.invalidations.queues).taken(
            &self.key,
            self.ticket,
            turn,
            CLOCK.now(),
            expires_in,
            poll,
        );
    }

    pub(crate) fn taken_untracked(&self, turn: Turn, expires_in: Option<Duration>, poll: Duration) {
        locked(&self.invalidations.queues).taken_untracked(
            &self.key,
            self.ticket,
            turn,
            CLOCK.now(),
            expires_in,
            poll,
        );
    }

    /// Returns what the queue hears of the server.
    pub(crate) fn health(&self) -> Arc<StoreHealth> {
        Arc::clone(&self.health)
    }

    /// What the head waited for is over.
    pub(crate) fn progressed(&self) {
        locked(&self.invalidations.queues).progressed(&self.key, self.ticket);
    }

    /// The failures of this queue is over; the head goes on at once.
    pub(crate) fn answered(&self) {
        locked(&self.invalidations.queues).answered(&self.key, self.ticket);
    }

    pub(crate) fn pause(&self, pause: Duration) {
        locked(&self.invalidations.queues).pause(&self.key, self.ticket, CLOCK.now() + pause);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = locked(&self.invalidations.queues).leave(&self.key, self.ticket);
        if let Some(next) = next {
            next.notify_one();
        }
        // Under the queues' lock: whoever joins after this finds none.
        let queues = locked(&self.invalidations.queues);
        if queues.is_empty(&self.key) {
            locked(&self.invalidations.health).remove(&self.key);
        }
    }
}

async fn drive(
    invalidations: Arc<Invalidations>,
    reader: Arc<dyn Reader>,
    stop: CancellationToken,
) {
    loop {
        let (read, next) = {
            let mut watched = locked(&invalidations.held);
            let read = watched.held.poll(CLOCK.now());
            watched.asleep_until = if read.is_some() {
                Some(CLOCK.now())
            } else {
                watched.held.next()
            };
            (read, watched.asleep_until)
        };
        let work = async {
            match (&read, next) {
                (Some(read), _) => {
                    let found = reader.read(&read.keys).await;
                    let lost = locked(&invalidations.held)
                        .held
                        .complete(read, &found, CLOCK.now());
                    lost.iter()
                        .for_each(|guard| guard.lose(LossReason::Removed));
                }
                (None, Some(next)) => tokio::select! {
                    () = invalidations.wake.notified() => {}
                    () = CLOCK.sleep_until(next) => {}
                },
                (None, None) => invalidations.wake.notified().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

#[async_trait]
impl Reader for Servers {
    async fn read(&self, keys: &[Arc<str>]) -> Vec<ReadValue> {
        let mut found = vec![None; keys.len()];
        let groups = self.group(keys.iter().map(|key| &**key));
        let reads = groups
            .iter()
            .map(|places| async move { (places, read_group(self, keys, places).await) });
        for (places, values) in join_all(reads).await {
            for (at, value) in places.iter().zip(values) {
                found[*at] = value;
            }
        }
        found
    }
}

/// Returns what those of the keys hold that one server keeps.
async fn read_group(servers: &Servers, keys: &[Arc<str>], places: &[usize]) -> Vec<ReadValue> {
    let Some(first) = places.first() else {
        return Vec::new();
    };
    let mut gets = redis::pipe();
    for at in places {
        gets.cmd("GET").arg(&*keys[*at]);
    }
    // Locks that are watched over have been held for a while: they will be renewed.
    servers.prepare_renewals(&keys[*first]);
    let mut route = servers.route(&keys[*first]);
    let values = async {
        let connection: Connection = route.tracking().await?;
        connection.run_all(&gets, places.len()).await
    };
    match servers.in_cluster_within(None, values).await {
        Ok(values) => {
            values
                .iter()
                .filter_map(|value| value.as_ref().err())
                .for_each(|failure| drop(route.note(failure)));
            values
                .into_iter()
                .map(|value| value.ok().and_then(value_of))
                .collect()
        }
        Err(failure) => {
            route.note(&failure);
            tracing::debug!(
                ?failure,
                "held locks cannot be watched at the moment, their renewals tell of a loss"
            );
            Vec::new()
        }
    }
}

fn value_of(value: Value) -> ReadValue {
    match value {
        Value::Nil => Some(None),
        Value::BulkString(value) => Some(Some(value)),
        _ => None,
    }
}
