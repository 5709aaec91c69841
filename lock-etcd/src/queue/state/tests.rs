use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

fn created(key: &str, revision: i64) -> Change {
    Change::Created {
        key: key.into(),
        revision,
    }
}

fn deleted(key: &str) -> Change {
    Change::Deleted { key: key.into() }
}

fn granted(key: &str, revision: i64) -> WaitOutcomes {
    vec![(key.to_owned(), WaitOutcome::Granted { revision })]
}

fn snapshot(entries: &[(&str, i64)], revision: i64) -> Snapshot {
    Snapshot {
        entries: entries
            .iter()
            .map(|(key, created)| ((*key).to_owned(), *created))
            .collect(),
        revision,
        blocked_by: None,
    }
}

fn watched_from(revision: i64, creations: bool) -> Queue {
    let mut queue = Queue::default();
    queue.opened(revision, creations);
    queue
}

#[test]
fn granted_when_the_last_older_entry_goes() {
    for creations in [false, true] {
        let mut queue = watched_from(5, creations);
        assert!(queue.join("me".into(), 5).is_empty());
        assert!(queue.needs_snapshot());
        assert!(
            queue
                .snapshot(snapshot(&[("a", 2), ("b", 3), ("me", 5)], 6))
                .is_empty()
        );
        assert!(!queue.needs_snapshot());
        assert!(
            queue.changes(7, vec![deleted("b")]).is_empty(),
            "the predecessor gave up in mid-queue"
        );
        assert_eq!(queue.changes(9, vec![deleted("a")]), granted("me", 9));
    }
}

#[test]
fn a_waiter_may_bring_its_snapshot() {
    let mut queue = watched_from(5, false);
    queue.changes(9, vec![deleted("a")]);
    queue.snapshot(snapshot(&[("a", 2), ("b", 3), ("me", 7)], 7));
    assert!(queue.join("me".into(), 7).is_empty());
    assert!(!queue.needs_snapshot());
    assert_eq!(queue.changes(10, vec![deleted("b")]), granted("me", 10));
}

#[test]
fn a_snapshot_from_before_the_watch_is_of_no_use() {
    let mut queue = watched_from(8, false);
    queue.join("me".into(), 7);
    assert!(queue.snapshot(snapshot(&[("me", 7)], 7)).is_empty());
    assert!(queue.needs_snapshot());
    assert_eq!(queue.snapshot(snapshot(&[("me", 7)], 8)), granted("me", 8));
}

#[test]
fn a_snapshot_older_than_all_remembered_deletions_is_of_no_use() {
    let mut queue = watched_from(5, false);
    for at in 0..=REMEMBERED as i64 {
        queue.changes(10 + at, vec![deleted(&format!("k{at}"))]);
    }
    queue.join("me".into(), 7);
    queue.snapshot(snapshot(&[("k0", 2), ("me", 7)], 8));
    assert!(
        queue.needs_snapshot(),
        "whether k0 has gone since is forgotten"
    );
}

#[test]
fn with_creations_reported_one_snapshot_is_enough() {
    let mut queue = watched_from(4, true);
    queue.changes(5, vec![created("other", 5)]);
    queue.join("me".into(), 6);
    queue.snapshot(snapshot(&[], 4));
    assert!(!queue.needs_snapshot());
    assert!(queue.changes(6, vec![created("me", 6)]).is_empty());
    assert_eq!(queue.changes(7, vec![deleted("other")]), granted("me", 7));
}

#[test]
fn evicted_by_event_by_snapshot_and_at_joining() {
    let evicted = vec![("me".to_owned(), WaitOutcome::Evicted)];
    let mut queue = watched_from(4, false);
    queue.join("me".into(), 3);
    queue.snapshot(snapshot(&[("a", 2), ("me", 3)], 4));
    assert_eq!(queue.changes(5, vec![deleted("me")]), evicted);
    queue.opened(5, false);
    queue.join("me".into(), 3);
    assert_eq!(queue.snapshot(snapshot(&[("a", 2)], 6)), evicted);
    assert_eq!(queue.join("me".into(), 3), evicted);
}

#[test]
fn a_snapshot_is_enough_where_no_watch_can_be_opened() {
    let mut queue = Queue::default();
    for (key, created) in [("me", 3), ("gone", 4), ("late", 9)] {
        assert!(queue.join(key.into(), created).is_empty());
    }
    let found = queue.snapshot(snapshot(&[("a", 2), ("me", 3)], 6));
    assert_eq!(found, vec![("gone".to_owned(), WaitOutcome::Evicted)]);
    assert_eq!(
        queue.snapshot(snapshot(&[("me", 3), ("late", 9)], 10)),
        granted("me", 10)
    );
    assert_eq!(
        (queue.known, queue.entries.len(), queue.waiting()),
        (None, 0, 1),
        "what it showed is not relied on any longer"
    );
}

