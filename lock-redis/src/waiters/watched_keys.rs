use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lock_core::{OwnerId, backend::Moment};

use crate::waiters::pace::Pace;

/// Which held keys are to be read over the tracking connection, and when, so that a guard whose
/// entry was removed learns of it: synchronous, no I/O.
///
/// A key is first read some time after it was acquired, so that short holds cost nothing; then
/// whenever the server reports a change, which the holder's own renewals are too.
#[derive(Debug)]
pub(crate) struct WatchedKeys<T> {
    keys: HashMap<Arc<str>, Key<T>>,
    queue: BTreeSet<(Moment, Arc<str>)>,
    last_read: u64,
}

#[derive(Debug)]
struct Key<T> {
    /// One, or more while lost guards of the same name have not been dropped yet.
    guards: Vec<Guard<T>>,
    due: Option<Moment>,
    /// The latest read on its way.
    reading: Option<u64>,
    /// A change was reported while a read was on its way.
    changed: bool,
    /// How soon it is read after a report.
    pace: Pace,
}

#[derive(Debug)]
struct Guard<T> {
    owner: OwnerId,
    trigger: T,
    /// Reads up to this one were sent before the lock was acquired: they say nothing about it.
    after: u64,
}

/// Keys to read at once.
#[derive(Debug)]
pub(crate) struct Read {
    id: u64,
    pub(crate) keys: Vec<Arc<str>>,
}

/// Result of a read; `None` for what could not be read.
pub(crate) type ReadValue = Option<Option<Vec<u8>>>;

/// Most keys of one read.
pub(crate) const BATCH: usize = 256;

/// Time for which a lock is held before its key is first read.
const SETTLE: Duration = Duration::from_millis(100);

/// Reports that come close together, such as those of a batch of renewals, make one read.
const GATHER: Duration = Duration::from_millis(5);

/// Longest time between two reads of a key that is reported again and again, and that has not
/// changed.
const LONGEST_PACE: Duration = Duration::from_secs(2);

/// Until a failed read is repeated.
const RETRY: Duration = Duration::from_millis(500);

impl<T> WatchedKeys<T> {
    pub(crate) fn new() -> Self {
        Self {
            keys: HashMap::new(),
            queue: BTreeSet::new(),
            last_read: 0,
        }
    }

    /// Returns how many guards are watched over.
    pub(crate) fn len(&self) -> usize {
        self.keys.values().map(|key| key.guards.len()).sum()
    }

    pub(crate) fn insert(&mut self, name: &Arc<str>, owner: OwnerId, trigger: T, now: Moment) {
        let guard = Guard {
            owner,
            trigger,
            after: self.last_read,
        };
        let key = self.keys.entry(Arc::clone(name)).or_insert_with(|| Key {
            guards: Vec::with_capacity(1),
            due: None,
            reading: None,
            changed: false,
            pace: Pace::new(LONGEST_PACE),
        });
        key.guards.push(guard);
        key.schedule(&mut self.queue, name, now + SETTLE);
    }

    pub(crate) fn remove(&mut self, name: &str, owner: &OwnerId) {
        let Some(key) = self.keys.get_mut(name) else {
            return;
        };
        key.guards.retain(|guard| guard.owner != *owner);
        if key.guards.is_empty() {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some((name, key)) = self.keys.remove_entry(name)
            && let Some(due) = key.due
        {
            self.queue.remove(&(due, name));
        }
    }

    /// The server reports that a key has changed.
    pub(crate) fn changed(&mut self, name: &str, now: Moment) {
        let Some((name, key)) = self
            .keys
            .get_key_value(name)
            .map(|(name, _)| Arc::clone(name))
            .zip(self.keys.get_mut(name))
        else {
            return;
        };
        if key.reading.is_some() {
            key.changed = true;
        } else {
            key.schedule_reported(&mut self.queue, &name, now);
        }
    }

    /// Reports of `concerned` keys may have been missed: they are read again.
    pub(crate) fn missed(&mut self, concerned: impl Fn(&str) -> bool, now: Moment) {
        for (name, key) in self.keys.iter_mut().filter(|(name, _)| concerned(name)) {
            key.reading = None;
            key.schedule(&mut self.queue, name, now + GATHER);
        }
    }

    /// Returns when to call [`poll`](Self::poll) next.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Returns what to read at `now`.
    pub(crate) fn poll(&mut self, now: Moment) -> Option<Read> {
        let mut keys = Vec::new();
        while keys.len() < BATCH
            && self.queue.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, name)) = self.queue.pop_first()
        {
            keys.push(name);
        }
        if keys.is_empty() {
            return None;
        }
        self.last_read += 1;
        for name in &keys {
            if let Some(key) = self.keys.get_mut(name) {
                (key.due, key.reading, key.changed) = (None, Some(self.last_read), false);
            }
        }
        Some(Read {
            id: self.last_read,
            keys,
        })
    }

    /// Takes what a read found, one for each of its keys; returns the guards that are lost.
    pub(crate) fn complete(&mut self, read: &Read, found: &[ReadValue], now: Moment) -> Vec<T> {
        let mut lost = Vec::new();
        for (at, name) in read.keys.iter().enumerate() {
            let Some(key) = self.keys.get_mut(name) else {
                continue;
            };
            let found = found.get(at).unwrap_or(&None);
            if let Some(value) = found {
                let gone = |guard: &mut Guard<T>| {
                    guard.after < read.id
                        && value.as_deref() != Some(guard.owner.as_str().as_bytes())
                };
                lost.extend(key.guards.extract_if(.., gone).map(|guard| guard.trigger));
                if key.guards.is_empty() {
                    self.forget(name);
                    continue;
                }
            }
            if key.reading != Some(read.id) {
                continue;
            }
            key.reading = None;
            match found {
                None => key.schedule(&mut self.queue, name, now + RETRY),
                Some(_) => {
                    key.pace.looked(now, None);
                    if key.changed {
                        key.schedule_reported(&mut self.queue, name, now);
                    }
                }
            }
        }
        lost
    }
}

