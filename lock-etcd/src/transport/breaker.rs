use std::time::Duration;

use lock_core::{ErrorKind, LockError};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::error::Failure;

/// A circuit breaker: while a member cannot be reached, one request at a time is let through. A
/// client with any number of callers makes a handful of connections a second at most.
#[derive(Debug, Default)]
pub(super) struct Breaker(watch::Sender<State>);

#[derive(Debug, Default)]
enum State {
    /// All requests pass.
    #[default]
    Closed,
    /// No request passes before `until`, and then one.
    Open {
        until: Instant,
        pause: Duration,
        error: LockError,
    },
    /// One request has passed, and the others wait for its outcome, or until it is clear that it
    /// was not refused at once.
    HalfOpen { until: Instant, pause: Duration },
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

impl Breaker {
    /// Waits until a request may be made.
    ///
    /// # Errors
    ///
    /// The error of the request that was made meanwhile.
    pub(super) async fn pass(&self) -> Result<(), Failure> {
        if matches!(*self.0.borrow(), State::Closed) {
            return Ok(());
        }
        let mut state = self.0.subscribe();
        let mut waited = false;
        loop {
            let until = match &*state.borrow_and_update() {
                State::Closed => return Ok(()),
                State::Open { error, .. } if waited => {
                    return Err(Failure::transient(error.clone()));
                }
                State::Open { until, .. } | State::HalfOpen { until, .. } => *until,
            };
            if timeout_at(until, state.changed()).await.is_err()
                && self.0.send_if_modified(State::half_open)
            {
                return Ok(());
            }
            waited = true;
        }
    }

    /// Records the outcome of a request.
    pub(super) fn record<T>(&self, member: &str, outcome: &Result<T, Failure>) {
        match outcome {
            Err(failure) if failure.unreachable => {
                self.0.send_if_modified(|state| {
                    state.fail(|| {
                        // A new error, not indeterminate: those who wait have sent nothing.
                        LockError::new(
                            ErrorKind::Unavailable,
                            format!("{member} cannot be reached"),
                        )
                        .caused_by(failure.error.clone())
                    })
                });
            }
            _ => drop(
                self.0
                    .send_if_modified(|state| !matches!(std::mem::take(state), State::Closed)),
            ),
        }
    }
}

impl State {
    /// Lets one more request pass if it is time; tells whether it did.
    fn half_open(&mut self) -> bool {
        *self = match *self {
            Self::Open { until, pause, .. } if until <= Instant::now() => Self::HalfOpen {
                until: Instant::now() + LONGEST_PAUSE,
                pause,
            },
            // Silence is not a refusal: requests share the connection, and make no other.
            Self::HalfOpen { until, .. } if until <= Instant::now() => Self::Closed,
            _ => return false,
        };
        true
    }

    fn fail(&mut self, error: impl FnOnce() -> LockError) -> bool {
        let pause = match *self {
            // The outcome of an earlier request.
            Self::Open { .. } => return false,
            Self::HalfOpen { pause, .. } => (pause * 2).min(LONGEST_PAUSE),
            Self::Closed => FIRST_PAUSE,
        };
        *self = Self::Open {
            until: Instant::now() + pause.mul_f64(0.75 + rand::random::<f64>() / 4.0),
            pause,
            error: error(),
        };
        true
    }
}

#[cfg(test)]
mod tests;
