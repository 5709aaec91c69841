use std::time::Duration;

use tokio::time::Instant;

use super::step::{BACKSTOP, Step};

/// The sleep of a process far back in a queue, which ends when one entry not far ahead goes.
#[derive(Debug, Default)]
pub(super) struct PredecessorSleep {
    /// Sleep until this entry goes.
    pub(super) predecessor: Option<String>,
    pub(super) ends: Ends,
    /// The watch of the predecessor may have missed its end.
    unchecked: bool,
    since: Option<Instant>,
    checked_at: Option<Instant>,
    /// The sleep is over, and the queue has not been read since.
    woken: bool,
}

/// The watch of the end of an entry far ahead, and after a while of the own entry too.
#[derive(Debug, Default)]
pub(super) struct Ends {
    predecessor: String,
    pub(super) own: Option<String>,
    /// Counts the watches: events of earlier ones are ignored.
    watch: u64,
    /// The revision after which ends are reported.
    from: Option<i64>,
    /// The revision of the predecessor's latest end.
    ended_at: i64,
}

/// The number of entries that should still be ahead when the queue is read after a sleep.
const LEAST_AHEAD: usize = 2;
/// The time of sleep after which the own entry is watched as well, so that its eviction is noticed.
/// Few sleep this long.
pub(super) const LONG_SLEEP: Duration = Duration::from_secs(2);

impl PredecessorSleep {
    pub(super) fn is_wanted(&self) -> bool {
        self.predecessor.is_some()
    }

    /// The entry whose end is watched, whether or not anybody sleeps.
    pub(super) fn watched_predecessor(&self) -> Option<String> {
        self.ends.from?;
        Some(self.ends.predecessor.clone())
    }

    /// Sleeps until the end of an entry that existed at a revision, unless it has ended since.
    pub(super) fn begin(&mut self, predecessor: String, existed_at: i64) {
        let is_watched = self.ends.predecessor == predecessor
            && self.ends.from.is_some_and(|from| from <= existed_at);
        self.unchecked = !is_watched;
        self.since = None;
        self.checked_at = None;
        self.predecessor = (!is_watched || self.ends.ended_at < existed_at).then_some(predecessor);
    }

    /// Ends the sleep. The watch stays open for the next one.
    pub(super) fn give_up(&mut self) {
        self.predecessor = None;
    }

    /// The next thing to do for the first waiter, which has this create revision and key.
    pub(super) fn step(&mut self, (created, own): (i64, String), now: Instant) -> Step {
        let long_sleep = *self.since.get_or_insert(now) + LONG_SLEEP;
        let check_at = *self.checked_at.get_or_insert(now) + BACKSTOP;
        let is_long = long_sleep <= now;
        let Some(predecessor) = self.predecessor.clone() else {
            return Step::Sleep { until: check_at };
        };
        if self.ends.predecessor != predecessor || is_long && self.ends.own.as_ref() != Some(&own) {
            return self.watch(predecessor, Some(own).filter(|_| is_long), now);
        }
        if self.unchecked && self.ends.from.is_some() || check_at <= now {
            self.unchecked = false;
            self.checked_at = Some(now);
            return Step::Check {
                predecessor,
                own,
                created,
            };
        }
        Step::Sleep {
            until: if is_long {
                check_at
            } else {
                long_sleep.min(check_at)
            },
        }
    }

    fn watch(&mut self, predecessor: String, own: Option<String>, now: Instant) -> Step {
        self.ends = Ends {
            predecessor: predecessor.clone(),
            own: own.clone(),
            watch: self.ends.watch + 1,
            from: None,
            ended_at: 0,
        };
        self.unchecked = true;
        self.checked_at = Some(now);
        Step::WatchEnds {
            watch: self.ends.watch,
            predecessor,
            own,
        }
    }

    pub(super) fn opened(&mut self, watch: u64, revision: i64) {
        if watch == self.ends.watch {
            // Of two entries, the one that is watched later counts.
            self.ends.from = self.ends.from.max(Some(revision));
            self.unchecked = true;
        }
    }

    /// A watched entry has gone; `first` is the create revision of the first waiter.
    pub(super) fn ended(&mut self, watch: u64, key: &str, revision: i64, first: Option<i64>) {
        if watch != self.ends.watch {
            return;
        }
        if key == self.ends.predecessor {
            self.ends.ended_at = self.ends.ended_at.max(revision);
        }
        // Keys are used again: an earlier entry may be meant.
        if first.is_some_and(|created| created < revision) {
            self.woken |= self.predecessor.take().is_some();
        }
    }

    pub(super) fn interrupted(&mut self, watch: u64) {
        if watch == self.ends.watch {
            self.ends.from = None;
        }
    }

    pub(super) fn checked(&mut self, predecessor: &str, exist: bool) {
        if !exist && self.predecessor.as_deref() == Some(predecessor) {
            self.predecessor = None;
        }
    }

    /// Judges the sleep by the number of entries that were still ahead when the queue was read.
    pub(super) fn read_after(&mut self, ahead: usize) {
        if std::mem::take(&mut self.woken) && ahead < LEAST_AHEAD {
            // Too late: the watch is not worth keeping, and another predecessor is chosen next time.
            self.ends.from = None;
            self.ends.predecessor.clear();
        }
    }
}
