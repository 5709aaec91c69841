use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::error::Failure;

/// A circuit breaker, shared by all connections of a client to one server: while the server cannot
/// be reached, one attempt at a time is made for all of them. However much waits, that is two or
/// three a second.
#[derive(Debug, Default)]
pub(crate) struct Breaker(watch::Sender<State>);

/// When to try next: synchronous, no I/O.
#[derive(Debug, Default)]
struct State {
    /// In a row, connections included that broke at once.
    failures: u32,
    /// No attempt before this; anybody may try if it is not set.
    next: Option<Instant>,
    /// What the last attempt came to, if it failed.
    last: Option<Failure>,
    /// The instant at which the last attempt succeeded.
    connected: Option<Instant>,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause, but for a quarter of it more or less: clients of one server drift apart.
const LONGEST_PAUSE: Duration = Duration::from_millis(450);

/// Upper bound for one wait of [`Breaker::pass`].
pub(crate) const WAIT_MAX: Duration = Duration::from_millis(600);

/// A connection that breaks before this has not shown that its server is well.
const STABLE: Duration = Duration::from_secs(1);

impl Breaker {
    /// Waits until an attempt may be made.
    ///
    /// # Errors
    ///
    /// The failure of an attempt that was made meanwhile.
    pub(crate) async fn pass(&self) -> Result<(), Failure> {
        let mut outcomes = self.0.subscribe();
        loop {
            outcomes.mark_unchanged();
            let mut next = None;
            self.0.send_if_modified(|state| {
                next = state.pass(Instant::now());
                false
            });
            let Some(next) = next else { return Ok(()) };
            if let Ok(Ok(())) = timeout_at(next, outcomes.changed()).await
                && let Some(failure) = &outcomes.borrow().last
            {
                return Err(failure.clone());
            }
        }
    }

    /// Records the outcome of an attempt. A server that refuses a client can be reached.
    pub(crate) fn record<T>(&self, outcome: &Result<T, Failure>) {
        let now = Instant::now();
        self.0.send_modify(|state| match outcome {
            Ok(_) => state.succeeded(now),
            Err(failure) if failure.is_refusal() => state.close(),
            Err(failure) => state.failed(failure.clone(), now),
        });
    }

    /// A connection has broken.
    pub(crate) fn broke(&self) {
        self.0.send_if_modified(|state| {
            state.broke(Instant::now());
            false
        });
    }

    /// There is another server now.
    pub(crate) fn reset(&self) {
        self.0.send_modify(|state| *state = State::default());
    }

    /// Returns why the server cannot be reached at the moment, if that is known.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.0.borrow().last.clone()
    }
}

impl State {
    /// Returns when to ask again; now is the time for an attempt if it returns nothing.
    fn pass(&mut self, now: Instant) -> Option<Instant> {
        match self.next {
            Some(next) if next > now => Some(next),
            Some(_) => {
                self.next = Some(now + self.pause());
                None
            }
            None => None,
        }
    }

    fn succeeded(&mut self, now: Instant) {
        self.connected = Some(now);
        self.close();
    }

    fn close(&mut self) {
        (self.next, self.last) = (None, None);
    }

    fn failed(&mut self, failure: Failure, now: Instant) {
        self.last = Some(failure);
        self.fail(now);
    }

    fn broke(&mut self, now: Instant) {
        if self.was_stable(now) {
            self.failures = 0;
        } else {
            self.fail(now);
        }
    }

    fn fail(&mut self, now: Instant) {
        if self.was_stable(now) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.connected = None;
        self.next = Some(now + self.pause());
    }

    /// Returns whether the last connection was made some time ago.
    fn was_stable(&self, now: Instant) -> bool {
        self.connected.is_some_and(|at| now - at >= STABLE)
    }

    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(8);
        let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests;