#[test]
fn a_key_that_is_used_again_is_another_entry() {
    let mut queue = watched_from(5, false);
    queue.snapshot(snapshot(&[("a", 2), ("me", 8)], 8));
    queue.join("me".into(), 8);
    assert!(
        queue.changes(7, vec![deleted("me")]).is_empty(),
        "the entry that had this key before"
    );
    assert_eq!(queue.changes(9, vec![deleted("a")]), granted("me", 9));
}

#[test]
fn another_entry_with_the_same_create_revision_is_not_the_own_one() {
    for watched in [true, false] {
        let mut queue = if watched {
            watched_from(5, false)
        } else {
            Queue::default()
        };
        queue.join("me".into(), 7);
        // The store went back to before 7, and went on.
        assert_eq!(
            queue.snapshot(snapshot(&[("another", 7)], 9)),
            vec![("me".to_owned(), WaitOutcome::Evicted)]
        );
    }
    let mut queue = watched_from(5, false);
    queue.join("me".into(), 7);
    assert!(
        queue
            .snapshot(snapshot(&[("another", 7), ("me", 7)], 9))
            .is_empty(),
        "the other is there as well"
    );
    assert_eq!(
        queue.changes(10, vec![deleted("another")]),
        granted("me", 10)
    );
}

/// A store, and a watch that delivers its history with any delay and any gaps.
#[derive(Debug, Default)]
struct Store {
    revision: i64,
    entries: BTreeMap<i64, String>,
    history: Vec<(i64, Change)>,
}

impl Store {
    fn create(&mut self, key: &str) -> i64 {
        self.revision += 1;
        self.entries.insert(self.revision, key.into());
        self.history
            .push((self.revision, created(key, self.revision)));
        self.revision
    }

    fn has(&self, key: &str) -> bool {
        self.entries.values().any(|present| present == key)
    }

    /// Returns true if the entry of this key that was created then had been deleted by a revision.
    fn gone(&self, key: &str, created: i64, by: i64) -> bool {
        self.history
            .iter()
            .any(|(at, change)| *at > created && *at <= by && *change == deleted(key))
    }

    fn delete(&mut self, at: i64) {
        if let Some(key) = self.entries.remove(&at) {
            self.revision += 1;
            self.history.push((self.revision, deleted(&key)));
        }
    }

    fn read(&self) -> Snapshot {
        Snapshot {
            entries: self
                .entries
                .iter()
                .map(|(created, key)| (key.clone(), *created))
                .collect(),
            revision: self.revision,
            blocked_by: None,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Foreign,
    /// Creates an own entry; its answer brings a snapshot or not.
    Own {
        reads: bool,
    },
    /// The oldest such answer arrives: the waiter joins.
    Join,
    /// Deletes the nth entry, whoever's it is: release, give-up, expiry, an operator.
    Delete(usize),
    Deliver(usize),
    Interrupt,
    /// The watch opens (again) and reports from now on, creations or not.
    Open {
        creations: bool,
    },
    /// Reads now; the answer arrives at the next `Answer`.
    Read,
    Answer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Foreign),
        3 => any::<bool>().prop_map(|reads| Step::Own { reads }),
        3 => Just(Step::Join),
        4 => (0..4_usize).prop_map(Step::Delete),
        5 => (1..4_usize).prop_map(Step::Deliver),
        1 => Just(Step::Interrupt),
        2 => any::<bool>().prop_map(|creations| Step::Open { creations }),
        2 => Just(Step::Read),
        2 => Just(Step::Answer),
    ]
}

/// Drives the queue through a history; checks every verdict when it is made, and that nobody is
/// left when all is known.
#[derive(Debug, Default)]
struct World {
    store: Store,
    queue: Queue,
    open: Option<bool>,
    delivered: usize,
    read: Option<Snapshot>,
    own: Vec<(String, i64)>,
    unanswered: VecDeque<(String, i64, Option<Snapshot>)>,
    decided: BTreeMap<i64, WaitOutcome>,
    last_token: i64,
}

impl World {
    fn take(&mut self, outcomes: WaitOutcomes) {
        for (key, outcome) in outcomes {
            let own = self
                .own
                .iter()
                .find(|(own, created)| *own == key && !self.decided.contains_key(created));
            let created = own
                .map(|(_, created)| *created)
                .expect("a verdict on nobody, or a second one");
            match outcome {
                WaitOutcome::Granted { revision } => {
                    assert_eq!(
                        self.store.entries.range(..created).next(),
                        None,
                        "granted {key} although an older entry is there"
                    );
                    assert!(
                        !self.store.gone(&key, created, revision),
                        "granted {key} although it had been removed by revision {revision}"
                    );
                    assert!(
                        revision > self.last_token,
                        "token {revision} after {}",
                        self.last_token
                    );
                    self.last_token = revision;
                }
                WaitOutcome::Evicted => assert!(
                    self.store.gone(&key, created, self.store.revision),
                    "evicted {key} although it is there"
                ),
            }
            self.decided.insert(created, outcome);
        }
    }

    /// A key for a new entry: one of few, as soon as nobody uses it any more.
    fn key(&self, kind: &str, name: usize) -> String {
        let key = format!("{kind}-{}", name % 3);
        let undecided = self
            .own
            .iter()
            .any(|(own, created)| *own == key && !self.decided.contains_key(created));
        if undecided || self.store.has(&key) {
            format!("{kind}-{name}-new")
        } else {
            key
        }
    }

