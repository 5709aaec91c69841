use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lock_core::backend::Moment;

/// Who waits for which lock in this client, and when the first of each line competes for it: synchronous, no I/O.
///
/// Only the head of a line sends requests. Each of its attempts is also a read over the tracking link, so the server
/// reports the next change of the key: then the head tries again at once. `reports` counts them, so that one that arrives
/// while an attempt is on its way is not forgotten when the attempt's answer says that the lock is taken.
///
/// A holder in the same client prompts the head as soon as its release is on its way: sent after it over the same connection, the
/// head's request finds the lock free, one round trip earlier than by a report. Such an attempt reads nothing over the tracking link:
/// whatever is reported after it is about what was before, until the head has looked over that link once more.
///
/// A caller may keep its future and stop polling it: then its turn is never taken, or never ends. So those behind it look at the
/// head from time to time, and one that is overdue loses its place; if it is polled again, it takes the last one. It does no harm
/// that a head which was only slow goes on with its attempt: both then compete, as waiters of different clients do.
#[derive(Clone, Debug)]
pub(crate) struct Lines<W> {
    lines: HashMap<Arc<str>, Line<W>>,
    last_ticket: u64,
}

#[derive(Clone, Debug)]
struct Line<W> {
    queue: VecDeque<Waiter<W>>,
    reports: u64,
    /// The last that is known of the key is newer than anything that can be reported.
    unheard: bool,
    /// The head is to try at once, because of a release on its way; since when the lock has gone from hand to hand like that.
    prompt: Option<Moment>,
    /// When the head tries next if nothing is reported before; `None` for now.
    next_try: Option<Moment>,
    /// After a failure: no attempt before this, whatever is reported.
    pause: Option<Moment>,
    /// Since when the head's attempt has been on its way.
    trying: Option<Moment>,
    /// When somebody behind the head first saw that it was due; cleared by whatever the head does.
    seen_due: Option<Moment>,
}

#[derive(Clone, Debug)]
struct Waiter<W> {
    ticket: Ticket,
    waker: W,
    limits: Limits,
}

/// How long a waiter may keep those behind it waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From its turn on until it tries.
    react: Duration,
    /// For one attempt.
    attempt: Duration,
    /// Until the waiters behind it look at it.
    look: Duration,
}

/// A waiter's place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A head's turn to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Which reports the attempt can know of.
    reports: u64,
    /// Since when the lock has gone from hand to hand, if this goes on with it: to be sent the way of the release.
    pub(crate) prompt: Option<Moment>,
}

/// What a waiter does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Competes for the lock.
    Try(Turn),
    /// Waits to be woken, until this instant at most.
    Wait(Moment),
    /// Waits to be woken, and looks at the head after this time.
    Follow(Duration),
    /// Has lost its place because it was overdue, and takes the last one.
    Rejoin,
}

/// Redis expires keys to the millisecond.
const EXPIRY_GRAIN: Duration = Duration::from_millis(1);

/// A caller that is polled at all is polled this soon after it was woken.
const REACTION: Duration = Duration::from_secs(1);

impl Limits {
    /// Together within `ttl`, of attempts that end within `attempt`.
    pub(crate) fn new(ttl: Duration, attempt: Duration) -> Self {
        let half = ttl / 2;
        Self { react: REACTION.min(half), attempt: attempt.min(half), look: half }
    }
}

impl<W: Clone> Lines<W> {
    pub(crate) fn new() -> Self {
        Self { lines: HashMap::new(), last_ticket: 0 }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lines.values().map(|line| line.queue.len()).sum()
    }

    pub(crate) fn is_empty(&self, key: &str) -> bool {
        !self.lines.contains_key(key)
    }

