//! Servers, clients and a network in which anything may be late or lost: checks what a [`Round`]
//! decides.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use lock_core::backend::{Moment, deadline};
use proptest::prelude::*;

use super::round::{Outcome, Round, Step, Vote};

const TTL: Duration = Duration::from_millis(1000);
const LIMIT: Duration = Duration::from_millis(100);

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(1_000_000 + millis))
}

/// State of a server, and the changes that the scripts make to it.
#[derive(Clone, Debug, Default)]
struct Store {
    /// Owner, and when the lease ends.
    lock: Option<(usize, u64)>,
    minted: HashMap<usize, u64>,
    counter: u64,
    frozen: bool,
}

impl Store {
    fn holder(&self, now: u64) -> Option<usize> {
        self.lock
            .filter(|(_, ends)| now < *ends)
            .map(|(owner, _)| owner)
    }

    /// The server's clock is as fast as the margin allows.
    fn acquire(&mut self, now: u64, owner: usize, floor: u64) -> Vote {
        if self.holder(now).is_some_and(|holder| holder != owner) {
            return Vote::Busy;
        }
        self.lock = Some((owner, now + 990));
        let counter = &mut self.counter;
        let token = *self.minted.entry(owner).or_insert_with(|| {
            *counter = (*counter + 1).max(floor);
            *counter
        });
        Vote::Granted(token)
    }

    fn raise(&mut self, now: u64, owner: usize, token: u64) -> bool {
        let held = self.holder(now) == Some(owner);
        if held {
            self.counter = self.counter.max(token);
        }
        held
    }

    fn release(&mut self, now: u64, owner: usize) {
        if self.holder(now) == Some(owner) {
            self.lock = None;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Acquire,
    Voted(Vote),
    Raise(u64),
    Raised(bool),
    Release,
}

/// One attempt; its place is its owner id.
#[derive(Debug)]
struct Attempt {
    round: Round,
    floor: u64,
    ends: Moment,
    won: bool,
    over: bool,
}

struct World {
    now: u64,
    stores: Vec<Store>,
    attempts: Vec<Attempt>,
    network: Vec<(usize, usize, Message)>,
    /// Owner, end and token of the last that won.
    holder: Option<(usize, Moment, u64)>,
    wins: usize,
    write_back: bool,
}

#[derive(Clone, Debug)]
enum Event {
    /// A client tries, with a clock that is off.
    Begin {
        floor: u64,
    },
    Deliver(usize),
    Lose(usize),
    Pass(u64),
    /// The holder, or whoever is at it, gives up.
    End(usize),
    Freeze(usize),
    Thaw(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..20_u64).prop_map(|floor| Event::Begin { floor }),
        24 => (0..64_usize).prop_map(Event::Deliver),
        2 => (0..64_usize).prop_map(Event::Lose),
        3 => prop_oneof![0..30_u64, 0..1500_u64].prop_map(Event::Pass),
        2 => (0..8_usize).prop_map(Event::End),
        1 => (0..5_usize).prop_map(Event::Freeze),
        1 => (0..5_usize).prop_map(Event::Thaw),
    ]
}

impl World {
    fn new(servers: usize) -> Self {
        let stores = vec![Store::default(); servers];
        let attempts = Vec::new();
        let network = Vec::new();
        Self {
            now: 0,
            stores,
            attempts,
            network,
            holder: None,
            wins: 0,
            write_back: true,
        }
    }

    fn happen(&mut self, event: &Event) -> Result<(), String> {
        let servers = self.stores.len();
        match *event {
            Event::Begin { floor } => self.begin(floor),
            Event::Deliver(which) if !self.network.is_empty() => {
                self.deliver(which % self.network.len());
            }
            Event::Lose(which) if !self.network.is_empty() => {
                let at = which % self.network.len();
                self.network.remove(at);
            }
            Event::Pass(millis) => self.now += millis,
            Event::End(which) if !self.attempts.is_empty() => self.end(which % self.attempts.len()),
            Event::Freeze(which) => self.stores[which % servers].frozen ^= true,
            Event::Thaw(which) => self.stores[which % servers].frozen = false,
            _ => {}
        }
        (0..self.attempts.len()).try_for_each(|owner| self.step(owner))
    }

    fn begin(&mut self, floor: u64) {
        let owner = self.attempts.len();
        let servers = self.stores.len();
        let ends = deadline(at(self.now), TTL);
        self.attempts.push(Attempt {
            round: Round::new(&vec![false; servers], at(self.now), TTL, LIMIT),
            floor,
            ends,
            won: false,
            over: false,
        });
        self.network
            .extend((0..servers).map(|server| (owner, server, Message::Acquire)));
    }

    /// Any message may be the next to arrive, except at a frozen server.
    fn deliver(&mut self, which: usize) {
        let (owner, server, message) = self.network[which];
        let is_request = matches!(
            message,
            Message::Acquire | Message::Raise(_) | Message::Release
        );
        if is_request && self.stores[server].frozen {
            return;
        }
        self.network.remove(which);
        let now = self.now;
        let store = &mut self.stores[server];
        let attempt = &mut self.attempts[owner];
        let reply = match message {
            Message::Acquire => Message::Voted(store.acquire(now, owner, attempt.floor)),
            Message::Raise(token) => Message::Raised(store.raise(now, owner, token)),
            Message::Release => return store.release(now, owner),
            Message::Voted(vote) => return attempt.round.voted(server, vote),
            Message::Raised(held) => return attempt.round.raised(server, Some(held)),
        };
        self.network.push((owner, server, reply));
    }

