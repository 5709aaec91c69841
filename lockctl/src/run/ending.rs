//! When a process group has to end because its lock does.

use std::time::Duration;

use polylock::{GuardState, LossReason};

/// What to do to the group now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Ask it to end.
    Terminate,
    Kill,
}

/// The end of a process group, as far as it has come. Instants are counted from the start.
#[derive(Debug)]
pub(super) struct Ending {
    grace: Duration,
    asked: bool,
    /// Instant at which a group whose lock was taken away is killed.
    kill_at: Option<Duration>,
}

impl Ending {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            asked: false,
            kill_at: None,
        }
    }

    /// Returns what the group's lock demands: to be asked so early that the grace is over at the
    /// deadline. A lock that somebody takes away leaves the grace from then on.
    pub(super) fn step(&mut self, now: Duration, state: GuardState, remaining: Duration) -> Step {
        match state {
            GuardState::Lost(LossReason::Removed) => {
                if now >= *self.kill_at.get_or_insert(now + self.grace) {
                    return Step::Kill;
                }
            }
            GuardState::Held if remaining > self.grace => return Step::Nothing,
            GuardState::Held => {}
            _ => return Step::Kill,
        }
        match std::mem::replace(&mut self.asked, true) {
            true => Step::Nothing,
            false => Step::Terminate,
        }
    }

    /// Time after which the group must not run any more unless this is asked again.
    pub(super) fn limit(&self, now: Duration, remaining: Duration) -> Duration {
        match self.kill_at {
            Some(at) => at.saturating_sub(now),
            None => remaining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: GuardState = GuardState::Held;
    const REMOVED: GuardState = GuardState::Lost(LossReason::Removed);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_lock_that_is_renewed_demands_nothing() {
        let mut ending = Ending::new(secs(5));
        assert_eq!(ending.step(secs(1), HELD, secs(20)), Step::Nothing);
        assert_eq!(ending.limit(secs(1), secs(20)), secs(20));
    }

    #[test]
    fn a_lock_that_runs_out_leaves_the_grace_before_its_deadline() {
        let mut ending = Ending::new(secs(5));
        assert_eq!(ending.step(secs(1), HELD, secs(5)), Step::Terminate);
        assert_eq!(ending.step(secs(2), HELD, secs(4)), Step::Nothing);
        let expired = GuardState::Lost(LossReason::Expired);
        assert_eq!(ending.step(secs(6), expired, secs(0)), Step::Kill);
    }

    #[test]
    fn a_lock_that_is_taken_away_leaves_the_grace_after_it() {
        let mut ending = Ending::new(secs(5));
        assert_eq!(ending.step(secs(1), REMOVED, secs(0)), Step::Terminate);
        assert_eq!(ending.limit(secs(2), secs(0)), secs(4));
        assert_eq!(ending.step(secs(5), REMOVED, secs(0)), Step::Nothing);
        assert_eq!(ending.step(secs(6), REMOVED, secs(0)), Step::Kill);
    }

    #[test]
    fn without_a_grace_it_is_killed_at_once() {
        let mut ending = Ending::new(Duration::ZERO);
        assert_eq!(ending.step(secs(1), REMOVED, secs(0)), Step::Kill);
    }
}