    fn apply(&mut self, step: &Step, name: usize) {
        match step {
            Step::Foreign => {
                let key = self.key("foreign", name);
                self.store.create(&key);
            }
            Step::Own { reads } => {
                let key = self.key("own", name);
                let created = self.store.create(&key);
                self.own.push((key.clone(), created));
                self.unanswered
                    .push_back((key, created, reads.then(|| self.store.read())));
            }
            Step::Join => {
                if let Some((key, created, snapshot)) = self.unanswered.pop_front() {
                    let outcomes = snapshot
                        .map(|snapshot| self.queue.snapshot(snapshot))
                        .unwrap_or_default();
                    self.take(outcomes);
                    let outcomes = self.queue.join(key, created);
                    self.take(outcomes);
                }
            }
            Step::Delete(nth) => {
                if let Some(at) = self.store.entries.keys().nth(*nth).copied() {
                    self.store.delete(at);
                }
            }
            Step::Deliver(count) => self.deliver(*count),
            Step::Interrupt => {
                self.queue.interrupted();
                // A read that began before does not continue the next watch.
                (self.open, self.read) = (None, None);
            }
            Step::Open { creations } => {
                self.queue.opened(self.store.revision, *creations);
                (self.open, self.delivered, self.read) =
                    (Some(*creations), self.store.history.len(), None);
            }
            Step::Read => self.read = Some(self.store.read()),
            Step::Answer => {
                if let Some(snapshot) = self.read.take() {
                    let outcomes = self.queue.snapshot(snapshot);
                    self.take(outcomes);
                }
            }
        }
    }

    fn deliver(&mut self, count: usize) {
        let Some(creations) = self.open else { return };
        for _ in 0..count {
            let Some((at, change)) = self.store.history.get(self.delivered).cloned() else {
                break;
            };
            self.delivered += 1;
            if creations || matches!(change, Change::Deleted { .. }) {
                let outcomes = self.queue.changes(at, vec![change]);
                self.take(outcomes);
            }
        }
    }

    /// Does what the driver of the queue does, and empties the queue from its head: everybody gets
    /// a verdict.
    fn settle(&mut self) {
        while !self.unanswered.is_empty() {
            self.apply(&Step::Join, 0);
        }
        if self.open.is_none() {
            self.apply(&Step::Open { creations: false }, 0);
        }
        loop {
            self.deliver(usize::MAX);
            if self.queue.needs_snapshot() {
                self.apply(&Step::Read, 0);
                self.apply(&Step::Answer, 0);
                assert!(
                    !self.queue.needs_snapshot(),
                    "a fresh snapshot did not help"
                );
            }
            let Some(head) = self.store.entries.keys().next().copied() else {
                break;
            };
            self.store.delete(head);
        }
        for (key, created) in &self.own {
            assert!(self.decided.contains_key(created), "{key} was stranded");
        }
        assert_eq!(self.queue.waiting(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    /// No grant while an older entry exists or after the own one has gone, tokens grow, nobody is
    /// stranded or judged twice.
    #[test]
    fn any_interleaving_is_safe_and_live(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::default();
        for (name, step) in steps.iter().enumerate() {
            world.apply(step, name);
        }
        world.settle();
    }
}

/// Every interleaving of four steps over a small alphabet, after three that put something into the
/// queue: no sampling.
#[test]
fn every_short_interleaving_is_safe_and_live() {
    let alphabet = [
        Step::Foreign,
        Step::Own { reads: false },
        Step::Own { reads: true },
        Step::Join,
        Step::Delete(0),
        Step::Delete(1),
        Step::Deliver(1),
        Step::Open { creations: false },
        Step::Open { creations: true },
        Step::Interrupt,
        Step::Read,
        Step::Answer,
    ];
    let depth = 4_u32;
    let base = alphabet.len();
    for code in 0..base.pow(depth) {
        let mut world = World::default();
        for (name, step) in [
            Step::Open {
                creations: code % 2 == 0,
            },
            Step::Foreign,
            Step::Own { reads: true },
        ]
        .iter()
        .enumerate()
        {
            world.apply(step, name);
        }
        let mut rest = code;
        for name in 0..depth as usize {
            world.apply(&alphabet[rest % base], 10 + name);
            rest /= base;
        }
        world.settle();
    }
}

#[test]
fn those_ahead_are_counted_from_the_first_waiter() {
    let mut queue = Queue::default();
    let key = |created: i64| format!("k{created}");
    let entries = [4, 1, 5, 6, 3, 2, 7].map(|created| (key(created), created));
    let snapshot = Snapshot {
        entries: entries.to_vec(),
        revision: 9,
        blocked_by: None,
    };
    assert!(queue.ahead(&snapshot).is_empty(), "nobody waits");
    queue.join(key(5), 5);
    queue.join(key(7), 7);
    assert_eq!(queue.ahead(&snapshot), [4, 3, 2, 1].map(key));
}
