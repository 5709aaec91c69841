use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn tokens_go_on_from_one_that_was_raised() {
    let mut queue = Queue::new();
    let ttl = Duration::from_secs(30);
    let mut wake = Vec::new();
    let now = Moment::from_origin(Duration::from_secs(1000));
    queue.request(now, 1, ttl, 'a', true, &mut wake);
    queue.request(now, 2, ttl, 'b', true, &mut wake);
    assert_eq!(queue.raise(now, 2, 50, &mut wake), None, "it does not hold");
    assert_eq!(
        (
            queue.raise(now, 1, 50, &mut wake),
            queue.raise(now, 1, 7, &mut wake)
        ),
        (Some(50), Some(50))
    );
    assert!(queue.leave(now, 1, &mut wake));
    assert_eq!(queue.token(), 51);
    queue.request(now, 60, ttl, 'c', true, &mut wake);
    assert!(queue.leave(now, 2, &mut wake));
    assert_eq!(queue.token(), 60);
}

/// Index of a caller, in these tests.
type Caller = usize;

const CALLERS: usize = 3;

/// Each caller has its own TTL, so that a short one follows a long one and the other way round.
const TTLS: [Duration; CALLERS] = [
    Duration::from_secs(30),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

#[derive(Clone, Copy, Debug)]
enum Event {
    Acquire(Caller),
    Try(Caller),
    Look(Caller),
    Renew(Caller),
    Leave(Caller),
    Evict,
    EvictWaiters,
    Pass(Duration),
}

/// A queue, its callers as they see themselves, and what must hold whatever happens.
#[derive(Clone)]
struct World {
    queue: Queue<Caller>,
    now: Moment,
    last: Number,
    callers: [Option<Request>; CALLERS],
    last_granted: Number,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    number: Number,
    /// End of its hold, as far as it knows.
    guards: Option<Moment>,
    looks: Option<Moment>,
}

impl World {
    fn new() -> Self {
        let now = Moment::from_origin(Duration::from_secs(1000));
        Self {
            queue: Queue::new(),
            now,
            last: 0,
            callers: [None; CALLERS],
            last_granted: 0,
        }
    }

    fn step(&mut self, event: Event) {
        let mut wake = Vec::new();
        match event {
            Event::Acquire(caller) if self.callers[caller].is_none() => {
                self.request(caller, true, &mut wake);
            }
            Event::Try(caller) if self.callers[caller].is_none() => {
                self.request(caller, false, &mut wake);
            }
            Event::Look(caller) => self.look(caller, &mut wake),
            Event::Renew(caller) => self.renew(caller, &mut wake),
            Event::Leave(caller) => self.leave(caller, &mut wake),
            Event::Evict => {
                let evicted = self.queue.evict(self.now, None, &mut wake);
                if let Some(holder) = evicted {
                    self.callers[holder.entry] = None;
                }
            }
            Event::EvictWaiters => {
                let evicted = self.queue.evict_waiters(&mut wake);
                assert_eq!((evicted, self.queue.waiting()), (wake.len(), 0));
            }
            Event::Pass(time) => self.now = self.now + time,
            Event::Acquire(_) | Event::Try(_) => {}
        }
        for caller in wake {
            self.look_if_waiting(caller);
        }
        self.check();
    }

    fn request(&mut self, caller: Caller, wait: bool, wake: &mut Vec<Caller>) {
        self.last += 1;
        let idle = self
            .queue
            .clone()
            .holder(self.now, &mut Vec::new())
            .is_none();
        let place = self
            .queue
            .request(self.now, self.last, TTLS[caller], caller, wait, wake);
        assert_eq!(
            place == Place::Holding,
            idle,
            "granted when and only when nobody holds"
        );
        assert!(
            wait || !matches!(place, Place::Waiting { .. }),
            "a try never queues"
        );
        self.callers[caller] = Some(Request {
            number: self.last,
            guards: None,
            looks: None,
        });
        self.note(caller, place);
    }

    fn look(&mut self, caller: Caller, wake: &mut Vec<Caller>) {
        if let Some(request) = self.callers[caller] {
            let place = self
                .queue
                .look(self.now, request.number, TTLS[caller], wake);
            self.note(caller, place);
        }
    }

    fn look_if_waiting(&mut self, caller: Caller) {
        let mut wake = Vec::new();
        if self.callers[caller].is_some_and(|request| request.guards.is_none()) {
            self.look(caller, &mut wake);
        }
        assert!(
            wake.is_empty(),
            "a look at the instant of its wake-up wakes nobody else"
        );
    }

    fn renew(&mut self, caller: Caller, wake: &mut Vec<Caller>) {
        let Some(request) = self.callers[caller].filter(|request| request.guards.is_some()) else {
            return;
        };
        let place = match self
            .queue
            .renew(self.now, request.number, TTLS[caller], wake)
        {
            true => Place::Holding,
            false => Place::None,
        };
        self.note(caller, place);
    }

    fn leave(&mut self, caller: Caller, wake: &mut Vec<Caller>) {
        let Some(request) = self.callers[caller].take() else {
            return;
        };
        let held = self.queue.leave(self.now, request.number, wake);
        let valid = request.guards.is_some_and(|until| self.now < until);
        assert!(held || !valid, "a release says that it held");
        assert!(
            !self.queue.leave(self.now, request.number, wake),
            "a second release removes nothing"
        );
    }

    fn note(&mut self, caller: Caller, place: Place) {
        let Some(mut request) = self.callers[caller] else {
            return;
        };
        let held = request.guards.is_some();
        match place {
            Place::Holding => {
                if !held {
                    assert!(
                        request.number > self.last_granted,
                        "granted out of order, or a token came again"
                    );
                    self.last_granted = request.number;
                }
                request.guards = Some(self.now + TTLS[caller]);
                request.looks = None;
            }
            Place::Waiting { look } => {
                assert!(
                    !held && look > self.now,
                    "a holder does not wait, and a waiter does not spin"
                );
                request.looks = Some(look);
            }
            Place::None => {
                let valid = request.guards.is_some_and(|until| self.now < until);
                assert!(!valid, "lost without an eviction or an expiry");
                self.callers[caller] = None;
                return;
            }
        }
        self.callers[caller] = Some(request);
    }

    fn check(&self) {
        let valid = self
            .callers
            .iter()
            .flatten()
            .filter(|request| request.guards.is_some_and(|until| self.now < until));
        assert!(valid.count() <= 1, "two holders");
        let mut queue = self.queue.clone();
        let expires = queue.holder.as_ref().map(|holder| holder.expires);
        if let (Some(expires), Some(next)) = (expires, queue.waiters.values().next()) {
            assert!(
                next.looks <= expires,
                "the next in line oversleeps the expiry"
            );
        }
        assert!(
            queue.holder(self.now, &mut Vec::new()).is_some() || queue.waiting() == 0,
            "free, and yet somebody waits"
        );
        let known: BTreeSet<_> = self
            .callers
            .iter()
            .flatten()
            .map(|request| request.number)
            .collect();
        assert!(
            queue.waiters.keys().all(|number| known.contains(number)),
            "an entry that nobody stands for"
        );
    }

    /// All go: nothing may stay behind.
    fn end(mut self) {
        for caller in 0..CALLERS {
            self.step(Event::Leave(caller));
        }
        self.now = self.now + TTLS[0];
        let holder = self
            .queue
            .holder(self.now, &mut Vec::new())
            .map(|holder| holder.number);
        assert!(
            holder.is_none() && self.queue.is_idle(),
            "{holder:?} stays behind"
        );
    }
}

fn all_events() -> Vec<Event> {
    let mut events = vec![
        Event::Evict,
        Event::EvictWaiters,
        Event::Pass(Duration::from_secs(2)),
        Event::Pass(Duration::from_secs(10)),
    ];
    for caller in 0..CALLERS {
        events.extend([
            Event::Acquire(caller),
            Event::Look(caller),
            Event::Renew(caller),
            Event::Leave(caller),
        ]);
    }
    events.push(Event::Try(0));
    events
}

fn explore(world: &World, events: &[Event], depth: usize) {
    if depth == 0 {
        return world.clone().end();
    }
    for event in events {
        let mut next = world.clone();
        next.step(*event);
        explore(&next, events, depth - 1);
    }
}

#[test]
fn every_short_history_keeps_the_rules() {
    explore(&World::new(), &all_events(), 5);
}

proptest! {
    #[test]
    fn any_long_history_keeps_the_rules(events in prop::collection::vec(prop::sample::select(all_events()), 0..200)) {
        let mut world = World::new();
        events.into_iter().for_each(|event| world.step(event));
        world.end();
    }
}

#[test]
fn grants_in_order_of_arrival_past_those_who_gave_up() {
    let mut queue = Queue::new();
    let mut wake = Vec::new();
    let now = Moment::from_origin(Duration::from_secs(1));
    let ttl = Duration::from_secs(30);
    for number in 1..=5 {
        queue.request(now, number, ttl, number, true, &mut wake);
    }
    queue.leave(now, 2, &mut wake);
    queue.leave(now, 4, &mut wake);
    assert!(
        wake.is_empty(),
        "nobody is concerned by those who give up behind the holder"
    );
    for granted in [1, 3, 5] {
        assert_eq!(
            queue.holder(now, &mut wake).map(|holder| holder.number),
            Some(granted)
        );
        assert!(queue.leave(now, granted, &mut wake));
    }
    assert_eq!(wake, [3, 5]);
    assert!(queue.is_idle());
}

#[test]
fn an_expired_holder_is_succeeded_at_that_instant() {
    let mut queue = Queue::new();
    let mut wake = Vec::new();
    let now = Moment::from_origin(Duration::from_secs(1));
    let ttl = Duration::from_secs(30);
    assert_eq!(
        queue.request(now, 1, ttl, 'a', true, &mut wake),
        Place::Holding
    );
    assert_eq!(
        queue.request(now, 2, ttl, 'b', true, &mut wake),
        Place::Waiting { look: now + ttl }
    );
    let just_before = now + ttl - Duration::from_nanos(1);
    assert!(matches!(
        queue.look(just_before, 2, ttl, &mut wake),
        Place::Waiting { .. }
    ));
    assert_eq!(queue.look(now + ttl, 2, ttl, &mut wake), Place::Holding);
    assert!(!queue.renew(now + ttl, 1, ttl, &mut wake) && !queue.leave(now + ttl, 1, &mut wake));
}

#[test]
fn a_shorter_ttl_ahead_rouses_the_next_in_line() {
    let mut queue = Queue::new();
    let mut wake = Vec::new();
    let now = Moment::from_origin(Duration::from_secs(1));
    let long = Duration::from_secs(30);
    let short = Duration::from_secs(1);
    queue.request(now, 1, long, 'a', true, &mut wake);
    queue.request(now, 2, short, 'b', true, &mut wake);
    queue.request(now, 3, long, 'c', true, &mut wake);
    queue.leave(now, 1, &mut wake);
    assert_eq!(wake, ['b', 'c']);
    assert_eq!(
        queue.look(now, 3, long, &mut wake),
        Place::Waiting { look: now + short }
    );
}
