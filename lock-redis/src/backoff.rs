//! Times to wait until the next look or try.

use std::time::Duration;

/// Interval at which to look where a server does not report changes.
pub(crate) const BLIND_POLL: Duration = Duration::from_millis(200);

/// A lock that was handed on within the client is not read over the tracking connection, to save
/// that request where locks are held briefly. If it is held longer than this, the next waiter does
/// so.
pub(crate) const HAND_OVER_POLL: Duration = Duration::from_millis(10);

/// Clients that split the votes wait for a random time up to this, which doubles with each split in
/// a row up to the second.
const SPLIT_PAUSE: Duration = Duration::from_millis(4);
const SPLIT_PAUSE_MAX: Duration = Duration::from_millis(250);

/// The same after requests that were not answered.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Returns how long a waiter relies on being told, which a `blind` one is not; less by up to a
/// quarter, so that the waiters of many clients do not keep in step.
pub(crate) fn poll(most: Duration, blind: bool) -> Duration {
    let poll = if blind { BLIND_POLL.min(most) } else { most };
    poll.mul_f64(0.75 + rand::random::<f64>() / 4.0)
}

/// Random pauses that grow.
pub(crate) struct Backoff {
    least: f64,
    spread: Duration,
    most: Duration,
}

impl Backoff {
    /// From nothing on: those who split the votes must not meet again.
    pub(crate) fn after_splits() -> Self {
        Self {
            least: 0.0,
            spread: SPLIT_PAUSE,
            most: SPLIT_PAUSE_MAX,
        }
    }

    pub(crate) fn after_failures() -> Self {
        Self {
            least: 0.5,
            spread: FAILURE_PAUSE,
            most: FAILURE_PAUSE_MAX,
        }
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self
            .spread
            .mul_f64(self.least + rand::random::<f64>() * (1.0 - self.least));
        self.spread = (self.spread * 2).min(self.most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_splits_begin_at_nothing_and_grow() {
        let mut splits = Backoff::after_splits();
        for most in [4, 8, 16, 32, 64, 128, 250, 250] {
            assert_eq!(splits.spread, Duration::from_millis(most));
            assert!(splits.pause() <= Duration::from_millis(most));
        }
    }
}
