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
    backend::{Clock, Contact, LossTrigger, Moment, Tasks, locked},
};
use redis::Value;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    held::{Found, Held},
    lines::{Limits, Lines, Step, Ticket, Turn},
    link::{Connection, Listener},
    servers::Servers,
};

/// Hears what the server pushes over the tracking link, and passes it on to the waiters and guards of one client.
pub(crate) struct Watcher {
    news: Arc<News>,
    driver: Mutex<Option<JoinHandle<()>>>,
    tasks: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What waiters and guards want to be told; the tracking link's listener.
pub(crate) struct News {
    lines: Mutex<Lines<Arc<Notify>>>,
    /// What the heads of the lines hear of the server, for all who wait.
    contacts: Mutex<HashMap<Arc<str>, Weak<Contact>>>,
    held: Mutex<Watched>,
    wake: Notify,
}

struct Watched {
    held: Held<LossTrigger>,
    /// When the driver looks again by itself; it need not be woken for anything later.
    asleep_until: Option<Moment>,
}

/// Reads keys over connections that track what is read.
#[async_trait]
pub(crate) trait Reader: Send + Sync + 'static {
    /// What the keys hold, one for each in order; fewer if they cannot be read.
    async fn read(&self, keys: &[Arc<str>]) -> Vec<Found>;
}

const CLOCK: Clock = Clock::Suspend;

impl News {
    pub(crate) fn new() -> Arc<Self> {
        let held = Watched { held: Held::new(), asleep_until: None };
        Arc::new(Self { lines: Mutex::new(Lines::new()), contacts: Mutex::default(), held: Mutex::new(held), wake: Notify::new() })
    }

    /// What a report means to the guards of a key, whose waiters are not told.
    pub(crate) fn changed_for_holders(&self, key: &str) {
        self.update_held(|held| held.changed(key, CLOCK.now()));
    }

    /// One for all who wait for the key at the same time.
    fn contact(&self, key: &Arc<str>) -> Arc<Contact> {
        let mut contacts = locked(&self.contacts);
        let contact = contacts.get(key).and_then(Weak::upgrade).unwrap_or_else(|| Contact::new(CLOCK));
        contacts.insert(Arc::clone(key), Arc::downgrade(&contact));
        contact
    }

    fn update_held(&self, update: impl FnOnce(&mut Held<LossTrigger>)) {
        let mut watched = locked(&self.held);
        update(&mut watched.held);
        let too_late = |next| watched.asleep_until.is_none_or(|until| next < until);
        if watched.held.next().is_some_and(too_late) {
            self.wake.notify_one();
        }
    }
}

impl Listener for News {
    fn changed(&self, key: &[u8]) {
        let Ok(key) = str::from_utf8(key) else { return };
        let head = locked(&self.lines).changed(key);
        if let Some(head) = head {
            head.notify_one();
        }
        self.changed_for_holders(key);
    }

    fn missed(&self, concerned: &dyn Fn(&str) -> bool) {
        let heads = locked(&self.lines).missed(concerned);
        heads.iter().for_each(|head| head.notify_one());
        self.update_held(|held| held.missed(concerned, CLOCK.now()));
    }
}

impl Watcher {
    pub(crate) fn new(news: Arc<News>, tasks: Tasks) -> Self {
        let stop = CancellationToken::new();
        Self { news, driver: Mutex::new(None), tasks, _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// Whether nobody of this client waits for the key.
    pub(crate) fn nobody_waits(&self, key: &str) -> bool {
        locked(&self.news.lines).is_empty(key)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        locked(&self.news.lines).waiting()
    }

    /// How many guards are watched over.
    pub(crate) fn held(&self) -> usize {
        locked(&self.news.held).held.len()
    }

    /// Takes the last place in the key's line.
    pub(crate) fn join(&self, key: &Arc<str>, limits: Limits) -> Place {
        let woken = Arc::new(Notify::new());
        let ticket = locked(&self.news.lines).join(key, Arc::clone(&woken), limits);
        Place { news: Arc::clone(&self.news), key: Arc::clone(key), ticket, woken, limits, contact: self.news.contact(key) }
    }

    /// A holder of this client tells the next one of its release; see [`Lines::released`].
    pub(crate) fn released(&self, key: &str, since: Option<Moment>) {
        let head = locked(&self.news.lines).released(key, since);
        if let Some(head) = head {
            head.notify_one();
        }
    }

    /// Watches over a guard, whose key the reader reads, until [`leave`](Self::leave).
    pub(crate) fn hold(&self, key: &Arc<str>, owner: OwnerId, guard: LossTrigger, reader: Arc<dyn Reader>) {
        let mut driver = locked(&self.driver);
        if driver.as_ref().is_none_or(JoinHandle::is_finished) {
            locked(&self.news.held).asleep_until = None;
            *driver = self.tasks.spawn(drive(Arc::clone(&self.news), reader, self.stop.clone()));
        }
        drop(driver);
        self.news.update_held(|held| held.insert(key, owner, guard, CLOCK.now()));
    }

    pub(crate) fn leave(&self, key: &str, owner: &OwnerId) {
        locked(&self.news.held).held.remove(key, owner);
    }

    /// Ends the watch over guards.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("waiting", &self.waiting()).field("held", &self.held()).finish_non_exhaustive()
    }
}

/// A waiter's place in its key's line; given up when dropped.
pub(crate) struct Place {
    news: Arc<News>,
    key: Arc<str>,
    ticket: Ticket,
    woken: Arc<Notify>,
    limits: Limits,
    contact: Arc<Contact>,
}

impl Place {
    /// Waits until it is this waiter's turn to compete.
    pub(crate) async fn turn(&self) -> Turn {
        loop {
            let step = locked(&self.news.lines).step(&self.key, self.ticket, CLOCK.now());
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
                Step::Rejoin => locked(&self.news.lines).rejoin(&self.key, self.ticket, Arc::clone(&self.woken), self.limits),
            }
        }
    }

