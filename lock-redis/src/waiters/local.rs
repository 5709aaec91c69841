use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lock_core::backend::Moment;

use crate::{backoff::BLIND_POLL, waiters::pace::Pace};

/// Who waits for which lock in this client, and when the first of each queue competes for it:
/// synchronous, no I/O.
///
/// Only the head of a queue sends requests. Each of its attempts is also a read over the tracking
/// link, so the server reports the next change of the key: then the head tries again at once.
/// `reports` counts them, so that one that arrives while an attempt is on its way is not forgotten
/// when the attempt's answer says that the lock is taken.
///
/// A holder in the same client prompts the head as soon as its release is on its way: sent after it
/// over the same connection, the head's request finds the lock free, one round trip earlier than by
/// a report. Such an attempt reads nothing over the tracking connection: whatever is reported after
/// it is about what was before, until the head has looked over that link once more.
///
/// A caller may keep its future and stop polling it: then its turn is never taken, or never ends.
/// So those behind it look at the head from time to time, and one that is overdue loses its place;
/// if it is polled again, it takes the last one. It does no harm that a head which was only slow
/// goes on with its attempt: both then compete, as waiters of different clients do.
#[derive(Clone, Debug)]
pub(crate) struct LocalQueues<W> {
    queues: HashMap<Arc<str>, LocalQueue<W>>,
    last_ticket: u64,
}

#[derive(Clone, Debug)]
struct LocalQueue<W> {
    queue: VecDeque<Waiter<W>>,
    reports: u64,
    /// The key of the entry that the head sleeps on: the lock is none of its business until that has
    /// changed.
    listens_to: Option<Box<str>>,
    /// How soon the head looks after a report.
    pace: Pace,
    /// The last that is known of the key is newer than anything that can be reported.
    untracked: bool,
    /// The head is to try at once, because of a release on its way; since when the lock has gone
    /// from hand to hand like that.
    prompt: Option<Moment>,
    /// The instant at which the head tries next if nothing is reported before; `None` for now.
    next_try: Option<Moment>,
    /// After a failure: no attempt before this, whatever is reported.
    pause: Option<Moment>,
    /// Since when the head's attempt has been on its way.
    trying: Option<Moment>,
    /// The instant at which somebody behind the head first saw that it was due; cleared by whatever
    /// the head does.
    seen_due: Option<Moment>,
}

#[derive(Clone, Debug)]
struct Waiter<W> {
    ticket: Ticket,
    waker: W,
    limits: Limits,
}

/// Time for which a waiter may keep those behind it waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From its turn on until it tries.
    react: Duration,
    /// For one attempt.
    attempt: Duration,
    /// Until the waiters behind it look at it.
    look: Duration,
}

/// A waiter's place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A head's turn to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Reports that the attempt can know of.
    reports: u64,
    /// Since when the lock has gone from hand to hand, if this goes on with it: to be sent the way
    /// of the release.
    pub(crate) prompt: Option<Moment>,
}

/// Next step of a waiter.
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
        Self {
            react: REACTION.min(half),
            attempt: attempt.min(half),
            look: half,
        }
    }
}

impl<W: Clone> LocalQueues<W> {
    pub(crate) fn new() -> Self {
        Self {
            queues: HashMap::new(),
            last_ticket: 0,
        }
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queues.values().map(|queue| queue.queue.len()).sum()
    }

    pub(crate) fn is_empty(&self, key: &str) -> bool {
        !self.queues.contains_key(key)
    }

