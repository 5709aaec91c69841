use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, BuildHasherDefault},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::{
    ErrorKind, LockError, LockName, LossReason,
    backend::{Clock, Moment, locked},
};

use crate::{
    entry::MemEntry,
    faults::Faults,
    key::{Key, Prehashed},
    queue::{Place, Queue},
    watches::{Watch, Watches},
};

/// The store that clients share, as they share a server with the other backends, and the hooks that
/// inject faults.
///
/// Clones are the same store. Its state goes when the last clone, client and guard are dropped.
///
/// # Faults
///
/// For tests of what an application does when its lock is lost or its store fails:
///
/// ```
/// use lock_core::{DistributedLockExt, ErrorKind, GuardState, LossReason};
/// use lock_mem::MemStore;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let store = MemStore::new();
/// let locks = store.client();
///
/// // An operator removes the entry: the guard is told at once.
/// let guard = locks.acquire("orders").await?;
/// assert!(store.evict("orders"));
/// assert_eq!(guard.lost().await, LossReason::Removed);
///
/// // The store stops answering: the guard is lost at its deadline, by the holder's own clock.
/// let guard = locks.acquire("orders").await?;
/// store.freeze();
/// assert_eq!(guard.lost().await, LossReason::Expired);
/// store.thaw();
///
/// // The next request fails.
/// store.fail_next(1, ErrorKind::Unavailable);
/// assert_eq!(locks.try_acquire("orders").await.unwrap_err().kind(), ErrorKind::Unavailable);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemStore(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    faults: Faults,
    /// Watches of who holds a name, which are rare.
    watches: Arc<Watches>,
    /// The last number given out: one counter for all names, so that a name can be forgotten and
    /// its tokens still grow.
    last: AtomicU64,
    hasher: RandomState,
    shards: [Mutex<Names>; SHARDS],
}

type Names = HashMap<Key, NameQueue, BuildHasherDefault<Prehashed>>;

/// One name's queue.
pub(crate) type NameQueue = Queue<Arc<MemEntry>>;

/// Entries that a change of a queue concerns.
pub(crate) type Wake = Vec<Arc<MemEntry>>;

/// Few enough to look at all of them, enough that threads rarely meet.
const SHARDS: usize = 32;

/// A table that has grown beyond this gives memory back once it is mostly empty.
const KEEP_CAPACITY: usize = 1024;