    fn end(&mut self, owner: usize) {
        if self.holder.is_some_and(|(holder, ..)| holder == owner) {
            self.holder = self.holder.map(|(_, _, token)| (owner, at(0), token));
        }
        self.attempts[owner].over = true;
        self.network
            .extend((0..self.stores.len()).map(|server| (owner, server, Message::Release)));
    }

    fn step(&mut self, owner: usize) -> Result<(), String> {
        let now = at(self.now);
        let attempt = &mut self.attempts[owner];
        if attempt.over || attempt.won {
            return Ok(());
        }
        match attempt.round.step(now) {
            Step::Wait(until) if until > now => Ok(()),
            Step::Wait(_) => Err("waits for the past".into()),
            Step::Raise { token, servers } => {
                for server in servers {
                    match self.write_back {
                        true => self.network.push((owner, server, Message::Raise(token))),
                        false => attempt.round.raised(server, Some(true)),
                    }
                }
                self.step(owner)
            }
            Step::Over(Outcome::Won(token)) => self.won(owner, token),
            Step::Over(_) => {
                self.end(owner);
                Ok(())
            }
        }
    }

    fn won(&mut self, owner: usize, token: u64) -> Result<(), String> {
        let now = at(self.now);
        let ends = self.attempts[owner].ends;
        match self.holder {
            Some((holder, ends, _)) if now < ends => {
                return Err(format!("{owner} won while {holder} holds"));
            }
            Some((holder, _, last)) if token <= last => {
                return Err(format!("{owner} has {token} after {holder} had {last}"));
            }
            _ => {}
        }
        if now >= ends {
            return Err(format!("{owner} won too late"));
        }
        self.attempts[owner].won = true;
        (self.holder, self.wins) = (Some((owner, ends, token)), self.wins + 1);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is late or lost: holders exclude each other, and each has a larger token than all
    /// before.
    #[test]
    fn any_history_excludes_and_grows(servers in prop_oneof![Just(3_usize), Just(4), Just(5)], events in prop::collection::vec(event(), 0..160)) {
        let mut world = World::new(servers);
        for event in &events {
            world.happen(event).map_err(TestCaseError::fail)?;
        }
    }
}

/// The model is no good if it does not find the flaw that the second write is for.
#[test]
fn the_largest_of_a_majority_alone_does_not_grow() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let histories = prop::collection::vec(event(), 100..160);
    let mut found = 0;
    let mut wins = 0;
    for _ in 0..600 {
        let events = histories.new_tree(&mut runner).unwrap().current();
        let mut world = World {
            write_back: false,
            ..World::new(3)
        };
        let failed = events.iter().find_map(|event| world.happen(event).err());
        wins += world.wins;
        assert!(
            failed
                .as_ref()
                .is_none_or(|failed| failed.contains("after")),
            "{failed:?}"
        );
        found += usize::from(failed.is_some());
    }
    assert!(
        found > 0 && wins > 200,
        "{found} flaws found in {wins} acquisitions"
    );
}

/// Fate of a request: it never arrives, its answer is lost, or both get through.
const FATES: [(bool, bool); 3] = [(false, false), (true, false), (true, true)];

/// Every way in which one acquisition over three servers can go, then the same again, three times
/// over: the tokens of those that were won grow, from any counters.
#[test]
fn every_sequence_of_partial_acquisitions_grows() {
    let mut states = BTreeSet::new();
    for start in 0..8_u64 {
        states.insert(([start % 2 * 4, start / 2 % 2 * 4, start / 4 * 4], 0));
    }
    for _ in 0..3 {
        let mut next = BTreeSet::new();
        for (counters, last) in states {
            for way in 0..729 {
                let (counters, token) = acquire(counters, way);
                assert!(
                    token.is_none_or(|token| token > last),
                    "{token:?} after {last}, {way}"
                );
                next.insert(relative(counters, token.unwrap_or(last)));
            }
        }
        states = next;
    }
    assert!(states.len() > 20, "{}", states.len());
}

/// Only differences matter; what lags far behind is as good as what lags by four.
fn relative(counters: [u64; 3], last: u64) -> ([u64; 3], u64) {
    let base = last.saturating_sub(4);
    (
        counters.map(|counter| counter.saturating_sub(base)),
        last - base,
    )
}

fn acquire(counters: [u64; 3], way: usize) -> ([u64; 3], Option<u64>) {
    let mut counters = counters;
    let fate = |at: usize| FATES[way / 3_usize.pow(at as u32) % 3];
    let mut round = Round::new(&[false; 3], at(0), TTL, LIMIT);
    for (server, counter) in counters.iter_mut().enumerate() {
        let (arrives, is_answered) = fate(server);
        *counter += u64::from(arrives);
        round.voted(
            server,
            if is_answered {
                Vote::Granted(*counter)
            } else {
                Vote::Failed
            },
        );
    }
    loop {
        match round.step(at(1)) {
            Step::Wait(_) => round.silence(),
            Step::Over(Outcome::Won(token)) => return (counters, Some(token)),
            Step::Over(_) => return (counters, None),
            Step::Raise { token, servers } => {
                for server in servers {
                    let (arrives, is_answered) = fate(3 + server);
                    if arrives {
                        counters[server] = counters[server].max(token);
                    }
                    round.raised(server, is_answered.then_some(true));
                }
            }
        }
    }
}