    /// Takes the last place in the key's line.
    pub(crate) fn join(&mut self, key: &Arc<str>, waker: W, limits: Limits) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.rejoin(key, ticket, waker, limits);
        ticket
    }

    /// The same after [`Step::Rejoin`].
    pub(crate) fn rejoin(&mut self, key: &Arc<str>, ticket: Ticket, waker: W, limits: Limits) {
        let line = self.lines.entry(Arc::clone(key)).or_insert_with(Line::new);
        line.queue.push_back(Waiter { ticket, waker, limits });
    }

    /// Gives up a place, granted or not; returns the new head to be woken.
    pub(crate) fn leave(&mut self, key: &str, ticket: Ticket) -> Option<W> {
        let line = self.lines.get_mut(key)?;
        let at = line.place(ticket)?;
        line.queue.remove(at);
        if line.queue.is_empty() {
            self.lines.remove(key);
            return None;
        }
        if at > 0 {
            return None;
        }
        line.prompt = None;
        line.head_acts(None);
        line.head()
    }

    /// What a waiter does now; a prompt is good for one try.
    pub(crate) fn step(&mut self, key: &str, ticket: Ticket, now: Moment) -> Step {
        let Some(line) = self.lines.get_mut(key) else { return Step::Rejoin };
        match line.place(ticket) {
            None => return Step::Rejoin,
            Some(0) => {}
            Some(place) => match line.until_overdue(place, now) {
                Some(left) => return Step::Follow(left),
                None => line.pass_over_head(place),
            },
        }
        match line.next() {
            Some(next) if next > now => {
                line.head_acts(None);
                Step::Wait(next)
            }
            _ => {
                let prompt = line.prompt.take();
                // Over the tracking link, whose next report may come before the answer.
                line.unheard &= prompt.is_some();
                line.head_acts(Some(now));
                Step::Try(Turn { reports: line.reports, prompt })
            }
        }
    }

    /// After the head's attempt the lock is held, by another or by the head itself, and the lease ends in `expires_in`
    /// if it does. Whoever is head then waits for a report, but no longer than `poll`.
    pub(crate) fn taken(&mut self, key: &str, ticket: Ticket, turn: Turn, now: Moment, expires_in: Option<Duration>, poll: Duration) {
        let Some(line) = self.headed(key, ticket) else { return };
        line.next_try = (turn.reports == line.reports).then(|| now + pause(expires_in, poll));
        (line.pause, line.unheard) = (None, false);
        line.head_acts(None);
    }

    /// The same after an attempt that was not made over the tracking link: the next change will not be reported.
    pub(crate) fn taken_unheard(
        &mut self,
        key: &str,
        ticket: Ticket,
        turn: Turn,
        now: Moment,
        expires_in: Option<Duration>,
        poll: Duration,
    ) {
        let Some(line) = self.headed(key, ticket) else { return };
        // What the server reported while a release and the attempt were on their way was the release.
        let told = if turn.prompt.is_some() { line.prompt.is_some() } else { turn.reports != line.reports };
        line.next_try = (!told).then(|| now + pause(expires_in, poll));
        (line.pause, line.unheard) = (None, true);
        line.head_acts(None);
    }

    /// The head's attempt was answered, and says nothing of who holds the lock.
    pub(crate) fn answered(&mut self, key: &str, ticket: Ticket) {
        if let Some(line) = self.headed(key, ticket) {
            (line.next_try, line.pause) = (None, None);
            line.head_acts(None);
        }
    }

    /// After a failed attempt the head pauses, whatever is reported until the next one.
    pub(crate) fn pause(&mut self, key: &str, ticket: Ticket, until: Moment) {
        if let Some(line) = self.headed(key, ticket) {
            (line.next_try, line.pause) = (None, Some(until));
            line.head_acts(None);
        }
    }

    /// The holder is this client's, and its release is on its way; or, without `since`, over. Returns the head to be woken.
    pub(crate) fn released(&mut self, key: &str, since: Option<Moment>) -> Option<W> {
        let line = self.lines.get_mut(key)?;
        (line.prompt, line.next_try) = (since, None);
        line.reports += 1;
        line.head()
    }

    /// The server reports that the key has changed; returns the head to be woken.
    pub(crate) fn changed(&mut self, key: &str) -> Option<W> {
        self.lines.get_mut(key)?.report()
    }

    /// Reports of `concerned` keys may have been missed: every head that relies on them looks for itself.
    pub(crate) fn missed(&mut self, concerned: impl Fn(&str) -> bool) -> Vec<W> {
        self.lines.iter_mut().filter(|(key, _)| concerned(key)).filter_map(|(_, line)| line.report()).collect()
    }

    fn headed(&mut self, key: &str, ticket: Ticket) -> Option<&mut Line<W>> {
        self.lines.get_mut(key).filter(|line| line.is_head(ticket))
    }
}

impl<W: Clone> Line<W> {
    fn new() -> Self {
        Self { queue: VecDeque::new(), reports: 0, unheard: false, prompt: None, next_try: None, pause: None, trying: None, seen_due: None }
    }

    fn place(&self, ticket: Ticket) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.ticket == ticket)
    }

    fn is_head(&self, ticket: Ticket) -> bool {
        self.queue.front().is_some_and(|head| head.ticket == ticket)
    }

    fn head(&self) -> Option<W> {
        self.queue.front().map(|head| head.waker.clone())
    }

    /// When the head tries if nothing is reported before.
    fn next(&self) -> Option<Moment> {
        self.next_try.max(self.pause)
    }

    /// The head does something: begins an attempt, `trying`, or not.
    fn head_acts(&mut self, trying: Option<Moment>) {
        (self.trying, self.seen_due) = (trying, None);
    }

    /// When whoever is at this place looks at the head again; `None` if the head is overdue.
    fn until_overdue(&mut self, place: usize, now: Moment) -> Option<Duration> {
        let Limits { react, attempt, look } = self.queue.front()?.limits;
        let overdue = match (self.trying, self.next()) {
            (Some(since), _) => since + attempt,
            (None, Some(next)) if next > now => {
                self.seen_due = None;
                // Mostly the next in the line looks in time: the others need not do so as often.
                let spread = react * u32::try_from(place).unwrap_or(u32::MAX);
                return Some(spread.min(look).min(self.queue.get(place)?.limits.look));
            }
            (None, _) => *self.seen_due.get_or_insert(now) + react,
        };
        (overdue > now).then(|| overdue.saturating_since(now))
    }

    /// Whoever is at this place found the head overdue, and takes its place.
    fn pass_over_head(&mut self, place: usize) {
        let next = self.queue.remove(place);
        self.queue.pop_front();
        next.into_iter().for_each(|next| self.queue.push_front(next));
        (self.prompt, self.next_try) = (None, None);
        self.head_acts(None);
    }

    fn report(&mut self) -> Option<W> {
        if self.unheard {
            return None;
        }
        self.reports += 1;
        self.next_try = None;
        self.head()
    }
}

fn pause(expires_in: Option<Duration>, poll: Duration) -> Duration {
    expires_in.map_or(poll, |left| poll.min(left + EXPIRY_GRAIN))
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests;
