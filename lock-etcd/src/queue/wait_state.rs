use std::time::Duration;

use lock_core::OwnerId;
use tokio::time::Instant;

use super::{
    position::{AHEAD, LONG_QUEUE, QueuePosition, QueueRead},
    predecessor::PredecessorSleep,
    snapshot::Snapshot,
    state::{Change, Queue, WaitOutcomes},
    step::{BACKSTOP, Step, Watched},
};
use crate::key::Prefix;

/// Decides what a process watches and reads while it waits for one lock. Synchronous: takes events
/// and an instant, and returns the next step.
///
/// Near the head of the queue the process follows the queue with a watch. Far from it that would
/// wake it at every release, so it sleeps until one entry goes, which is [`AHEAD`] places ahead.
/// Where the same processes take turns that entry has the same key each time, so its watch stays
/// open in between.
#[derive(Debug)]
pub(super) struct WaitState {
    prefix: Prefix,
    queue: Queue,
    watched: Watched,
    /// Counts the watches of the queue: events of earlier ones are ignored.
    watch: u64,
    /// Read a queue that may be long before it is followed.
    unplaced: bool,
    sleep: PredecessorSleep,
    late_events: Option<LateEventCheck>,
    /// The earliest time of the next read, after one that failed or was of no use.
    retry_at: Option<Instant>,
    /// A waiter has joined or a watch was opened since the latest read was sent, which may therefore
    /// not cover it.
    wants_another_read: bool,
    /// The time of the latest read or check.
    read_at: Instant,
    /// The time when the last waiter left.
    idle_since: Option<Instant>,
    /// The queue is long because of other processes: it is not watched when nobody waits here.
    crowded: bool,
    /// The key at the head of the queue and its description, if it is not a lock's entry.
    blocked_by: Option<(String, String)>,
}

/// Reads for events that a new watch reports late. etcd looks up the revision from which "from now
/// on" counts before it registers the watch. If something is written in between, the watch is
/// served from a loop with a period of 100 ms. The first event shows that it is not.
#[derive(Clone, Copy, Debug)]
struct LateEventCheck {
    read_at: Instant,
    pause: Duration,
}

/// A few times the time after which a release is reported.
const FIRST_CHECK: Duration = Duration::from_millis(8);
/// After reads 8, 24, 56 and 120 ms after the opening the loop has been round.
const LAST_CHECK: Duration = Duration::from_millis(64);
/// The time for which a watcher without waiters stays: a lock that changes hands often finds it.
const LINGER: Duration = Duration::from_secs(1);
/// With this many waiters of one process the watch reports creations too, which is cheaper than a
/// read for each of them.
const MANY: usize = 4;
/// The pause before a read is repeated.
const READ_PAUSE: Duration = Duration::from_millis(100);
impl LateEventCheck {
    fn of_new_watch(now: Instant) -> Self {
        Self {
            read_at: now + FIRST_CHECK,
            pause: FIRST_CHECK,
        }
    }

    /// The check that follows a read.
    fn next(self) -> Option<Self> {
        let pause = self.pause * 2;
        (pause <= LAST_CHECK).then(|| Self {
            read_at: self.read_at + pause,
            pause,
        })
    }
}

impl WaitState {
    pub(super) fn new(prefix: Prefix, now: Instant) -> Self {
        Self {
            prefix,
            queue: Queue::default(),
            watched: Watched::Nothing,
            watch: 0,
            unplaced: false,
            sleep: PredecessorSleep::default(),
            late_events: None,
            retry_at: None,
            wants_another_read: false,
            read_at: now,
            idle_since: Some(now),
            crowded: false,
            blocked_by: None,
        }
    }

