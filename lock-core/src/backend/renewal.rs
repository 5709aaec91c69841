use std::time::Duration;

use crate::{LossReason, backend::Moment};

/// Margin for the drift between two clocks over a duration: 1 % of it, plus 2 ms for the
/// granularity of expiry.
///
/// Both figures are those of the Redlock description (`CLOCK_DRIFT_FACTOR` 0.01 and 2 ms); quartz
/// clocks stay below 0.01 %.
fn drift_margin(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}

/// The deadline rule: the instant just before the acknowledged request was *sent*, plus the TTL
/// that the store granted, less a margin for clock drift: 1 % of the TTL, plus 2 ms.
///
/// ```
/// use lock_core::backend::{Moment, deadline};
/// use std::time::Duration;
///
/// let sent = Moment::from_origin(Duration::from_secs(100));
/// assert_eq!(deadline(sent, Duration::from_secs(10)).saturating_since(sent), Duration::from_millis(9898));
/// ```
#[must_use]
pub fn deadline(sent: Moment, granted: Duration) -> Moment {
    sent + granted.saturating_sub(drift_margin(granted))
}

/// Decides when one lease is renewed, retried and given up: events and instants in, steps out, no
/// I/O.
///
/// Renews a third of the TTL after the last acknowledged request, so that two attempts may fail
/// before the lease is in danger; renewals after the first come up to a tenth of that sooner, so
/// that clients that began together do not stay together. A failed attempt is retried after a
/// twentieth of the TTL, doubling up to a sixth, with jitter, until the deadline. An attempt that
/// gets no answer is abandoned after a third of the TTL, so that a connection that went silent does
/// not use up the time of the retry. Before a maximum hold the last renewal is the one that just
/// reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renewal {
    ttl: Duration,
    /// True if it is renewed without being asked.
    renew: bool,
    deadline: Moment,
    cap: Option<Moment>,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Renewal is off: only the deadline is watched.
    Watching,
    Waiting {
        until: Moment,
        failures: u32,
    },
    InFlight {
        sent: Moment,
        give_up: Moment,
        failures: u32,
    },
    Ended(LossReason),
}

/// Action that [`Renewal::step`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RenewalStep {
    /// Nothing before this instant.
    Wait(Moment),
    /// Send a renewal now, and report its outcome; without an answer by the instant, report a
    /// failure.
    Send {
        /// Instant at which to abandon the attempt.
        give_up: Moment,
    },
    /// The lease is over.
    Lost(LossReason),
}

impl Renewal {
    /// For a lease that was granted by a request sent at `sent`; it ends at `cap` at the latest.
    pub(super) fn new(sent: Moment, granted: Duration, renew: bool, cap: Option<Moment>) -> Self {
        let mut renewal = Self {
            ttl: granted,
            renew,
            deadline: sent,
            cap,
            state: State::Watching,
        };
        renewal.acknowledged(sent, granted, Duration::ZERO);
        renewal
    }

    /// The instant at which the lease is lost unless it is renewed before.
    pub(super) fn deadline(&self) -> Moment {
        self.deadline
    }

    /// The TTL that the store granted last.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Decides what to do at `now`.
    pub(super) fn step(&mut self, now: Moment) -> RenewalStep {
        if let State::Ended(reason) = self.state {
            return RenewalStep::Lost(reason);
        }
        if now >= self.deadline {
            let reason = if self.cap.is_some_and(|cap| now >= cap) {
                LossReason::MaxHold
            } else {
                LossReason::Expired
            };
            self.state = State::Ended(reason);
            return RenewalStep::Lost(reason);
        }
        match self.state {
            // A cap that the deadline has reached leaves nothing to renew for.
            State::Waiting { .. } if self.cap == Some(self.deadline) => {
                RenewalStep::Wait(self.deadline)
            }
            State::Waiting { until, failures } if now >= until => {
                let give_up = (now + self.ttl / 3).min(self.deadline);
                self.state = State::InFlight {
                    sent: now,
                    give_up,
                    failures,
                };
                RenewalStep::Send { give_up }
            }
            State::Waiting { until, .. } => RenewalStep::Wait(until.min(self.deadline)),
            State::InFlight { give_up, .. } if give_up > now => RenewalStep::Wait(give_up),
            State::InFlight { .. } | State::Watching | State::Ended(_) => {
                RenewalStep::Wait(self.deadline)
            }
        }
    }

    /// Returns true if [`step`](Self::step) would ask to send a renewal.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        let is_capped = self.cap == Some(self.deadline);
        matches!(self.state, State::Waiting { until, .. } if now >= until)
            && now < self.deadline
            && !is_capped
    }

    /// Makes the next [`step`](Self::step) send at once if a renewal is due within `slack`: lets a
    /// driver batch.
    pub(super) fn hasten(&mut self, now: Moment, slack: Duration) {
        if let State::Waiting { until, .. } = &mut self.state
            && *until <= now + slack
        {
            *until = now;
        }
    }

    /// Makes the next [`step`](Self::step) send, whether or not renewal is on, unless one is in
    /// flight.
    pub(super) fn renew_at(&mut self, now: Moment) {
        if let State::Watching | State::Waiting { .. } = self.state {
            self.state = State::Waiting {
                until: now,
                failures: 0,
            };
        }
    }

    /// Notes that the store acknowledged the renewal in flight; it now keeps the lease for
    /// `granted`. `jitter`, from 0 to 1, spreads the next renewals of many.
    pub(super) fn renewed(&mut self, granted: Duration, jitter: f64) {
        if let State::InFlight { sent, .. } = self.state {
            self.ttl = granted;
            let sooner = (granted / 30).mul_f64(jitter.clamp(0.0, 1.0));
            self.acknowledged(sent, granted, sooner);
        }
    }

    /// Notes that the renewal in flight failed, or was not answered in time. `jitter`, from 0 to 1,
    /// spreads the retries of many.
    pub(super) fn failed(&mut self, now: Moment, jitter: f64) {
        if let State::InFlight { failures, .. } = self.state {
            let pause = (self.ttl / 20 * 2_u32.pow(failures.min(4))).min(self.ttl / 6);
            let until = now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
            self.state = State::Waiting {
                until,
                failures: failures.saturating_add(1),
            };
        }
    }

    /// Notes that the store no longer has the lease: over at once.
    pub(super) fn not_held(&mut self) {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(LossReason::Removed);
        }
    }

    /// Takes over a grant and plans the next renewal.
    fn acknowledged(&mut self, sent: Moment, granted: Duration, sooner: Duration) {
        let fresh = deadline(sent, granted).max(self.deadline);
        self.deadline = self.cap.map_or(fresh, |cap| fresh.min(cap));
        self.state = State::Watching;
        if self.renew {
            let regular = sent + (granted / 3 - sooner);
            let until = match self.last(granted) {
                Some(last) if last > sent => regular.min(last),
                _ => regular,
            };
            self.state = State::Waiting { until, failures: 0 };
        }
    }

    /// The instant of the renewal that just reaches the maximum hold. A later one would leave a
    /// dead holder's lease in the store for longer than that, by up to a third of the TTL.
    fn last(&self, granted: Duration) -> Option<Moment> {
        let valid = granted.saturating_sub(drift_margin(granted));
        self.cap.map(|cap| cap - valid)
    }
}

#[cfg(test)]
mod tests;
