use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::event::{Ask, Event, How, Instant, Kind};

/// All that happened, in the order of the clock, and what follows from it.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    pub(crate) attempts: BTreeMap<Ask, Attempt>,
    /// By process: when it was not running. A kill never ends.
    pub(crate) absences: HashMap<u32, Vec<Span>>,
    pub(crate) killed: HashMap<u32, Instant>,
    /// When a majority of the store was down, or coming back.
    pub(crate) outages: Vec<Span>,
    /// When the store was in any trouble, and so may have changed its leader.
    pub(crate) troubles: Vec<Span>,
}

/// One attempt to acquire, and the acquisition that came of it.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) ask: Ask,
    pub(crate) process: u32,
    pub(crate) register: u32,
    pub(crate) how: How,
    pub(crate) asked: Instant,
    pub(crate) answered: Option<Instant>,
    pub(crate) grant: Option<Grant>,
}

#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) at: Instant,
    pub(crate) token: u64,
    /// The latest deadline that the guard was seen to have.
    pub(crate) deadline: Instant,
    /// When the holder began to release it.
    pub(crate) ending: Option<Instant>,
    pub(crate) ended: bool,
    pub(crate) lost: Option<Instant>,
    killed: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Span {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

impl Grant {
    /// When the guard was valid: until its release, its loss, its deadline, or the end of its process, whatever came first.
    pub(crate) fn validity(&self) -> Option<Span> {
        let ends = [Some(self.deadline), self.ending, self.lost, self.killed];
        let to = ends.into_iter().flatten().min().unwrap_or(self.deadline);
        (to > self.at).then_some(Span { from: self.at, to })
    }
}

impl History {
    pub(crate) fn new(mut events: Vec<Event>) -> Self {
        // Stable: what one client reports stays in its order, and what a register took in the order in which it did.
        events.sort_by_key(|event| event.at);
        let mut history = Self {
            events: Vec::new(),
            attempts: BTreeMap::new(),
            absences: HashMap::new(),
            killed: HashMap::new(),
            outages: Vec::new(),
            troubles: Vec::new(),
        };
        for event in &events {
            history.take(event);
        }
        for attempt in history.attempts.values_mut() {
            if let Some(grant) = &mut attempt.grant {
                grant.killed = history.killed.get(&attempt.process).copied();
            }
        }
        history.events = events;
        history
    }

    fn take(&mut self, event: &Event) {
        let (at, never) = (event.at, Instant(u64::MAX));
        match &event.kind {
            Kind::Asked { ask, register, how } => {
                let (ask, register, how) = (*ask, *register, *how);
                let attempt = Attempt { ask, process: event.process, register, how, asked: at, answered: None, grant: None };
                self.attempts.insert(ask, attempt);
            }
            Kind::Paused { process } => self.absences.entry(*process).or_default().push(Span { from: at, to: never }),
            Kind::Resumed { process } => {
                if let Some(span) = self.absences.entry(*process).or_default().last_mut() {
                    span.to = at;
                }
            }
            Kind::Killed { process } => drop(self.killed.insert(*process, at)),
            Kind::FaultBegan { majority, .. } => {
                let span = Span { from: at, to: never };
                self.troubles.push(span);
                self.outages.extend(majority.then_some(span));
            }
            Kind::FaultEnded { .. } => {
                for last in [self.troubles.last_mut(), self.outages.last_mut()] {
                    last.into_iter().filter(|span| span.to == never).for_each(|span| span.to = at);
                }
            }
            kind => {
                if let Some(attempt) = kind.ask().and_then(|ask| self.attempts.get_mut(&ask)) {
                    attempt.take(at, kind);
                }
            }
        }
    }

    /// All acquisitions of each register in the order of their grants.
    pub(crate) fn by_register(&self) -> BTreeMap<u32, Vec<(&Attempt, &Grant)>> {
        let mut all: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for attempt in self.attempts.values() {
            if let Some(grant) = &attempt.grant {
                all.entry(attempt.register).or_default().push((attempt, grant));
            }
        }
        all.values_mut().for_each(|grants| grants.sort_by_key(|(_, grant)| grant.at));
        all
    }

    /// Whether a process was stopped, or the store without a majority, at some time of a span.
    pub(crate) fn excused(&self, process: u32, span: Span) -> bool {
        let absences = self.absences.get(&process).into_iter().flatten();
        absences.chain(&self.outages).any(|trouble| trouble.overlaps(span))
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        let waits = self.attempts.values().filter_map(|attempt| Some(attempt.grant.as_ref()?.at.since(attempt.asked)));
        waits.max().unwrap_or_default()
    }
}

impl Attempt {
    fn take(&mut self, at: Instant, kind: &Kind) {
        match (kind, &mut self.grant) {
            (Kind::Granted { token, valid_until, .. }, _) => {
                self.answered = Some(at);
                let (token, deadline) = (*token, *valid_until);
                self.grant = Some(Grant { at, token, deadline, ending: None, ended: false, lost: None, killed: None });
            }
            (Kind::NotFree { .. } | Kind::TimedOut { .. } | Kind::GaveUp { .. } | Kind::Failed { .. }, _) => self.answered = Some(at),
            (Kind::Held { valid_until, .. }, Some(grant)) => grant.deadline = grant.deadline.max(*valid_until),
            (Kind::Lost { .. }, Some(grant)) => drop(grant.lost.get_or_insert(at)),
            (Kind::Ending { .. }, Some(grant)) => drop(grant.ending.get_or_insert(at)),
            (Kind::Ended { .. }, Some(grant)) => grant.ended = true,
            _ => {}
        }
    }
}