    pub(super) fn is_watched_by(&self, watch: u64) -> bool {
        self.watch == watch
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    fn reports_creations(&self) -> bool {
        self.watched == Watched::Queue { creations: true }
    }

    /// The part of the queue that a new entry is to read.
    pub(super) fn queue_read(&self) -> QueueRead {
        if self.reports_creations() {
            QueueRead::Nothing
        } else {
            self.sleep
                .watched_predecessor()
                .map_or(QueueRead::Short, QueueRead::Predecessor)
        }
    }

    /// Tells whether the next [`step`](Self::step) does more than sleep, after an entry has joined.
    pub(super) fn needs_step(&self) -> bool {
        self.unplaced
            || self.watched != self.wanted()
            || self.queue.needs_snapshot()
            || self.late_events.is_some()
    }

    /// Returns the next thing to do.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        if self.queue.waiting() == 0 {
            return self.step_idle(now);
        }
        let wanted = self.wanted();
        if wanted != self.watched {
            return self.watch(wanted, now);
        }
        if std::mem::take(&mut self.unplaced) && wanted == Watched::Nothing {
            self.read_at = now;
            return Step::Read;
        }
        match self.queue.first_waiting() {
            Some(first) if wanted == Watched::Nothing => self.sleep.step(first, now),
            _ => self.step_following(now),
        }
    }

    /// Keeps for a while what may serve the next waiter.
    fn step_idle(&mut self, now: Instant) -> Step {
        let since = *self.idle_since.get_or_insert(now);
        let keeps_queue = match self.watched {
            Watched::Nothing => false,
            Watched::Queue { creations } => creations || !self.crowded,
        };
        let keeps_ends = self.sleep.watched_predecessor().is_some();
        if since + LINGER <= now || !keeps_queue && !keeps_ends {
            return Step::Close;
        }
        if !keeps_queue && self.watched != Watched::Nothing {
            return self.watch(Watched::Nothing, now);
        }
        Step::Sleep {
            until: since + LINGER,
        }
    }

    /// The watch of the queue to have.
    fn wanted(&self) -> Watched {
        let many = self.queue.waiting() >= MANY;
        if (self.sleep.is_wanted() || self.unplaced) && !many {
            return Watched::Nothing;
        }
        Watched::Queue {
            creations: self.reports_creations() || self.crowded && many,
        }
    }

    fn watch(&mut self, wanted: Watched, now: Instant) -> Step {
        if wanted != Watched::Nothing {
            self.sleep.give_up();
            self.unplaced = false;
        }
        self.watched = wanted;
        self.watch += 1;
        self.late_events = None;
        self.read_at = now;
        self.queue.interrupted();
        Step::Watch {
            watch: self.watch,
            watched: wanted,
        }
    }

    fn step_following(&mut self, now: Instant) -> Step {
        let mut due = self.read_at + BACKSTOP;
        if let Some(check) = self.late_events {
            due = due.min(check.read_at);
        }
        if self.queue.needs_snapshot() {
            due = now;
        }
        if let Some(retry_at) = self.retry_at {
            due = due.max(retry_at);
        }
        if due > now {
            return Step::Sleep { until: due };
        }
        self.read_at = now;
        self.wants_another_read = false;
        Step::Read
    }

    /// Adds a waiter.
    pub(super) fn join(
        &mut self,
        key: String,
        created: i64,
        position: QueuePosition,
    ) -> WaitOutcomes {
        self.idle_since = None;
        self.wants_another_read = true;
        self.retry_at = None;
        let is_followed = matches!(self.watched, Watched::Queue { .. });
        let mut outcomes = WaitOutcomes::new();
        match position {
            QueuePosition::Near(snapshot) => {
                if !is_followed {
                    self.record_block(&snapshot);
                }
                outcomes = self.queue.snapshot(snapshot);
            }
            QueuePosition::Far { predecessor } => {
                self.crowded = true;
                if !is_followed && self.queue.waiting() == 0 {
                    self.sleep.begin(predecessor, created);
                }
            }
            QueuePosition::Unknown | QueuePosition::Head { .. } => {
                self.crowded = true;
                self.unplaced |= !is_followed && self.queue.waiting() == 0;
            }
        }
        if self
            .queue
            .first_waiting()
            .is_some_and(|(first, _)| created < first)
        {
            // The predecessor may be behind this entry.
            self.sleep.give_up();
        }
        outcomes.extend(self.queue.join(key, created));
        outcomes
    }

    /// Removes a waiter, if it still waits. True if it was the last one.
    pub(super) fn leave(&mut self, key: &str, created: i64) -> bool {
        self.queue.leave(key, created);
        self.queue.waiting() == 0
    }

    /// The watch of the queue is open and reports every change after this revision.
    pub(super) fn opened(&mut self, watch: u64, revision: i64, now: Instant) {
        if watch == self.watch
            && let Watched::Queue { creations } = self.watched
        {
            self.wants_another_read = true;
            self.retry_at = None;
            self.queue.opened(revision, creations);
            self.late_events = Some(LateEventCheck::of_new_watch(now));
        }
    }

    /// Applies the changes of one revision that the watch of the queue reports.
    pub(super) fn changed(
        &mut self,
        watch: u64,
        revision: i64,
        changes: Vec<Change>,
    ) -> WaitOutcomes {
        if watch != self.watch {
            return WaitOutcomes::new();
        }
        self.late_events = None;
        self.blocked_by = self
            .blocked_by
            .take()
            .filter(|(key, _)| !changes.iter().any(|change| change.key() == key));
        self.queue.changes(revision, changes)
    }

    /// The watch of the queue was interrupted: changes may be missing until it is open again.
    pub(super) fn interrupted(&mut self, watch: u64) {
        if watch == self.watch {
            self.queue.interrupted();
            self.late_events = None;
        }
    }

    /// The watch of ends reports those after this revision.
    pub(super) fn ends_opened(&mut self, watch: u64, revision: i64) {
        self.sleep.opened(watch, revision);
    }

    /// A watched entry has gone at this revision.
    pub(super) fn ended(&mut self, watch: u64, key: &str, revision: i64) {
        let first = self.queue.first_waiting().map(|(created, _)| created);
        self.sleep.ended(watch, key, revision, first);
    }

    /// The watch of ends was interrupted: it may miss some until it is open again.
    pub(super) fn ends_interrupted(&mut self, watch: u64) {
        self.sleep.interrupted(watch);
    }

    /// Takes the result of a [`Step::Check`].
    pub(super) fn checked(&mut self, predecessor: &str, exist: bool) {
        self.sleep.checked(predecessor, exist);
    }

    /// Takes the result of a [`Step::Read`] that was sent at `sent`.
    pub(super) fn read(&mut self, snapshot: Snapshot, sent: Instant, now: Instant) -> WaitOutcomes {
        self.record_block(&snapshot);
        self.late_events = match self.late_events {
            Some(check) if check.read_at <= sent => check.next(),
            check => check,
        };
        let ahead = self.queue.ahead(&snapshot);
        self.sleep.read_after(ahead.len());
        if !self.reports_creations() && ahead.len() > LONG_QUEUE {
            self.crowded = true;
            let predecessor = ahead[AHEAD - 1].clone();
            self.sleep.begin(predecessor, snapshot.revision);
        }
        let outcomes = self.queue.snapshot(snapshot);
        let is_useless = self.queue.needs_snapshot() && !self.wants_another_read;
        self.retry_at = is_useless.then_some(now + READ_PAUSE);
        outcomes
    }

    pub(super) fn read_failed(&mut self, now: Instant) {
        self.retry_at = Some(now + READ_PAUSE);
    }

    /// The holder as seen by the waiter with this entry, or the key that blocks the lock.
    pub(super) fn holder(&self, created: i64) -> Option<OwnerId> {
        if let Some((_, foreign)) = &self.blocked_by {
            return Some(OwnerId::new(foreign.as_str()));
        }
        self.queue
            .holder()
            .filter(|(oldest, _)| *oldest < created)
            .map(|(oldest, key)| self.prefix.owner(key, oldest))
    }

    fn record_block(&mut self, snapshot: &Snapshot) {
        if let Some((_, foreign)) = &snapshot.blocked_by
            && self.blocked_by != snapshot.blocked_by
        {
            tracing::warn!(
                backend = crate::BACKEND,
                below = self.prefix.as_str(),
                "a lock is blocked by {foreign}"
            );
        }
        self.blocked_by.clone_from(&snapshot.blocked_by);
    }
}

#[cfg(test)]
mod tests;
