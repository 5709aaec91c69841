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
    /// Times at which each process was not running, or was cut off alone. A kill never ends.
    pub(crate) absences: HashMap<u32, Vec<Span>>,
    pub(crate) killed: HashMap<u32, Instant>,
    /// Times at which a majority of the store was down, or coming back.
    pub(crate) outages: Vec<Span>,
    /// Times at which the store was in any trouble, and so may have changed its leader.
    pub(crate) troubles: Vec<Span>,
    /// Entries that the home removed from the store.
    pub(crate) removals: Vec<Removal>,
    /// Spans from the moment at which the store was stopped to go back until it was healthy again.
    pub(crate) returns: Vec<Span>,
    /// Moments at which the data was kept that the store went back to.
    backups: Vec<Instant>,
    /// Moments at which an election was noticed.
    pub(crate) elections: Vec<Instant>,
    /// Time of the last request that the store answered, on a path that no fault touches.
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
    /// The moment at which the holder began to release it.
    pub(crate) ending: Option<Instant>,
    pub(crate) ended: bool,
    pub(crate) lost: Option<Instant>,
    /// The moment at which the home removed its entry from the store.
    pub(crate) removed: Option<Instant>,
    /// The span in which the store went back behind it.
    pub(crate) undone: Option<Span>,
    /// Set once the guard was seen to be valid after its first deadline.
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

/// A store that did not answer for longer than this was without a majority.
const SILENT: Duration = Duration::from_millis(500);
/// Time that it may take to keep data, including the lag of a member that is left behind.
const KEEPING: Duration = Duration::from_secs(2);
/// Time after which the leftovers of an acquisition are usually gone.
const CLEARED: Duration = Duration::from_secs(5);

impl Span {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    pub(crate) fn length(self) -> Duration {
        self.to.since(self.from)
    }
}

/// The parts of a span that other spans cover.
pub(crate) fn overlaps(gap: Span, spans: &[Span]) -> impl Iterator<Item = Span> {
    spans
        .iter()
        .map(move |span| Span {
            from: span.from.max(gap.from),
            to: span.to.min(gap.to),
        })
        .filter(|span| span.from < span.to)
}

/// The parts of a span that other spans, sorted and disjoint, do not cover.
pub(crate) fn rest(span: Span, others: &[Span]) -> Vec<Span> {
    let mut from = span.from;
    let mut parts = Vec::new();
    let end = Span {
        from: span.to,
        to: span.to,
    };
    for other in overlaps(span, others).chain([end]) {
        parts.extend((from < other.from).then_some(Span {
            from,
            to: other.from,
        }));
        from = other.to;
    }
    parts
}

/// The same time as sorted and disjoint spans.
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

    /// The time in which the guard was valid: until its release, its loss, its removal, its
    /// deadline, the end of its process, or until the store went back behind it, whichever came
    /// first. Whether its holder learns of that is another property.
    pub(crate) fn validity(&self) -> Option<Span> {
        let undone = self.undone.map(|span| span.from);
        let ends = [
            Some(self.deadline),
            self.ending,
            self.lost,
            self.removed,
            undone,
            self.killed,
        ];
        let to = ends.into_iter().flatten().min().unwrap_or(self.deadline);
        (to > self.at).then_some(Span { from: self.at, to })
    }
}