impl MemStore {
    /// An empty store of its own.
    #[must_use]
    pub fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self(Arc::new(Shared {
            faults: Faults::new(),
            watches: Arc::default(),
            last: AtomicU64::new(0),
            hasher: RandomState::new(),
            shards,
        }))
    }

    /// The store that everybody in this process gets under this name, as with the URL `mem://name`.
    /// It stays for as long as the process does.
    #[must_use]
    pub fn named(name: &str) -> Self {
        static STORES: Mutex<Option<HashMap<String, MemStore>>> = Mutex::new(None);
        let mut stores = locked(&STORES);
        stores
            .get_or_insert_default()
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    /// Stops answering, without failing anything: requests wait for [`thaw`](Self::thaw), renewals
    /// get no answer, and guards are lost at their deadlines. Like a server that is stopped, or
    /// behind a broken network.
    pub fn freeze(&self) {
        self.0.faults.set_frozen(true);
        // Every request that was answered before has let go of its shard.
        self.0.shards.iter().for_each(|shard| drop(locked(shard)));
    }

    /// Answers again. Leases that have expired meanwhile are gone.
    pub fn thaw(&self) {
        self.0.faults.set_frozen(false);
    }

    /// Fails the next `requests` requests of any client with an error of this kind, before they
    /// take effect: acquire, renewal, release, inspection. Renewals and releases are retried, and
    /// after [`Unavailable`](ErrorKind::Unavailable) also acquires that wait, as with any store.
    /// Replaces what was set before.
    pub fn fail_next(&self, requests: u32, kind: ErrorKind) {
        self.0.faults.set_failures(requests, kind);
    }

    /// Makes every reply late by this much, while requests take effect at once; zero ends it.
    /// Deadlines count from the requests, so that guards have that much less time.
    pub fn delay_replies(&self, by: Duration) {
        self.0.faults.set_delay(by);
    }

    /// Ends the holder's lease as if its TTL had run out, and tells the guard; the next waiter is
    /// granted. Says whether there was a holder. Works on a frozen store.
    pub fn expire(&self, name: impl AsRef<str>) -> bool {
        self.take_away(name.as_ref(), LossReason::Expired)
    }

    /// Removes the holder's entry, as an operator would behind its back, and tells the guard; the
    /// next waiter is granted. Says whether there was a holder. Works on a frozen store.
    pub fn evict(&self, name: impl AsRef<str>) -> bool {
        self.take_away(name.as_ref(), LossReason::Removed)
    }

    /// Removes the entries of all who wait, and says how many; they queue again at once, in no
    /// particular order.
    pub fn evict_waiters(&self, name: impl AsRef<str>) -> usize {
        let Ok(name) = LockName::new(name.as_ref()) else {
            return 0;
        };
        self.with(&self.key(&name), |queue, _, wake| queue.evict_waiters(wake))
    }

    /// Number of entries that a name has: its holder and its waiters. For leak checks.
    #[must_use]
    pub fn entries(&self, name: impl AsRef<str>) -> usize {
        let Ok(name) = LockName::new(name.as_ref()) else {
            return 0;
        };
        self.with(&self.key(&name), |queue, now, wake| {
            usize::from(queue.holder(now, wake).is_some()) + queue.waiting()
        })
    }

    /// Number of names that the store remembers: those that somebody holds or waits for. For leak
    /// checks.
    #[must_use]
    pub fn names(&self) -> usize {
        self.0.shards.iter().map(|shard| locked(shard).len()).sum()
    }

    fn take_away(&self, name: &str, reason: LossReason) -> bool {
        let Ok(name) = LockName::new(name) else {
            return false;
        };
        self.with(&self.key(&name), |line, now, wake| {
            line.evict(now, None, wake)
        })
        .inspect(|holder| holder.entry.lose(holder.number, reason))
        .is_some()
    }

    /// Puts a request to the store, which may not answer for a while, or fail.
    pub(crate) async fn ask<R>(
        &self,
        key: &Key,
        mut request: impl FnMut(&mut NameQueue, Moment, &mut Wake) -> R,
    ) -> Result<(Moment, R), LockError> {
        loop {
            self.0.faults.pass().await?;
            if let Some(answer) = self.ask_unless_frozen(key, &mut request) {
                self.0.faults.reply().await;
                return Ok(answer);
            }
        }
    }

    /// Puts a request to the store if no fault is set.
    pub(crate) fn ask_now<R>(
        &self,
        key: &Key,
        request: impl FnOnce(&mut NameQueue, Moment, &mut Wake) -> R,
    ) -> Option<(Moment, R)> {
        if self.0.faults.none() {
            self.ask_unless_frozen(key, request)
        } else {
            None
        }
    }

    fn ask_unless_frozen<R>(
        &self,
        key: &Key,
        request: impl FnOnce(&mut NameQueue, Moment, &mut Wake) -> R,
    ) -> Option<(Moment, R)> {
        // Before the lock, so that the wait for it counts as time under way.
        let sent = Clock::Tokio.now();
        let names = self.shard(key);
        if self.0.faults.frozen() {
            return None;
        }
        Some((sent, self.apply(names, key, sent, request)))
    }

    /// Changes the store whatever faults are set.
    pub(crate) fn with<R>(
        &self,
        key: &Key,
        change: impl FnOnce(&mut NameQueue, Moment, &mut Wake) -> R,
    ) -> R {
        let now = Clock::Tokio.now();
        self.apply(self.shard(key), key, now, change)
    }

    /// Finds or makes a request's place in the queue.
    pub(crate) fn place(
        &self,
        entry: &Arc<MemEntry>,
        queue: &mut NameQueue,
        now: Moment,
        wait: bool,
        wake: &mut Wake,
    ) -> Place {
        if entry.number() != 0 {
            let place = queue.look(now, entry.number(), entry.ttl, wake);
            if place != Place::None {
                return entry.granted(place, queue);
            }
        }
        // Under the shard's lock: a name's numbers are given out in the order in which its queue
        // sees them.
        entry.enter(self.0.last.fetch_add(1, Ordering::Relaxed) + 1);
        let place = queue.request(
            now,
            entry.number(),
            entry.ttl,
            Arc::clone(entry),
            wait,
            wake,
        );
        entry.granted(place, queue)
    }

    /// Applies a change to one name, forgets the name if that leaves it idle, and wakes the entries
    /// that the change concerns.
    fn apply<R>(
        &self,
        mut names: MutexGuard<'_, Names>,
        key: &Key,
        now: Moment,
        change: impl FnOnce(&mut NameQueue, Moment, &mut Wake) -> R,
    ) -> R {
        let mut wake = Wake::new();
        let (answer, held) = match names.get_mut(key) {
            Some(line) => {
                let before = line.guards();
                let answer = change(line, now, &mut wake);
                let held = (before, line.guards());
                self.count_beyond(line.token());
                if line.is_idle() {
                    names.remove(key);
                    shrink(&mut names);
                }
                (answer, held)
            }
            None => {
                let mut line = NameQueue::new();
                let answer = change(&mut line, now, &mut wake);
                let held = (None, line.guards());
                if !line.is_idle() {
                    names.insert(key.clone(), line);
                }
                (answer, held)
            }
        };
        drop(names);
        wake.iter().for_each(|entry| entry.wake.notify_one());
        if held.0 != held.1 {
            self.0.watches.tell(key);
        }
        answer
    }

    /// Numbers are tokens: they go on from one that was raised.
    fn count_beyond(&self, token: u64) {
        if token > self.0.last.load(Ordering::Relaxed) {
            self.0.last.fetch_max(token, Ordering::Relaxed);
        }
    }

    /// Notifies the returned value whenever somebody else, or nobody, holds a name, until it is
    /// dropped.
    pub(crate) fn watch(&self, key: Key) -> Watch {
        Watch::new(&self.0.watches, key)
    }

    /// The names that begin with this and that somebody may hold.
    pub(crate) fn held(&self, prefix: &str) -> Vec<Key> {
        let mut held: Vec<Key> = Vec::new();
        for shard in &self.0.shards {
            held.extend(
                locked(shard)
                    .keys()
                    .filter(|key| key.name.as_str().starts_with(prefix))
                    .cloned(),
            );
        }
        held.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        held
    }

    pub(crate) fn key(&self, name: &LockName) -> Key {
        Key {
            hash: self.0.hasher.hash_one(name),
            name: name.clone(),
        }
    }

    /// Picks a shard by other bits than those that a table of names uses.
    fn shard(&self, key: &Key) -> MutexGuard<'_, Names> {
        locked(&self.0.shards[(key.hash >> 32) as usize % SHARDS])
    }
}

fn shrink(names: &mut Names) {
    if names.capacity() > KEEP_CAPACITY && names.len() < names.capacity() / 8 {
        names.shrink_to((names.len() * 2).max(KEEP_CAPACITY / 2));
    }
}

impl Default for MemStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemStore")
            .field("names", &self.names())
            .field("faults", &self.0.faults)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
