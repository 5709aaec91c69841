use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::queue::{predecessor::LONG_SLEEP, state::WaitOutcome};

/// A store, the processes in its queue and the one under test.
#[derive(Debug)]
struct World {
    now: Instant,
    revision: i64,
    /// Keys by create revision.
    entries: BTreeMap<i64, String>,
    history: Vec<(i64, Change)>,
    wait: WaitState,
    /// The watch of the queue: its number, whether it reports creations, and the number of changes
    /// that it has passed.
    queue_watch: Option<(u64, bool, usize)>,
    /// The watch of ends: its number, its keys, and the number of changes that it has passed.
    end_watch: Option<(u64, Vec<String>, usize)>,
    pending: Option<Pending>,
    own: BTreeMap<i64, String>,
    decided: BTreeMap<i64, WaitOutcome>,
    names: usize,
    /// Use keys again, as soon as nobody has them any more.
    reuses_keys: bool,
}

/// A request under way, with its answer.
#[derive(Debug)]
enum Pending {
    Open(u64, Watched),
    OpenEnds(u64, Vec<String>),
    Read(Snapshot, Instant),
    Check(String, bool),
}

#[derive(Clone, Debug)]
enum Event {
    /// Others join, or a waiter of this process.
    Join { own: bool, count: usize },
    /// An entry goes: release, give-up, expiry, an operator.
    Delete(usize),
    /// The caller of the nth waiter goes away.
    Leave(usize),
    /// The task takes its next step, after so many milliseconds.
    Step(u64),
    /// The request under way is answered, or fails.
    Answer { fails: bool },
    /// The watch reports its next events.
    Deliver(usize),
    /// The stream breaks, and is opened again.
    Interrupt,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1..12_usize).prop_map(|count| Event::Join { own: false, count }),
        2 => Just(Event::Join { own: true, count: 1 }),
        4 => (0..24_usize).prop_map(Event::Delete),
        1 => (0..4_usize).prop_map(Event::Leave),
        6 => prop_oneof![Just(0_u64), 1..10_000_u64].prop_map(Event::Step),
        5 => prop::bool::weighted(0.1).prop_map(|fails| Event::Answer { fails }),
        4 => (1..8_usize).prop_map(Event::Deliver),
        1 => Just(Event::Interrupt),
    ]
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            revision: 1,
            entries: BTreeMap::new(),
            history: Vec::new(),
            wait: WaitState::new(Prefix::of("", &"a".parse().unwrap()), now),
            queue_watch: None,
            end_watch: None,
            pending: None,
            own: BTreeMap::new(),
            decided: BTreeMap::new(),
            names: 0,
            reuses_keys: false,
        }
    }

    fn sleeps_until(&self) -> Option<&str> {
        self.wait
            .sleep
            .predecessor
            .as_deref()
            .filter(|_| self.wait.watched == Watched::Nothing)
    }

    fn create(&mut self) -> (String, i64) {
        self.revision += 1;
        self.names += 1;
        let mut key = format!("a/{}", self.names);
        if self.reuses_keys {
            let used = format!("a/again-{}", self.names % 20);
            let waits =
                |(own, key): (&i64, &String)| *key == used && !self.decided.contains_key(own);
            if !self.entries.values().any(|key| *key == used) && !self.own.iter().any(waits) {
                key = used;
            }
        }
        let revision = self.revision;
        self.entries.insert(revision, key.clone());
        let change = Change::Created {
            key: key.clone(),
            revision,
        };
        self.history.push((revision, change));
        (key, revision)
    }

    fn delete(&mut self, created: i64) {
        if let Some(key) = self.entries.remove(&created) {
            self.revision += 1;
            self.history.push((self.revision, Change::Deleted { key }));
        }
    }

    fn snapshot(&self) -> Snapshot {
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

    fn join(&mut self) {
        let read = self.wait.queue_read();
        let (key, created) = self.create();
        let position = match read {
            QueueRead::Nothing => QueuePosition::Unknown,
            QueueRead::Short => {
                let is_complete = self.entries.len() <= LONG_QUEUE + 1;
                QueuePosition::of(created, self.snapshot(), is_complete)
            }
            QueueRead::Predecessor(predecessor) => {
                let mut older = self.entries.range(..created);
                match older.any(|(_, key)| *key == predecessor) {
                    true => QueuePosition::Far { predecessor },
                    false => QueuePosition::Unknown,
                }
            }
        };
        self.own.insert(created, key.clone());
        if let QueuePosition::Head { revision } = position {
            self.decided
                .insert(created, WaitOutcome::Granted { revision });
            return;
        }
        let outcomes = self.wait.join(key, created, position);
        self.take(outcomes);
    }

    fn take(&mut self, outcomes: WaitOutcomes) {
        for (key, outcome) in outcomes {
            let undecided =
                |own: &(&i64, &String)| *own.1 == key && !self.decided.contains_key(own.0);
            let (created, _) = self
                .own
                .iter()
                .find(undecided)
                .expect("an outcome for nobody, or a second one");
            match outcome {
                WaitOutcome::Granted { .. } => assert!(
                    self.entries.range(..created).next().is_none(),
                    "granted {key} although an older entry exists"
                ),
                WaitOutcome::Evicted => assert!(
                    !self.entries.contains_key(created),
                    "evicted {key} although it exists"
                ),
            }
            self.decided.insert(*created, outcome);
        }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Join { own: true, .. } => self.join(),
            Event::Join { own: false, count } => (0..*count).for_each(|_| drop(self.create())),
            Event::Delete(nth) => {
                if let Some(created) = self.entries.keys().nth(*nth).copied() {
                    self.delete(created);
                }
            }
            Event::Leave(nth) => {
                let waiting = self
                    .own
                    .keys()
                    .filter(|own| !self.decided.contains_key(own));
                if let Some(created) = waiting.copied().nth(*nth) {
                    let key = self.own.remove(&created).unwrap();
                    self.wait.leave(&key, created);
                    self.delete(created);
                }
            }
            Event::Step(millis) => {
                self.now += Duration::from_millis(*millis);
                self.step();
            }
            Event::Answer { fails } => self.answer(*fails),
            Event::Deliver(count) => self.deliver(*count),
            Event::Interrupt => {
                if let Some((watch, creations, _)) = self.queue_watch.take() {
                    self.wait.interrupted(watch);
                    self.open(watch, Watched::Queue { creations });
                }
                if let Some((watch, keys, _)) = self.end_watch.take() {
                    self.wait.ends_interrupted(watch);
                    self.open_ends(watch, keys);
                }
            }
        }
    }

    /// Takes a step, unless a request is under way. False if it was to sleep.
    fn step(&mut self) -> bool {
        if self.pending.is_some() {
            return false;
        }
        let pending = match self.wait.step(self.now) {
            Step::Watch { watch, watched } => {
                self.queue_watch = None;
                Pending::Open(watch, watched)
            }
            Step::WatchEnds {
                watch,
                predecessor,
                own,
            } => {
                self.end_watch = None;
                Pending::OpenEnds(watch, [predecessor].into_iter().chain(own).collect())
            }
            Step::Read => Pending::Read(self.snapshot(), self.now),
            Step::Check {
                predecessor,
                own,
                created,
            } => {
                let of = |key: &str| self.entries.iter().find(|(_, other)| *other == key);
                let exist = of(&predecessor).is_some_and(|(older, _)| *older < created)
                    && of(&own).is_some();
                Pending::Check(predecessor, exist)
            }
            Step::Sleep { until } => {
                assert!(until > self.now, "no sleep at all");
                return false;
            }
            Step::Close => {
                let waits = |own: &&i64| !self.decided.contains_key(own);
                assert_eq!(self.own.keys().find(waits), None, "closed on a waiter");
                return false;
            }
        };
        self.pending = Some(pending);
        true
    }

    fn answer(&mut self, fails: bool) {
        match self.pending.take() {
            Some(Pending::Open(watch, watched)) => self.open(watch, watched),
            Some(Pending::OpenEnds(watch, keys)) => self.open_ends(watch, keys),
            Some(Pending::Read(..)) if fails => self.wait.read_failed(self.now),
            Some(Pending::Read(snapshot, sent)) => {
                let outcomes = self.wait.read(snapshot, sent, self.now);
                self.take(outcomes);
            }
            Some(Pending::Check(predecessor, exist)) => {
                self.wait.checked(&predecessor, exist && !fails);
            }
            None => {}
        }
    }

    fn open(&mut self, watch: u64, watched: Watched) {
        if let Watched::Queue { creations } = watched {
            self.queue_watch = Some((watch, creations, self.history.len()));
            self.wait.opened(watch, self.revision, self.now);
        }
    }

    fn open_ends(&mut self, watch: u64, keys: Vec<String>) {
        (0..keys.len()).for_each(|_| self.wait.ends_opened(watch, self.revision));
        self.end_watch = Some((watch, keys, self.history.len()));
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            if let Some((watch, creations, passed)) = &mut self.queue_watch
                && let Some((at, change)) = self.history.get(*passed).cloned()
            {
                *passed += 1;
                if *creations || matches!(change, Change::Deleted { .. }) {
                    let outcomes = self.wait.changed(*watch, at, vec![change]);
                    self.take(outcomes);
                }
            } else if let Some((watch, keys, passed)) = &mut self.end_watch
                && let Some((at, change)) = self.history.get(*passed)
            {
                *passed += 1;
                if let Change::Deleted { key } = change
                    && keys.contains(key)
                {
                    self.wait.ended(*watch, key, *at);
                }
            } else {
                return;
            }
        }
    }

    /// Answers and delivers everything until the task sleeps.
    fn quiesce(&mut self) {
        for _ in 0..100 {
            self.answer(false);
            self.deliver(usize::MAX);
            if !self.step() && self.pending.is_none() {
                return;
            }
        }
        panic!("no rest: {:?}", self.wait);
    }

    /// Empties the queue from its head. Each waiter must be granted without any time passing but
    /// that of a repeated read, and the others must have learnt of their eviction in the end.
    fn settle(&mut self) {
        self.now += READ_PAUSE;
        self.quiesce();
        while let Some((created, key)) = self.entries.pop_first() {
            self.entries.insert(created, key.clone());
            if self.own.contains_key(&created) {
                let granted = matches!(
                    self.decided.get(&created),
                    Some(WaitOutcome::Granted { .. })
                );
                assert!(granted, "{key} is at the head and waits: {:?}", self.wait);
            }
            self.delete(created);
            self.quiesce();
        }
        self.now += LONG_SLEEP + BACKSTOP;
        self.quiesce();
        for (created, key) in &self.own {
            assert!(self.decided.contains_key(created), "{key} was stranded");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    /// Nobody is granted while an older entry exists, or judged twice; whoever is at the head is
    /// granted without a timer; nobody is stranded.
    #[test]
    fn any_history_is_safe_and_live(events in prop::collection::vec(event(), 0..80)) {
        let mut world = World::new();
        world.reuses_keys = true;
        for event in &events {
            world.apply(event);
        }
        world.settle();
    }
}

fn far_back(world: &mut World, others: usize) {
    world.apply(&Event::Join {
        own: false,
        count: others,
    });
    world.join();
    world.quiesce();
}

#[test]
fn a_waiter_far_back_sleeps_until_the_entry_eight_ahead_goes() {
    let mut world = World::new();
    far_back(&mut world, 100);
    assert_eq!(world.sleeps_until(), Some("a/93"));
    // One that gives up in between, and all that are older, wake nobody.
    (2..93).for_each(|created| world.delete(created));
    world.quiesce();
    assert_eq!(world.sleeps_until(), Some("a/93"));
    world.delete(94);
    world.quiesce();
    assert_eq!(world.wait.watched, Watched::Queue { creations: false });
}

#[test]
fn a_waiter_whose_predecessor_gave_up_finds_another() {
    let mut world = World::new();
    far_back(&mut world, 100);
    world.delete(94);
    world.quiesce();
    assert_eq!(world.sleeps_until(), Some("a/92"));
}

#[test]
fn several_waiters_of_a_process_follow_a_long_queue_and_its_creations() {
    let mut world = World::new();
    far_back(&mut world, 30);
    (1..MANY).for_each(|_| world.join());
    world.quiesce();
    assert_eq!(world.wait.watched, Watched::Queue { creations: true });
    assert!(world.wait.queue_read() == QueueRead::Nothing);
}

#[test]
fn a_long_sleeper_watches_its_own_entry() {
    let mut world = World::new();
    far_back(&mut world, 30);
    world.now += LONG_SLEEP;
    world.quiesce();
    assert_eq!(world.wait.sleep.ends.own.as_deref(), Some("a/31"));
    let own = *world.own.keys().next().unwrap();
    world.delete(own);
    world.quiesce();
    assert_eq!(world.decided.get(&own), Some(&WaitOutcome::Evicted));
}

#[test]
fn a_new_watch_is_read_behind_until_its_first_event() {
    let mut world = World::new();
    world.create();
    let (held, _) = world
        .entries
        .iter()
        .next()
        .map(|(at, key)| (*at, key.clone()))
        .unwrap();
    world.join();
    world.quiesce();
    let opened = world.now;
    let mut read_at = Vec::new();
    while let Step::Sleep { until } = world.wait.step(world.now)
        && until < opened + BACKSTOP
    {
        world.now = until;
        read_at.push((until - opened).as_millis());
        world.quiesce();
    }
    assert_eq!(read_at, [8, 24, 56, 120]);
    world.delete(held);
    world.quiesce();
    assert_eq!(world.decided.len(), 1);
}