impl History {
    pub(crate) fn new(mut events: Vec<Event>) -> Self {
        // A stable sort: the reports of one client stay in their order, and the writes of a
        // register in the order in which it took them.
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
            backups: Vec::new(),
            elections: Vec::new(),
            served: None,
        };
        for event in &events {
            history.take(event);
        }
        for attempt in history.attempts.values_mut() {
            if let Some(grant) = &mut attempt.grant {
                grant.killed = history.killed.get(&attempt.process).copied();
                let is_this = |removal: &&Removal| {
                    (removal.register, removal.token) == (attempt.register, grant.token)
                };
                grant.removed = history
                    .removals
                    .iter()
                    .find(is_this)
                    .map(|removal| removal.at);
                grant.undone = history
                    .returns
                    .iter()
                    .find(|span| span.from >= grant.at)
                    .copied();
            }
        }
        history.events = events;
        history
    }

    fn take(&mut self, event: &Event) {
        let at = event.at;
        let never = Instant(u64::MAX);
        match &event.kind {
            Kind::Asked {
                ask,
                register,
                how,
                ttl,
            } => {
                let ask = *ask;
                let register = *register;
                let how = *how;
                let ttl = *ttl;
                let attempt = Attempt {
                    ask,
                    process: event.process,
                    register,
                    how,
                    ttl,
                    asked: at,
                    answered: None,
                    grant: None,
                };
                self.attempts.insert(ask, attempt);
            }
            Kind::Served { asked } => {
                let silent = Span {
                    from: self.served.replace(*asked).unwrap_or(*asked),
                    to: at,
                };
                self.outages
                    .extend((silent.length() > SILENT).then_some(silent));
            }
            Kind::Elected { .. } => self.elections.push(at),
            Kind::BackedUp => self.backups.push(at),
            Kind::WentBack => self.returns.push(Span {
                from: at,
                to: never,
            }),
            Kind::Paused { process } | Kind::CutOff { process } => {
                self.absences.entry(*process).or_default().push(Span {
                    from: at,
                    to: never,
                });
            }
            Kind::Resumed { process } | Kind::Rejoined { process } => {
                if let Some(span) = self.absences.entry(*process).or_default().last_mut() {
                    span.to = at;
                }
            }
            Kind::Killed { process } => drop(self.killed.insert(*process, at)),
            Kind::Removed { register, token } => self.removals.push(Removal {
                at,
                register: *register,
                token: *token,
            }),
            Kind::FaultBegan { majority, .. } => {
                let span = Span {
                    from: at,
                    to: never,
                };
                self.troubles.push(span);
                self.outages.extend(majority.then_some(span));
            }
            Kind::FaultEnded { .. } => {
                let all = [&mut self.troubles, &mut self.outages, &mut self.returns]
                    .into_iter()
                    .flatten();
                all.filter(|span| span.to == never)
                    .for_each(|span| span.to = at);
            }
            kind => {
                if let Some(attempt) = kind.ask().and_then(|ask| self.attempts.get_mut(&ask)) {
                    attempt.take(at, kind);
                }
            }
        }
    }

    /// All acquisitions of each register, in the order of their grants.
    pub(crate) fn by_register(&self) -> BTreeMap<u32, Vec<(&Attempt, &Grant)>> {
        let mut all: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for attempt in self.attempts.values() {
            if let Some(grant) = &attempt.grant {
                all.entry(attempt.register)
                    .or_default()
                    .push((attempt, grant));
            }
        }
        all.values_mut()
            .for_each(|grants| grants.sort_by_key(|(_, grant)| grant.at));
        all
    }

    /// The times at which anything was not well. Each is extended by the longest TTL of an entry of
    /// this lock that it may have left behind, and by a second to recover.
    pub(crate) fn unrest(&self, register: u32) -> Vec<Span> {
        let troubles = self
            .troubles
            .iter()
            .map(|span| (*span, self.longest_ttl(register, None, *span)));
        let returns = self
            .returns
            .iter()
            .map(|span| (*span, self.longest_ttl_back(register, *span)));
        let inactivity = self
            .inactivity()
            .map(|(process, span)| (span, self.longest_ttl(register, Some(process), span)));
        let until = |(span, ttl): (Span, Option<Duration>)| Span {
            from: span.from,
            to: span
                .to
                .plus(ttl.unwrap_or_default() + Duration::from_secs(1)),
        };
        merged(
            inactivity
                .chain(troubles)
                .chain(returns)
                .map(until)
                .collect(),
        )
    }

    /// The moment whose entries the store has again after it went back.
    fn as_of(&self, back: Span) -> Span {
        let at = self.backup(back).unwrap_or(back.from);
        Span { from: at, to: at }
    }

    /// The moment at which the data was kept, if it was.
    fn backup(&self, back: Span) -> Option<Instant> {
        self.backups.iter().rfind(|at| **at <= back.from).copied()
    }

    /// True if a grant at this moment is for certain in the data that the store went back to: for
    /// its holder nothing went back, if it was told nothing since.
    pub(crate) fn has_back(&self, granted: Instant, back: Span) -> bool {
        self.backup(back)
            .is_some_and(|at| granted.plus(KEEPING) <= at)
    }

    /// The processes that did not act, each with the time. A kill counts as a moment, because
    /// nobody can say for how long.
    pub(crate) fn inactivity(&self) -> impl Iterator<Item = (u32, Span)> {
        let kills = self
            .killed
            .iter()
            .map(|(process, at)| (*process, Span { from: *at, to: *at }));
        let absences = self
            .absences
            .iter()
            .flat_map(|(process, spans)| spans.iter().map(|span| (*process, *span)));
        kills.chain(absences)
    }

    /// The longest TTL of the entries of a lock that a process, or any process, may have had or
    /// left in the store during a span.
    pub(crate) fn longest_ttl(
        &self,
        register: u32,
        process: Option<u32>,
        span: Span,
    ) -> Option<Duration> {
        let entries = self
            .entries(register, span)
            .filter(|attempt| process.is_none_or(|process| process == attempt.process));
        entries.map(|attempt| attempt.ttl).max()
    }

    /// The longest TTL of the entries of a lock that came back with the store and that nobody
    /// removes: their clients are dead, or may have ended the leases. A client that still had its
    /// entry when the store went back renews it, and so has to look after it.
    pub(crate) fn longest_ttl_back(&self, register: u32, back: Span) -> Option<Duration> {
        let is_forgotten = |attempt: &&Attempt| {
            attempt.over().is_some_and(|over| over <= back.to)
                || self.killed.contains_key(&attempt.process)
        };
        self.entries(register, self.as_of(back))
            .filter(is_forgotten)
            .map(|attempt| attempt.ttl)
            .max()
    }

    /// The attempts whose entries of a lock the store may have had during a span.
    fn entries(&self, register: u32, span: Span) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().filter(move |attempt| {
            // Entries of dead clients stay for as long as a renewal that was just made, and an
            // election, keep them.
            let died = self
                .killed
                .get(&attempt.process)
                .map(|at| at.plus(attempt.ttl * 2));
            let gone = attempt.over().map(|over| over.plus(CLEARED)).or(died);
            attempt.register == register
                && attempt.asked <= span.to
                && gone.is_none_or(|gone| gone >= span.from)
        })
    }

    /// The longest of the leases that the client of an attempt may have had during a span, if any.
    pub(crate) fn longest_lease(&self, client: (u32, u64), span: Span) -> Option<Duration> {
        let own = self
            .attempts
            .values()
            .filter(|attempt| attempt.client() == client);
        let may_have = |attempt: &&Attempt| {
            // A lease whose end the store did not confirm lasts for another TTL.
            attempt.asked <= span.to
                && attempt
                    .over()
                    .is_none_or(|over| over.plus(attempt.ttl) >= span.from)
        };
        own.filter(may_have).map(|attempt| attempt.ttl).max()
    }

    /// True if a process was stopped, or the store was without a majority, at some time of a span.
    pub(crate) fn excused(&self, process: u32, span: Span) -> bool {
        self.impediments(process)
            .any(|trouble| trouble.overlaps(span))
    }

    /// Time within a span for which a process was stopped, or the store was without a majority.
    pub(crate) fn impeded(&self, process: u32, span: Span) -> Duration {
        let all = merged(self.impediments(process).copied().collect());
        overlaps(span, &all).map(Span::length).sum()
    }

    fn impediments(&self, process: u32) -> impl Iterator<Item = &Span> {
        self.absences
            .get(&process)
            .into_iter()
            .flatten()
            .chain(&self.outages)
    }

    /// Number of guards that were seen to be renewed.
    pub(crate) fn renewed(&self) -> usize {
        self.grants().filter(|grant| grant.renewed).count()
    }

    pub(crate) fn lost(&self) -> usize {
        self.grants().filter(|grant| grant.lost.is_some()).count()
    }

    fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.attempts
            .values()
            .filter_map(|attempt| attempt.grant.as_ref())
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        let waits = self
            .attempts
            .values()
            .filter_map(|attempt| Some(attempt.grant.as_ref()?.at.since(attempt.asked)));
        waits.max().unwrap_or_default()
    }
}

impl Attempt {
    /// The client that made the attempt.
    pub(crate) fn client(&self) -> (u32, u64) {
        (self.process, self.ask.client())
    }

    /// The moment at which its caller was done with it.
    fn over(&self) -> Option<Instant> {
        match &self.grant {
            Some(grant) => grant.ending,
            None => self.answered,
        }
    }

    fn take(&mut self, at: Instant, kind: &Kind) {
        match (kind, &mut self.grant) {
            (
                Kind::Granted {
                    token, valid_until, ..
                },
                _,
            ) => {
                self.answered = Some(at);
                let token = *token;
                let deadline = *valid_until;
                self.grant = Some(Grant::new(at, token, deadline));
            }
            (
                Kind::NotFree { .. }
                | Kind::TimedOut { .. }
                | Kind::GaveUp { .. }
                | Kind::Failed { .. },
                _,
            ) => self.answered = Some(at),
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
