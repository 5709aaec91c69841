//! Stores and processes of the model.

use lock_migrate::{Attempt, Member, Phase};

use crate::coordination::Coordination;

pub(crate) const PROCESSES: usize = 3;

/// The two stores, as indices.
pub(crate) const SOURCE: usize = 0;
pub(crate) const TARGET: usize = 1;

/// How much of each may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    pub(crate) acquisitions: u8,
    pub(crate) crashes: u8,
    /// Pauses that outlast a deadline.
    pub(crate) pauses: u8,
    /// Entries that an operator removes.
    pub(crate) removals: u8,
    /// Losses of all that the source has.
    pub(crate) losses: u8,
    /// Acquisitions of another name, which raise the floor.
    pub(crate) elsewhere: u8,
    /// Orders of operators, under a coordinator; without one processes go from phase to phase by
    /// themselves.
    pub(crate) orders: u8,
    /// How many operators there are.
    pub(crate) operators: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) left: Limits,
    pub(crate) coordination: Option<Coordination>,
    pub(crate) processes: [Process; PROCESSES],
    /// Who has the name in each store.
    pub(crate) holders: [Option<usize>; 2],
    /// The source's counter, and the target's revision.
    pub(crate) counters: [u64; 2],
    /// What the floor was raised to, and at which revision of the target.
    pub(crate) floors: Vec<(u64, u64)>,
    /// The floor is beyond all tokens of the source alone.
    pub(crate) is_led: bool,
    pub(crate) grants: Vec<Grant>,
    /// How often a lock was taken in either store.
    pub(crate) takes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) phase: Phase,
    pub(crate) does: Does,
    /// In which stores it has taken the lock, as the how-manieth take.
    pub(crate) took: [Option<u8>; 2],
    /// In which stores its deadline has not passed, nor was it told of a loss.
    pub(crate) believes: [bool; 2],
    pub(crate) final_floor: Option<u64>,
    /// An operator has taken its lock away, and it may not know yet.
    pub(crate) is_evicted: bool,
    pub(crate) member: Member,
    /// Its membership is valid, as far as it knows.
    pub(crate) is_member: bool,
    pub(crate) ticket: Option<u64>,
    /// What it takes is valid no longer than its membership.
    pub(crate) is_bound: bool,
    /// The membership under which it began is over.
    pub(crate) has_lapsed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Does {
    Nothing,
    Acquires {
        attempt: Attempt,
        /// The floor when it began.
        early_floor: u64,
    },
    Holds,
    Releases,
    /// Dead.
    Crashed,
}

/// A guard that was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Grant {
    pub(crate) took: [Option<u8>; 2],
    pub(crate) token: u64,
}

impl Process {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            phase,
            does: Does::Nothing,
            took: [None; 2],
            believes: [false; 2],
            final_floor: None,
            is_evicted: false,
            member: Member::default(),
            is_member: false,
            ticket: None,
            is_bound: false,
            has_lapsed: false,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.does != Does::Crashed
    }

    /// Every lock that it has taken is its own, as far as it knows.
    pub(crate) fn is_valid(&self) -> bool {
        !self.has_lapsed && (0..2).all(|store| self.took[store].is_none() || self.believes[store])
    }
}

impl Grant {
    /// Both orders of the takes in the stores that both have, if they agree, are the tokens' order.
    pub(crate) fn is_in_order_with(&self, other: &Self) -> bool {
        let mut earlier = None;
        for store in 0..2 {
            if let (Some(mine), Some(theirs)) = (self.took[store], other.took[store]) {
                let is_earlier = mine < theirs;
                if earlier.is_some_and(|earlier| earlier != is_earlier) {
                    return true;
                }
                earlier = Some(is_earlier);
            }
        }
        match earlier {
            Some(true) => self.token < other.token,
            Some(false) => self.token > other.token,
            None => self.is_in_order_across(other),
        }
    }

    /// Without a common store they cannot have lived at the same time: one is wholly earlier.
    pub(crate) fn is_in_order_across(&self, other: &Self) -> bool {
        let is_before = self.took.iter().flatten().max() < other.took.iter().flatten().min();
        is_before == (self.token < other.token)
    }
}

impl State {
    pub(crate) fn new(left: Limits) -> Self {
        let mut processes = std::array::from_fn(|_| Process::new(Phase::SourceOnly));
        let coordination = (left.orders > 0).then(|| Coordination::new(&mut processes));
        Self {
            left,
            coordination,
            processes,
            holders: [None; 2],
            // The source is far ahead, as Redis with its clock.
            counters: [20, 0],
            floors: vec![(0, 0)],
            is_led: false,
            grants: Vec::new(),
            takes: 0,
        }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floors.last().expect("it begins with one").0
    }

    pub(crate) fn floor_at(&self, revision: u64) -> u64 {
        let then = self.floors.iter().rev().find(|(_, at)| *at <= revision);
        then.expect("it begins at zero").0
    }

    pub(crate) fn raise_floor(&mut self, to: u64) {
        if to > self.floor() {
            self.counters[TARGET] += 1;
            self.floors.push((to, self.counters[TARGET]));
        }
    }

    /// The highest token that was handed out.
    pub(crate) fn highest(&self) -> u64 {
        let tokens = self.grants.iter().map(|grant| grant.token);
        tokens.max().unwrap_or_default()
    }

    pub(crate) fn tokens_are_in_order(&self) -> bool {
        let pairs = |(at, one): (usize, &Grant)| {
            self.grants[at + 1..]
                .iter()
                .all(|other| one.is_in_order_with(other))
        };
        self.grants.iter().enumerate().all(pairs)
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        let holds = |process: &&Process| {
            process.does == Does::Holds && process.is_valid() && !process.is_evicted
        };
        self.processes.iter().filter(holds).count() <= 1
    }

    /// Removes an entry if it is this process's.
    pub(crate) fn remove_own(&mut self, at: usize, store: usize) {
        if self.holders[store] == Some(at) {
            self.holders[store] = None;
        }
    }

    /// Done with releasing.
    pub(crate) fn settle(&mut self, at: usize) {
        if self.processes[at].took == [None; 2] {
            let process = &mut self.processes[at];
            process.does = Does::Nothing;
            process.believes = [false; 2];
            process.has_lapsed = false;
        }
    }

    /// What is in order goes on, or the check would never end.
    pub(crate) fn may_undo(&self, at: usize) -> bool {
        let process = &self.processes[at];
        let is_superseded = self.coordination.is_some() && process.is_superseded();
        !process.is_valid() || self.blocks_for_ever(at) || is_superseded
    }

    /// A step that finds its lock gone does not succeed.
    pub(crate) fn blocks_for_ever(&self, at: usize) -> bool {
        (0..2).any(|store| {
            self.processes[at].took[store].is_some() && self.holders[store] != Some(at)
        })
    }
}