    pub(crate) fn taken(&self, turn: Turn, expires_in: Option<Duration>, poll: Duration) {
        locked(&self.news.lines).taken(&self.key, self.ticket, turn, CLOCK.now(), expires_in, poll);
    }

    pub(crate) fn taken_unheard(&self, turn: Turn, expires_in: Option<Duration>, poll: Duration) {
        locked(&self.news.lines).taken_unheard(&self.key, self.ticket, turn, CLOCK.now(), expires_in, poll);
    }

    /// What the line hears of the server.
    pub(crate) fn contact(&self) -> Arc<Contact> {
        Arc::clone(&self.contact)
    }

    /// The trouble of this line is over; the head goes on at once.
    pub(crate) fn answered(&self) {
        locked(&self.news.lines).answered(&self.key, self.ticket);
    }

    pub(crate) fn pause(&self, pause: Duration) {
        locked(&self.news.lines).pause(&self.key, self.ticket, CLOCK.now() + pause);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = locked(&self.news.lines).leave(&self.key, self.ticket);
        if let Some(next) = next {
            next.notify_one();
        }
        // Under the lines' lock: whoever joins after this finds none.
        let lines = locked(&self.news.lines);
        if lines.is_empty(&self.key) {
            locked(&self.news.contacts).remove(&self.key);
        }
    }
}

async fn drive(news: Arc<News>, reader: Arc<dyn Reader>, stop: CancellationToken) {
    loop {
        let (read, next) = {
            let mut watched = locked(&news.held);
            let read = watched.held.poll(CLOCK.now());
            watched.asleep_until = if read.is_some() { Some(CLOCK.now()) } else { watched.held.next() };
            (read, watched.asleep_until)
        };
        let work = async {
            match (&read, next) {
                (Some(read), _) => {
                    let found = reader.read(&read.keys).await;
                    let lost = locked(&news.held).held.complete(read, &found, CLOCK.now());
                    lost.iter().for_each(|guard| guard.lose(LossReason::Removed));
                }
                (None, Some(next)) => tokio::select! {
                    () = news.wake.notified() => {}
                    () = CLOCK.sleep_until(next) => {}
                },
                (None, None) => news.wake.notified().await,
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
    async fn read(&self, keys: &[Arc<str>]) -> Vec<Found> {
        let mut found = vec![None; keys.len()];
        let groups = self.group(keys.iter().map(|key| &**key));
        let reads = groups.iter().map(|places| async move { (places, read_group(self, keys, places).await) });
        for (places, values) in join_all(reads).await {
            for (at, value) in places.iter().zip(values) {
                found[*at] = value;
            }
        }
        found
    }
}

/// What those of the keys hold that one server keeps.
async fn read_group(servers: &Servers, keys: &[Arc<str>], places: &[usize]) -> Vec<Found> {
    let Some(first) = places.first() else { return Vec::new() };
    let mut gets = redis::pipe();
    for at in places {
        gets.cmd("GET").arg(&*keys[*at]);
    }
    let mut route = servers.route(&keys[*first]);
    let values = async {
        let connection: Connection = route.tracking().await?;
        connection.run_all(&gets, places.len()).await
    };
    match servers.in_cluster_within(None, values).await {
        Ok(values) => {
            values.iter().filter_map(|value| value.as_ref().err()).for_each(|failure| drop(route.note(failure)));
            values.into_iter().map(|value| value.ok().and_then(held_value)).collect()
        }
        Err(failure) => {
            route.note(&failure);
            tracing::debug!(?failure, "held locks cannot be watched at the moment, their renewals tell of a loss");
            Vec::new()
        }
    }
}

fn held_value(value: Value) -> Found {
    match value {
        Value::Nil => Some(None),
        Value::BulkString(value) => Some(Some(value)),
        _ => None,
    }
}