    /// Takes the last place in the key's queue.
    pub(crate) fn join(&mut self, key: &Arc<str>, waker: W, limits: Limits) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.rejoin(key, ticket, waker, limits);
        ticket
    }

    /// The same after [`Step::Rejoin`].
    pub(crate) fn rejoin(&mut self, key: &Arc<str>, ticket: Ticket, waker: W, limits: Limits) {
        let queue = self
            .queues
            .entry(Arc::clone(key))
            .or_insert_with(LocalQueue::new);
        queue.queue.push_back(Waiter {
            ticket,
            waker,
            limits,
        });
    }

    /// Gives up a place, granted or not; returns the new head to be woken.
    pub(crate) fn leave(&mut self, key: &str, ticket: Ticket) -> Option<W> {
        let queue = self.queues.get_mut(key)?;
        let at = queue.place(ticket)?;
        queue.queue.remove(at);
        if queue.queue.is_empty() {
            self.queues.remove(key);
            return None;
        }
        if at > 0 {
            return None;
        }
        queue.prompt = None;
        queue.listens_to = None;
        queue.pace.reset();
        queue.head_acted(None);
        queue.head()
    }

    /// Returns what a waiter does now; a prompt is good for one try.
    pub(crate) fn step(&mut self, key: &str, ticket: Ticket, now: Moment) -> Step {
        let Some(queue) = self.queues.get_mut(key) else {
            return Step::Rejoin;
        };
        match queue.place(ticket) {
            None => return Step::Rejoin,
            Some(0) => {}
            Some(place) => match queue.until_overdue(place, now) {
                Some(left) => return Step::Follow(left),
                None => queue.skip_head(place),
            },
        }
        match queue.next() {
            Some(next) if next > now => {
                queue.head_acted(None);
                Step::Wait(next)
            }
            _ => {
                let prompt = queue.prompt.take();
                // Over the tracking connection, whose next report may come before the answer.
                queue.untracked &= prompt.is_some();
                queue.head_acted(Some(now));
                Step::Try(Turn {
                    reports: queue.reports,
                    prompt,
                })
            }
        }
    }

    /// After the head's attempt the lock is held, by another or by the head itself, and the lease
    /// ends in `expires_in` if it does. Whoever is head then waits for a report, but no longer than
    /// `poll`.
    pub(crate) fn taken(
        &mut self,
        key: &str,
        ticket: Ticket,
        turn: Turn,
        now: Moment,
        expires_in: Option<Duration>,
        poll: Duration,
    ) {
        let Some(queue) = self.headed_by(key, ticket) else {
            return;
        };
        queue.pace.looked(now, expires_in.map(|left| now + left));
        queue.next_try = Some(now + pause(expires_in, poll));
        if turn.reports != queue.reports {
            queue.hasten();
        }
        (queue.pause, queue.untracked) = (None, false);
        queue.head_acted(None);
    }

    /// The same after an attempt that was not made over the tracking connection: the next change
    /// will not be reported.
    pub(crate) fn taken_untracked(
        &mut self,
        key: &str,
        ticket: Ticket,
        turn: Turn,
        now: Moment,
        expires_in: Option<Duration>,
        poll: Duration,
    ) {
        let Some(queue) = self.headed_by(key, ticket) else {
            return;
        };
        // What the server reported while a release and the attempt were on their way was the
        // release.
        let told = if turn.prompt.is_some() {
            queue.prompt.is_some()
        } else {
            turn.reports != queue.reports
        };
        queue.next_try = (!told).then(|| now + pause(expires_in, poll));
        (queue.pause, queue.untracked) = (None, true);
        queue.head_acted(None);
    }

    /// The head has seen that what it waited for is over: the next reports are followed at once.
    pub(crate) fn progressed(&mut self, key: &str, ticket: Ticket) {
        if let Some(queue) = self.headed_by(key, ticket) {
            queue.pace.reset();
        }
    }

    /// The head's attempt was answered, and says nothing of who holds the lock.
    pub(crate) fn answered(&mut self, key: &str, ticket: Ticket) {
        if let Some(queue) = self.headed_by(key, ticket) {
            (queue.next_try, queue.pause) = (None, None);
            queue.head_acted(None);
        }
    }

    /// After a failed attempt the head pauses, whatever is reported until the next one.
    pub(crate) fn pause(&mut self, key: &str, ticket: Ticket, until: Moment) {
        if let Some(queue) = self.headed_by(key, ticket) {
            (queue.next_try, queue.pause) = (None, Some(until));
            queue.head_acted(None);
        }
    }

    /// The holder is this client's, and its release is on its way; or, without `since`, over.
    /// Returns the head to be woken.
    pub(crate) fn released(&mut self, key: &str, since: Option<Moment>) -> Option<W> {
        let queue = self.queues.get_mut(key)?;
        (queue.prompt, queue.next_try) = (since, None);
        queue.reports += 1;
        queue.head()
    }

    /// The head is about to look at an `entry`, or else at the lock, and sleeps until that changes.
    pub(crate) fn listen(&mut self, key: &str, ticket: Ticket, entry: Option<&str>) {
        if let Some(queue) = self.headed_by(key, ticket) {
            queue.listens_to = entry.map(Box::from);
        }
    }

    /// The server reports that this one of the lock's keys has `changed`; returns the head to be
    /// woken.
    pub(crate) fn changed(&mut self, key: &str, changed: &str) -> Option<W> {
        let queue = self.queues.get_mut(key)?;
        let listens_to = queue.listens_to.as_deref();
        if listens_to.is_some_and(|entry| entry != changed) {
            return None;
        }
        queue.report()
    }

    /// Reports of `concerned` keys may have been missed: every head that relies on them looks for
    /// itself.
    pub(crate) fn missed(&mut self, concerned: impl Fn(&str) -> bool) -> Vec<W> {
        self.queues
            .iter_mut()
            .filter(|(key, _)| concerned(key))
            .filter_map(|(_, queue)| queue.report())
            .collect()
    }

    fn headed_by(&mut self, key: &str, ticket: Ticket) -> Option<&mut LocalQueue<W>> {
        self.queues
            .get_mut(key)
            .filter(|queue| queue.is_head(ticket))
    }
}