impl<T> Key<T> {
    /// Has it read soon, because of a report.
    fn schedule_reported(
        &mut self,
        queue: &mut BTreeSet<(Moment, Arc<str>)>,
        name: &Arc<str>,
        now: Moment,
    ) {
        let due = now + GATHER;
        let paced = self.pace.not_before().map_or(due, |paced| due.max(paced));
        self.schedule(queue, name, paced);
    }

    /// Sets the time of the next read, unless it is set to an earlier one.
    fn schedule(&mut self, queue: &mut BTreeSet<(Moment, Arc<str>)>, name: &Arc<str>, due: Moment) {
        match self.due {
            Some(earlier) if earlier <= due => return,
            Some(later) => queue.remove(&(later, Arc::clone(name))),
            None => false,
        };
        self.due = Some(due);
        queue.insert((due, Arc::clone(name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000_000 + millis))
    }

    fn owner(id: &str) -> OwnerId {
        OwnerId::new(id)
    }

    fn holding(name: &Arc<str>, id: &'static str) -> WatchedKeys<&'static str> {
        let mut held = WatchedKeys::new();
        held.insert(name, owner(id), id, at(0));
        held
    }

    fn value(text: &str) -> ReadValue {
        Some(Some(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_short_hold_is_never_read() {
        let a: Arc<str> = "a".into();
        let mut held = holding(&a, "me");
        assert!(held.poll(at(99)).is_none());
        held.remove("a", &owner("me"));
        assert_eq!((held.next(), held.len()), (None, 0));
    }

    #[test]
    fn a_change_is_read_and_the_loss_reported() {
        let a: Arc<str> = "a".into();
        let mut held = holding(&a, "me");
        let read = held.poll(at(100)).unwrap();
        assert!(held.complete(&read, &[value("me")], at(101)).is_empty());
        assert_eq!(held.next(), None, "quiet until the server reports");
        held.changed("a", at(200));
        held.changed("other", at(200));
        let read = held.poll(at(205)).unwrap();
        assert_eq!(held.complete(&read, &[Some(None)], at(206)), ["me"]);
    }

    #[test]
    fn a_foreign_value_is_a_loss_and_a_failed_read_is_not() {
        let a: Arc<str> = "a".into();
        let mut held = holding(&a, "me");
        let read = held.poll(at(100)).unwrap();
        assert!(held.complete(&read, &[], at(100)).is_empty());
        let read = held.poll(at(600)).unwrap();
        assert_eq!(held.complete(&read, &[value("other")], at(601)), ["me"]);
    }

    #[test]
    fn a_read_sent_before_the_acquisition_says_nothing_about_it() {
        let a: Arc<str> = "a".into();
        let mut held = holding(&a, "old");
        let read = held.poll(at(100)).unwrap();
        held.insert(&a, owner("new"), "new", at(101));
        assert_eq!(held.complete(&read, &[Some(None)], at(102)), ["old"]);
        let read = held.poll(at(201)).unwrap();
        held.remove("a", &owner("old"));
        assert!(held.complete(&read, &[value("new")], at(202)).is_empty());
    }

    #[test]
    fn a_change_during_a_read_is_read_again() {
        let a: Arc<str> = "a".into();
        let mut held = holding(&a, "me");
        let read = held.poll(at(100)).unwrap();
        held.changed("a", at(101));
        held.complete(&read, &[value("me")], at(102));
        assert_eq!(held.next(), Some(at(107)));
    }

    #[test]
    fn a_lost_link_reads_everything_again_in_batches() {
        let mut held = WatchedKeys::new();
        for n in 0..1000 {
            held.insert(&format!("k{n}").into(), owner("me"), n, at(0));
        }
        let mut reads = Vec::new();
        while let Some(read) = held.poll(at(100)) {
            reads.push(read.keys.len());
        }
        assert_eq!(reads, [256, 256, 256, 232]);
        held.missed(|_| true, at(200));
        let again: usize = std::iter::from_fn(|| held.poll(at(205)))
            .map(|read| read.keys.len())
            .sum();
        assert_eq!(again, 1000);
    }
}
