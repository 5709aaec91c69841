use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Pauses between the attempts of one request, without an end. They double, and are cut by up to
/// half at random, so that clients which failed together do not try again together.
#[derive(Debug)]
pub struct Pauses {
    backoff: ExponentialBackoff,
    longest: Duration,
}

impl Pauses {
    /// Pauses that begin with `first` and double up to `longest`, before they are cut.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        // Its jitter adds up to as much again.
        let halves = ExponentialBuilder::new()
            .with_min_delay(first / 2)
            .with_max_delay(longest / 2)
            .without_max_times()
            .with_jitter();
        Self {
            backoff: halves.build(),
            longest,
        }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.backoff.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_have_jitter() {
        let mut pauses = Pauses::new(Duration::from_millis(20), Duration::from_millis(100));
        for most in [20, 40, 80, 100, 100, 100] {
            let pause = pauses.pause();
            assert!(pause >= Duration::from_millis(most / 2), "{pause:?}");
            assert!(pause <= Duration::from_millis(most), "{pause:?}");
        }
    }
}
