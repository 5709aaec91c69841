use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    ErrorKind, LockError, OwnerId, Terms,
    backend::{
        Clock, Moment, StoreHealth, locked,
        store_health::{Silence, described},
    },
};

/// Limits the wait of one acquire, for its lock and for a store that does not answer, and makes the
/// error at its end.
///
/// A backend makes one for each acquire, reports to it what the store says, goes on after every
/// failure that [`failed`](Self::failed) does not hand back, and leaves the end to
/// [`bounded`](crate::backend::bounded):
///
/// - When [`AcquireOptions::with_timeout`](crate::AcquireOptions::with_timeout) has passed the
///   error is [`Unavailable`](ErrorKind::Unavailable), with the last failure as its cause, if the
///   store has left its requests unanswered for the last half of the wait, or for as long as a
///   request may take if that is less, or never; else it is [`TimedOut`](ErrorKind::TimedOut), and
///   names the holder if that is known.
/// - With or without a timeout the acquire fails with `Unavailable` when the store has not answered
///   for one TTL, or for as long as a request may take if that is more: its place in the queue may
///   be gone.
#[derive(Debug)]
pub struct WaitLimit {
    clock: Clock,
    began: Moment,
    timeout: Option<Duration>,
    /// Longest time that a request may take.
    request: Duration,
    /// Longest time that an outage may take.
    outage: Duration,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    health: Arc<StoreHealth>,
    answered: bool,
    holder: Option<String>,
}

/// Reason why an acquire ends without an error of its backend.
#[derive(Debug)]
pub(super) enum WaitEnd {
    NotFree(Duration),
    NoAnswer {
        after: Duration,
        failure: Option<LockError>,
    },
}

impl WaitLimit {
    /// A limit for one acquire, which begins now; `request` is the time that the store may take to
    /// answer one request.
    #[must_use]
    pub fn new(health: Arc<StoreHealth>, terms: &Terms, request: Duration) -> Self {
        let clock = health.clock;
        let outage = terms.ttl.max(request);
        let told = Mutex::new(Told {
            health,
            answered: false,
            holder: None,
        });
        Self {
            clock,
            began: clock.now(),
            timeout: terms.timeout,
            request,
            outage,
            told,
        }
    }

    /// Tolerates an outage for at least this long: for a store whose servers take over from each
    /// other.
    #[must_use]
    pub fn at_least(mut self, outage: Duration) -> Self {
        self.outage = self.outage.max(outage);
        self
    }

    /// Notes that a request of this acquire is sent.
    pub fn asked(&self) {
        locked(&self.told).health.asked();
    }

    /// Sends a request of this acquire for all who [follow](Self::follow) the same; as
    /// [`StoreHealth::ask`].
    ///
    /// # Cancel safety
    ///
    /// As that of the request, which is dropped.
    pub async fn ask<F: Future>(&self, request: F) -> F::Output {
        let health = Arc::clone(&locked(&self.told).health);
        health.ask(request).await
    }

    /// Notes that the store has answered this acquire.
    pub fn answered(&self) {
        let mut told = locked(&self.told);
        told.answered = true;
        told.health.answered();
    }

    /// Notes that a request of this acquire failed.
    ///
    /// # Errors
    ///
    /// The failure, unless it is [`Unavailable`](ErrorKind::Unavailable): then the acquire is to
    /// try again after a pause.
    pub fn failed(&self, failure: LockError) -> Result<(), LockError> {
        if failure.kind() != ErrorKind::Unavailable {
            return Err(failure);
        }
        locked(&self.told).health.failed(&failure);
        Ok(())
    }

    /// Notes that somebody else holds the lock; for the error if this acquire waits in vain.
    pub fn held_by(&self, owner: &OwnerId, metadata: Option<&str>) {
        locked(&self.told).holder = Some(described(owner, metadata));
    }

    /// Leaves it to others, from now on, to ask for this acquire and to report to `health` what the
    /// store says.
    pub fn follow(&self, health: Arc<StoreHealth>) {
        let mut told = locked(&self.told);
        // Answers to the others count; `health` tells for how long they got none.
        told.answered = true;
        let old = std::mem::replace(&mut told.health, health);
        let heard = locked(&old.silence).take();
        if let Some(heard) = heard {
            locked(&told.health.silence).get_or_insert(heard);
        }
    }

    /// Waits until the acquire is to end.
    pub(super) async fn over(&self) -> WaitEnd {
        loop {
            let now = self.clock.now();
            let next = match self.at(now) {
                Ok(next) => next,
                Err(over) => return over,
            };
            // It does not matter which clock the timer is on: the instant is checked again.
            tokio::time::sleep(next.saturating_since(now)).await;
        }
    }

    /// Returns when to look again, or how the acquire ends at `now`.
    fn at(&self, now: Moment) -> Result<Moment, WaitEnd> {
        let told = locked(&self.told);
        let silence = locked(&told.health.silence).clone();
        // Silence from before does not concern this acquire.
        let silent_for = |silence: &Silence| {
            silence
                .unread
                .unwrap_or(now)
                .saturating_since(silence.since.max(self.began))
        };
        let silent = silence.as_ref().map_or(Duration::ZERO, silent_for);
        let failure = || silence.as_ref().and_then(|silence| silence.failure.clone());
        if silence.is_some() && silent >= self.outage {
            return Err(WaitEnd::NoAnswer {
                after: silent,
                failure: failure(),
            });
        }
        let until = now + (self.outage - silent);
        match self.timeout {
            Some(timeout) if now >= self.began + timeout => Err(match &silence {
                // Answers to others meanwhile say nothing about this lock.
                _ if !told.answered => WaitEnd::NoAnswer {
                    after: timeout,
                    failure: failure(),
                },
                // A shorter one is no reason why the lock was not free all the time before.
                Some(_) if silent >= self.request.min(timeout / 2) => WaitEnd::NoAnswer {
                    after: silent,
                    failure: failure(),
                },
                _ => WaitEnd::NotFree(timeout),
            }),
            Some(timeout) => Ok(until.min(self.began + timeout)),
            None => Ok(until),
        }
    }

    pub(super) fn error(&self, over: WaitEnd) -> LockError {
        match over {
            WaitEnd::NotFree(timeout) => {
                let told = locked(&self.told);
                let holder = locked(&told.health.holder)
                    .clone()
                    .or_else(|| told.holder.clone());
                let holder = holder.map(|holder| format!("; it is held by {holder}"));
                LockError::new(
                    ErrorKind::TimedOut,
                    format!(
                        "the lock was not free within {timeout:?}{}",
                        holder.unwrap_or_default()
                    ),
                )
            }
            WaitEnd::NoAnswer { after, failure } => {
                let after =
                    Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
                        .max(Duration::from_millis(1));
                let error = LockError::new(
                    ErrorKind::Unavailable,
                    format!("the store did not answer for {after:?}"),
                )
                .indeterminate();
                match failure {
                    Some(failure) => error.caused_by(failure),
                    None => error,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