impl<W: Clone> LocalQueue<W> {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            reports: 0,
            listens_to: None,
            pace: Pace::new(BLIND_POLL),
            untracked: false,
            prompt: None,
            next_try: None,
            pause: None,
            trying: None,
            seen_due: None,
        }
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

    /// Returns when the head tries if nothing is reported before.
    fn next(&self) -> Option<Moment> {
        self.next_try.max(self.pause)
    }

    /// The head does something: begins an attempt, `trying`, or not.
    fn head_acted(&mut self, trying: Option<Moment>) {
        (self.trying, self.seen_due) = (trying, None);
    }

    /// Returns when whoever is at this place looks at the head again; `None` if the head is
    /// overdue.
    fn until_overdue(&mut self, place: usize, now: Moment) -> Option<Duration> {
        let Limits {
            react,
            attempt,
            look,
        } = self.queue.front()?.limits;
        let overdue = match (self.trying, self.next()) {
            (Some(since), _) => since + attempt,
            (None, Some(next)) if next > now => {
                self.seen_due = None;
                // Mostly the next in the queue looks in time: the others need not do so as often.
                let spread = react * u32::try_from(place).unwrap_or(u32::MAX);
                return Some(spread.min(look).min(self.queue.get(place)?.limits.look));
            }
            (None, _) => *self.seen_due.get_or_insert(now) + react,
        };
        (overdue > now).then(|| overdue.saturating_since(now))
    }

    /// Whoever is at this place found the head overdue, and takes its place.
    fn skip_head(&mut self, place: usize) {
        let next = self.queue.remove(place);
        self.queue.pop_front();
        next.into_iter()
            .for_each(|next| self.queue.push_front(next));
        (self.prompt, self.next_try) = (None, None);
        self.listens_to = None;
        self.head_acted(None);
    }

    fn report(&mut self) -> Option<W> {
        if self.untracked {
            return None;
        }
        self.reports += 1;
        self.hasten();
        self.head()
    }

    /// The head tries at once, or as soon as it may after its last look.
    fn hasten(&mut self) {
        self.next_try = match (self.next_try, self.pace.not_before()) {
            (Some(next), Some(paced)) => Some(next.min(paced)),
            _ => None,
        };
    }
}

fn pause(expires_in: Option<Duration>, poll: Duration) -> Duration {
    expires_in.map_or(poll, |left| poll.min(left + EXPIRY_GRAIN))
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests;
