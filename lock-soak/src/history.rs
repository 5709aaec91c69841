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
    /// Entries that the home took out of the store.
    pub(crate) removals: Vec<Removal>,
    /// From when the store was stopped to go back until it was healthy again.
    pub(crate) returns: Vec<Span>,
    /// When an election was noticed.
    pub(crate) elections: Vec<Instant>,
    /// What the store was asked last, and answered, on a way that no fault touches.
    served: Option<Instant>,
}

/// One attempt to acquire, and the acquisition that came of it.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) ask: Ask,
    pub(crate) process: u32,
    pub(crate) register: u32,
    pub(crate) how: How,
    pub(crate) ttl: Duration,
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
    /// When its entry was taken out of the store by the home.
    pub(crate) removed: Option<Instant>,
    /// When the store went back behind it.
    pub(crate) undone: Option<Span>,
    /// Whether it was seen to be valid after its first deadline.
    pub(crate) renewed: bool,
    first_deadline: Instant,
    killed: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) at: Instant,
    pub(crate) register: u32,
    pub(crate) token: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

/// A store that did not answer for longer was without a majority.
const SILENT: Duration = Duration::from_millis(500);
/// Within which time what an acquisition has left is usually gone.
const CLEARED: Duration = Duration::from_secs(5);

impl Span {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    pub(crate) fn length(self) -> Duration {
        self.to.since(self.from)
    }
}

/// The parts of a span that others cover.
pub(crate) fn overlaps(gap: Span, spans: &[Span]) -> impl Iterator<Item = Span> {
    spans.iter().map(move |span| Span { from: span.from.max(gap.from), to: span.to.min(gap.to) }).filter(|span| span.from < span.to)
}

/// The same time as spans in order and apart.
pub(crate) fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.from);
    let mut all: Vec<Span> = Vec::new();
    for span in spans {
        match all.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => all.push(span),
        }
    }
    all
}

impl Grant {
    fn new(at: Instant, token: u64, deadline: Instant) -> Self {
        Self {
            at,
            token,
            deadline,
            ending: None,
            ended: false,
            lost: None,
            removed: None,
            undone: None,
            renewed: false,
            first_deadline: deadline,
            killed: None,
        }
    }

