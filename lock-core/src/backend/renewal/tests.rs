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
    assert_eq!(
        renewal.step(at(10.0)),
        RenewalStep::Send { give_up: at(20.0) }
    );
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
    let mut now = at(0.0);
    let mut sends = 0;
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
    assert_eq!(
        renewal.step(at(10.0)),
        RenewalStep::Lost(LossReason::Removed)
    );
}

#[test]
fn without_renewal_only_the_deadline_counts() {
    let mut renewal = Renewal::new(at(0.0), TTL, false, None);
    assert_eq!(
        renewal.step(at(25.0)),
        RenewalStep::Wait(renewal.deadline())
    );
    assert_eq!(
        renewal.step(renewal.deadline()),
        RenewalStep::Lost(LossReason::Expired)
    );
}

#[test]
fn without_renewal_a_request_renews_once() {
    let mut renewal = Renewal::new(at(0.0), TTL, false, None);
    renewal.renew_at(at(20.0));
    assert_eq!(
        renewal.step(at(20.0)),
        RenewalStep::Send {
            give_up: renewal.deadline()
        }
    );
    renewal.failed(at(21.0), 1.0);
    assert!(
        matches!(renewal.step(at(21.0)), RenewalStep::Wait(retry) if retry < at(23.0)),
        "a failure is retried"
    );
    assert!(matches!(renewal.step(at(23.0)), RenewalStep::Send { .. }));
    renewal.renewed(TTL, 0.0);
    assert_eq!(renewal.deadline(), deadline(at(23.0), TTL));
    assert_eq!(
        renewal.step(at(40.0)),
        RenewalStep::Wait(renewal.deadline())
    );
}

#[test]
fn the_lease_of_a_dead_holder_ends_at_its_maximum_hold() {
    for ttl in [1, 2, 3, 30, 100].map(Duration::from_secs) {
        for cap in 1..400 {
            let cap = at(f64::from(cap) / 2.0);
            if cap < at(0.0) + ttl {
                continue;
            }
            let mut renewal = Renewal::new(at(0.0), ttl, true, Some(cap));
            let mut now = at(0.0);
            let mut lease_ends = now + ttl;
            loop {
                match renewal.step(now) {
                    RenewalStep::Send { .. } => {
                        lease_ends = now + ttl;
                        renewal.renewed(ttl, 0.7);
                    }
                    RenewalStep::Wait(until) => now = until,
                    RenewalStep::Lost(_) => break,
                }
            }
            let beyond = lease_ends.saturating_since(cap);
            assert!(beyond <= drift_margin(ttl), "{beyond:?} after {cap:?}");
        }
    }
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
    /// A lease is never valid past what the store granted, never revived and never silent for ever,
    /// whatever happens.
    #[test]
    fn any_history_is_safe(events in prop::collection::vec(event(), 0..60), renew: bool, cap in prop::option::of(1_000..90_000_u64)) {
        let cap = cap.map(|ms| at(0.0) + Duration::from_millis(ms));
        let mut renewal = Renewal::new(at(0.0), TTL, renew, cap);
        let mut now = at(0.0);
        let mut store_until = at(0.0) + TTL;
        let mut lost = None;
        let mut in_flight = None;
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
