use std::time::Duration;

use crate::{LossReason, backend::Moment};

/// How far two clocks may drift apart over a duration: 1 % of it, plus 2 ms for the granularity of expiry.
///
/// Both figures are those of the Redlock description (`CLOCK_DRIFT_FACTOR` 0.01 and 2 ms); quartz clocks stay below 0.01 %.
fn drift_margin(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}

/// The deadline rule: the instant just before the acknowledged request was *sent*, plus the TTL that the store
/// granted, less a margin for clock drift: 1 % of the TTL, plus 2 ms.
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

/// Decides when one lease is renewed, retried and given up: events and instants in, steps out, no I/O.
///
/// Renews a third of the TTL after the last acknowledged request, so that two attempts may fail before the lease is in
/// danger; after the first time up to a tenth of that sooner, so that clients that began together do not stay together.
/// A failed attempt is retried after a twentieth of the TTL, doubling up to a sixth, with jitter, until the deadline. An
/// attempt that gets no answer is abandoned after a third of the TTL, so that a connection that went silent does not use
/// up the time of the retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renewal {
    ttl: Duration,
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

/// What [`Renewal::step`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RenewalStep {
    /// Nothing before this instant.
    Wait(Moment),
    /// Send a renewal now, and report its outcome; without an answer by the instant, report a failure.
    Send {
        /// When to abandon the attempt.
        give_up: Moment,
    },
    /// The lease is over.
    Lost(LossReason),
}

impl Renewal {
    /// For a lease that was granted by a request sent at `sent`; it ends at `cap` at the latest.
    pub(super) fn new(sent: Moment, granted: Duration, renew: bool, cap: Option<Moment>) -> Self {
        let state = if renew { State::Waiting { until: sent + granted / 3, failures: 0 } } else { State::Watching };
        let mut renewal = Self { ttl: granted, deadline: sent, cap, state };
        renewal.set_deadline(sent, granted);
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

    /// What to do at `now`.
    pub(super) fn step(&mut self, now: Moment) -> RenewalStep {
        if let State::Ended(reason) = self.state {
            return RenewalStep::Lost(reason);
        }
        if now >= self.deadline {
            let reason = if self.cap.is_some_and(|cap| now >= cap) { LossReason::MaxHold } else { LossReason::Expired };
            self.state = State::Ended(reason);
            return RenewalStep::Lost(reason);
        }
        match self.state {
            // A cap that the deadline has reached leaves nothing to renew for.
            State::Waiting { .. } if self.cap == Some(self.deadline) => RenewalStep::Wait(self.deadline),
            State::Waiting { until, failures } if now >= until => {
                let give_up = (now + self.ttl / 3).min(self.deadline);
                self.state = State::InFlight { sent: now, give_up, failures };
                RenewalStep::Send { give_up }
            }
            State::Waiting { until, .. } => RenewalStep::Wait(until.min(self.deadline)),
            State::InFlight { give_up, .. } if give_up > now => RenewalStep::Wait(give_up),
            State::InFlight { .. } | State::Watching | State::Ended(_) => RenewalStep::Wait(self.deadline),
        }
    }

    /// Whether [`step`](Self::step) would have a renewal sent.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        let is_capped = self.cap == Some(self.deadline);
        matches!(self.state, State::Waiting { until, .. } if now >= until) && now < self.deadline && !is_capped
    }

    /// Makes the next [`step`](Self::step) send at once if a renewal is due within `slack`: lets a driver batch.
    pub(super) fn hasten(&mut self, now: Moment, slack: Duration) {
        if let State::Waiting { until, .. } = &mut self.state
            && *until <= now + slack
        {
            *until = now;
        }
    }

    /// The store acknowledged the renewal that is in flight; it now keeps the lease for `granted`. `jitter`, from 0 to 1, spreads
    /// the next renewals of many.
    pub(super) fn renewed(&mut self, granted: Duration, jitter: f64) {
        if let State::InFlight { sent, .. } = self.state {
            self.ttl = granted;
            self.set_deadline(sent, granted);
            let sooner = (granted / 30).mul_f64(jitter.clamp(0.0, 1.0));
            self.state = State::Waiting { until: sent + (granted / 3 - sooner), failures: 0 };
        }
    }

    /// The renewal in flight failed, or was not answered in time. `jitter`, from 0 to 1, spreads the retries of many.
    pub(super) fn failed(&mut self, now: Moment, jitter: f64) {
        if let State::InFlight { failures, .. } = self.state {
            let pause = (self.ttl / 20 * 2_u32.pow(failures.min(4))).min(self.ttl / 6);
            let until = now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
            self.state = State::Waiting { until, failures: failures.saturating_add(1) };
        }
    }