    /// When the guard was valid: until its release, its loss, its removal, its deadline, the end of its process, or until the store went
    /// back behind it, whatever came first. That its holder learns of that is another property.
    pub(crate) fn validity(&self) -> Option<Span> {
        let undone = self.undone.map(|span| span.from);
        let ends = [Some(self.deadline), self.ending, self.lost, self.removed, undone, self.killed];
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
            removals: Vec::new(),
            returns: Vec::new(),
            elections: Vec::new(),
            served: None,
        };
        for event in &events {
            history.take(event);
        }
        for attempt in history.attempts.values_mut() {
            if let Some(grant) = &mut attempt.grant {
                grant.killed = history.killed.get(&attempt.process).copied();
                let is_this = |removal: &&Removal| (removal.register, removal.token) == (attempt.register, grant.token);
                grant.removed = history.removals.iter().find(is_this).map(|removal| removal.at);
                grant.undone = history.returns.iter().find(|span| span.from >= grant.at).copied();
            }
        }
        history.events = events;
        history
    }

    fn take(&mut self, event: &Event) {
        let (at, never) = (event.at, Instant(u64::MAX));
        match &event.kind {
            Kind::Asked { ask, register, how, ttl } => {
                let (ask, register, how, ttl) = (*ask, *register, *how, *ttl);
                let attempt = Attempt { ask, process: event.process, register, how, ttl, asked: at, answered: None, grant: None };
                self.attempts.insert(ask, attempt);
            }
            Kind::Served { asked } => {
                let silent = Span { from: self.served.replace(*asked).unwrap_or(*asked), to: at };
                self.outages.extend((silent.length() > SILENT).then_some(silent));
            }
            Kind::Elected { .. } => self.elections.push(at),
            Kind::WentBack => self.returns.push(Span { from: at, to: never }),
            Kind::Paused { process } => self.absences.entry(*process).or_default().push(Span { from: at, to: never }),
            Kind::Resumed { process } => {
                if let Some(span) = self.absences.entry(*process).or_default().last_mut() {
                    span.to = at;
                }
            }
            Kind::Killed { process } => drop(self.killed.insert(*process, at)),
            Kind::Removed { register, token } => self.removals.push(Removal { at, register: *register, token: *token }),
            Kind::FaultBegan { majority, .. } => {
                let span = Span { from: at, to: never };
                self.troubles.push(span);
                self.outages.extend(majority.then_some(span));
            }
            Kind::FaultEnded { .. } => {
                let all = [&mut self.troubles, &mut self.outages, &mut self.returns].into_iter().flatten();
                all.filter(|span| span.to == never).for_each(|span| span.to = at);
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

    /// When anything was not well, and for as long afterwards as an entry of a lock that this may have left lasts, with a second to
    /// recover.
    pub(crate) fn unrest(&self, register: u32) -> Vec<Span> {
        let troubles = self.troubles.iter().map(|span| (None, *span));
        let until = |(process, span): (Option<u32>, Span)| {
            let ttl = self.longest_ttl(register, process, span).unwrap_or_default();
            Span { from: span.from, to: span.to.plus(ttl + Duration::from_secs(1)) }
        };
        merged(self.inactivity().map(|(process, span)| (Some(process), span)).chain(troubles).map(until).collect())
    }

    /// Which process did not act, and when; one that was killed does not for a moment, for nobody can say for how long.
    pub(crate) fn inactivity(&self) -> impl Iterator<Item = (u32, Span)> {
        let kills = self.killed.iter().map(|(process, at)| (*process, Span { from: *at, to: *at }));
        let absences = self.absences.iter().flat_map(|(process, spans)| spans.iter().map(|span| (*process, *span)));
        kills.chain(absences)
    }

    /// Of the entries of a lock that a process, or any, may have had or left in the store during a span.
    pub(crate) fn longest_ttl(&self, register: u32, process: Option<u32>, span: Span) -> Option<Duration> {
        let may_have = |attempt: &&Attempt| {
            let is_meant = attempt.register == register && process.is_none_or(|process| process == attempt.process);
            is_meant && attempt.asked <= span.to && attempt.over().is_none_or(|over| over.plus(CLEARED) >= span.from)
        };
        self.attempts.values().filter(may_have).map(|attempt| attempt.ttl).max()
    }

    /// Whether a process was stopped, or the store without a majority, at some time of a span.
    pub(crate) fn excused(&self, process: u32, span: Span) -> bool {
        self.impediments(process).any(|trouble| trouble.overlaps(span))
    }

    /// For how much of a span a process was stopped, or the store without a majority.
    pub(crate) fn impeded(&self, process: u32, span: Span) -> Duration {
        let all = merged(self.impediments(process).copied().collect());
        overlaps(span, &all).map(Span::length).sum()
    }

    fn impediments(&self, process: u32) -> impl Iterator<Item = &Span> {
        self.absences.get(&process).into_iter().flatten().chain(&self.outages)
    }

    /// How many guards were renewed, as far as it was seen.
    pub(crate) fn renewed(&self) -> usize {
        self.grants().filter(|grant| grant.renewed).count()
    }

    pub(crate) fn lost(&self) -> usize {
        self.grants().filter(|grant| grant.lost.is_some()).count()
    }

    fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.attempts.values().filter_map(|attempt| attempt.grant.as_ref())
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        let waits = self.attempts.values().filter_map(|attempt| Some(attempt.grant.as_ref()?.at.since(attempt.asked)));
        waits.max().unwrap_or_default()
    }
}

impl Attempt {
    /// When its caller was done with it.
    fn over(&self) -> Option<Instant> {
        match &self.grant {
            Some(grant) => grant.ending,
            None => self.answered,
        }
    }

    fn take(&mut self, at: Instant, kind: &Kind) {
        match (kind, &mut self.grant) {
            (Kind::Granted { token, valid_until, .. }, _) => {
                self.answered = Some(at);
                let (token, deadline) = (*token, *valid_until);
                self.grant = Some(Grant::new(at, token, deadline));
            }
            (Kind::NotFree { .. } | Kind::TimedOut { .. } | Kind::GaveUp { .. } | Kind::Failed { .. }, _) => self.answered = Some(at),
            (Kind::Held { valid_until, .. }, Some(grant)) => {
                grant.deadline = grant.deadline.max(*valid_until);
                grant.renewed |= at > grant.first_deadline;
            }
            (Kind::Lost { .. }, Some(grant)) => drop(grant.lost.get_or_insert(at)),
            (Kind::Ending { .. }, Some(grant)) => drop(grant.ending.get_or_insert(at)),
            (Kind::Ended { .. }, Some(grant)) => grant.ended = true,
            _ => {}
        }
    }
}