    /// The store said that the lease is not there any more: over at once.
    pub(super) fn not_held(&mut self) {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(LossReason::Removed);
        }
    }

    fn set_deadline(&mut self, sent: Moment, granted: Duration) {
        let fresh = deadline(sent, granted).max(self.deadline);
        self.deadline = self.cap.map_or(fresh, |cap| fresh.min(cap));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(30);

    fn at(seconds: f64) -> Moment {
        Moment::from_origin(Duration::from_secs(1000) + Duration::from_secs_f64(seconds))
    }

    fn renewal() -> Renewal {
        Renewal::new(at(0.0), TTL, true, None)
    }

    #[test]
    fn renews_a_third_of_the_ttl_after_the_request() {
        let mut renewal = renewal();
        assert_eq!(renewal.step(at(0.0)), RenewalStep::Wait(at(10.0)));
        assert_eq!(renewal.step(at(10.0)), RenewalStep::Send { give_up: at(20.0) });
        renewal.renewed(TTL, 0.0);
        assert_eq!(renewal.deadline(), deadline(at(10.0), TTL));
        assert_eq!(renewal.step(at(11.0)), RenewalStep::Wait(at(20.0)));
    }

    #[test]
    fn the_deadline_counts_from_the_send_not_the_reply() {
        let mut renewal = renewal();
        renewal.step(at(10.0));
        renewal.renewed(TTL, 0.0); // the reply arrived at 19, which the machine is not even told
        assert_eq!(renewal.deadline(), at(40.0) - drift_margin(TTL));
    }

    #[test]
    fn retries_until_the_deadline_then_is_lost() {
        let mut renewal = renewal();
        let (mut now, mut sends) = (at(0.0), 0);
        let reason = loop {
            match renewal.step(now) {
                RenewalStep::Send { .. } => {
                    sends += 1;
                    renewal.failed(now, 1.0);
                }
                RenewalStep::Wait(until) => now = until,
                RenewalStep::Lost(reason) => break reason,
            }
        };
        assert_eq!((reason, now), (LossReason::Expired, renewal.deadline()));
        assert!((4..=8).contains(&sends), "{sends} attempts");
    }

    #[test]
    fn not_held_ends_at_once() {
        let mut renewal = renewal();
        renewal.step(at(10.0));
        renewal.not_held();
        assert_eq!(renewal.step(at(10.0)), RenewalStep::Lost(LossReason::Removed));
    }

    #[test]
    fn without_renewal_only_the_deadline_counts() {
        let mut renewal = Renewal::new(at(0.0), TTL, false, None);
        assert_eq!(renewal.step(at(25.0)), RenewalStep::Wait(renewal.deadline()));
        assert_eq!(renewal.step(renewal.deadline()), RenewalStep::Lost(LossReason::Expired));
    }

    #[test]
    fn maximum_hold_ends_a_lease_that_is_renewed() {
        let cap = at(45.0);
        let mut renewal = Renewal::new(at(0.0), TTL, true, Some(cap));
        let mut now = at(0.0);
        let reason = loop {
            match renewal.step(now) {
                RenewalStep::Send { .. } => renewal.renewed(TTL, 0.0),
                RenewalStep::Wait(until) => now = until,
                RenewalStep::Lost(reason) => break reason,
            }
        };
        assert_eq!((reason, now), (LossReason::MaxHold, cap));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u64),
        Renewed(u64, f64),
        Failed(f64),
        NotHeld,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..15_000_u64).prop_map(Event::Pass),
            3 => (2_000..40_000_u64, 0.0..1.0).prop_map(|(ms, jitter)| Event::Renewed(ms, jitter)),
            3 => (0.0..1.0).prop_map(Event::Failed),
            1 => Just(Event::NotHeld),
        ]
    }

    proptest! {
        /// Whatever happens: never valid past what the store granted, never revived, never silent for ever.
        #[test]
        fn any_history_is_safe(events in prop::collection::vec(event(), 0..60), renew: bool, cap in prop::option::of(1_000..90_000_u64)) {
            let cap = cap.map(|ms| at(0.0) + Duration::from_millis(ms));
            let mut renewal = Renewal::new(at(0.0), TTL, renew, cap);
            let (mut now, mut store_until, mut lost, mut in_flight) = (at(0.0), at(0.0) + TTL, None, None);
            for event in events {
                match event {
                    Event::Pass(ms) => now = now + Duration::from_millis(ms),
                    Event::Renewed(ms, jitter) => {
                        if let Some(sent) = in_flight.take() {
                            let granted = Duration::from_millis(ms);
                            store_until = store_until.max(sent + granted);
                            renewal.renewed(granted, jitter);
                        }
                    }
                    Event::Failed(jitter) => { in_flight = None; renewal.failed(now, jitter); }
                    Event::NotHeld => { in_flight = None; renewal.not_held(); }
                }
                let step = renewal.step(now);
                if let Some(reason) = lost {
                    prop_assert_eq!(step, RenewalStep::Lost(reason), "a lost lease came back");
                }
                match step {
                    RenewalStep::Lost(reason) => lost = Some(reason),
                    RenewalStep::Wait(until) => {
                        prop_assert!(now < until && until <= renewal.deadline());
                        prop_assert!(now < store_until, "valid although the store has dropped it");
                    }
                    RenewalStep::Send { give_up } => {
                        prop_assert!(renew);
                        prop_assert!(now < give_up && give_up <= renewal.deadline());
                        in_flight = Some(now);
                    }
                }
                prop_assert!(cap.is_none_or(|cap| renewal.deadline() <= cap), "beyond the maximum hold");
            }
        }
    }
}
