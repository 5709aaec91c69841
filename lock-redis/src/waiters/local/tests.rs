use super::*;
use proptest::prelude::*;

const POLL: Duration = Duration::from_secs(2);

/// Nobody is overdue.
const LIMITS: Limits = Limits {
    react: POLL,
    attempt: POLL,
    look: POLL,
};

fn at(millis: u64) -> Moment {
    Moment::from_origin(Duration::from_millis(1_000_000 + millis))
}

fn key(name: &str) -> Arc<str> {
    name.into()
}

fn turn(step: Step) -> Turn {
    match step {
        Step::Try(turn) => turn,
        _ => panic!("{step:?}"),
    }
}

#[test]
fn only_the_head_competes_and_the_next_takes_over() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    let third = queues.join(&k, 3, LIMITS);
    assert_eq!(
        queues.step(&k, first, at(0)),
        Step::Try(Turn {
            reports: 0,
            prompt: None
        })
    );
    assert_eq!(queues.step(&k, second, at(0)), Step::Follow(POLL));
    assert_eq!(queues.leave(&k, second), None, "the head stays the head");
    assert_eq!(queues.leave(&k, first), Some(3));
    assert_eq!(
        queues.step(&k, third, at(0)),
        Step::Try(Turn {
            reports: 0,
            prompt: None
        })
    );
    assert_eq!(queues.leave(&k, third), None);
    assert!(queues.is_empty(&k) && queues.waiting() == 0, "no residue");
}

#[test]
fn a_busy_head_waits_for_the_report_the_expiry_or_the_poll() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let head = queues.join(&k, 1, LIMITS);
    let t = turn(queues.step(&k, head, at(0)));
    queues.taken(&k, head, t, at(0), Some(Duration::from_millis(500)), POLL);
    assert_eq!(queues.step(&k, head, at(0)), Step::Wait(at(501)));
    let t = turn(queues.step(&k, head, at(501)));
    queues.taken(&k, head, t, at(501), None, POLL);
    assert_eq!(queues.step(&k, head, at(501)), Step::Wait(at(2501)));
    assert_eq!(queues.changed("b", "b"), None);
    assert_eq!(queues.changed(&k, &k), Some(1));
    assert!(matches!(queues.step(&k, head, at(502)), Step::Try(_)));
}

#[test]
fn who_sleeps_on_an_entry_is_not_woken_by_the_lock() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    let t = turn(queues.step(&k, first, at(0)));
    queues.listen(&k, first, Some("entry"));
    queues.taken(&k, first, t, at(0), None, POLL);
    assert_eq!(queues.changed(&k, &k), None);
    assert_eq!(queues.changed(&k, "earlier"), None);
    assert_eq!(queues.changed(&k, "entry"), Some(1));
    queues.listen(&k, first, None);
    assert_eq!(queues.changed(&k, &k), Some(1));
    queues.listen(&k, first, Some("entry"));
    // Whoever comes after it has not looked at anything yet.
    queues.leave(&k, first);
    assert_eq!(queues.changed(&k, &k), Some(2));
    queues.leave(&k, second);
}

#[test]
fn a_report_during_the_attempt_is_not_forgotten() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let head = queues.join(&k, 1, LIMITS);
    let t = turn(queues.step(&k, head, at(0)));
    assert_eq!(queues.changed(&k, &k), Some(1));
    queues.taken(&k, head, t, at(1), Some(POLL), POLL);
    assert!(matches!(queues.step(&k, head, at(1)), Step::Try(_)));
}

#[test]
fn the_grant_of_the_head_tells_the_next_when_to_try() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    let t = turn(queues.step(&k, first, at(0)));
    queues.taken(&k, first, t, at(0), Some(Duration::from_millis(100)), POLL);
    assert_eq!(queues.leave(&k, first), Some(2));
    assert_eq!(queues.step(&k, second, at(0)), Step::Wait(at(101)));
    assert_eq!(queues.changed(&k, &k), Some(2), "released");
    assert!(matches!(queues.step(&k, second, at(1)), Step::Try(_)));
}

#[test]
fn a_lost_link_wakes_every_head() {
    let mut queues = LocalQueues::new();
    let a = key("a");
    let b = key("b");
    let first = queues.join(&a, 1, LIMITS);
    let _ = queues.join(&a, 2, LIMITS);
    let other = queues.join(&b, 3, LIMITS);
    for (k, head) in [(&a, first), (&b, other)] {
        let t = turn(queues.step(k, head, at(0)));
        queues.taken(k, head, t, at(0), None, POLL);
    }
    let mut woken = queues.missed(|_| true);
    woken.sort_unstable();
    assert_eq!(woken, [1, 3]);
    assert!(
        matches!(queues.step(&a, first, at(0)), Step::Try(_))
            && matches!(queues.step(&b, other, at(0)), Step::Try(_))
    );
}

#[test]
fn after_a_failure_reports_do_not_cut_the_pause_short() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    queues.pause(&k, first, at(100));
    queues.missed(|_| true);
    queues.leave(&k, first);
    assert_eq!(queues.step(&k, second, at(0)), Step::Wait(at(100)));
    assert!(matches!(queues.step(&k, second, at(100)), Step::Try(_)));
}

#[test]
fn a_release_on_its_way_prompts_the_head_once() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    let t = turn(queues.step(&k, first, at(0)));
    queues.taken(&k, first, t, at(0), Some(POLL), POLL);
    assert_eq!(queues.released(&k, Some(at(5))), Some(1));
    let t = turn(queues.step(&k, first, at(5)));
    assert_eq!(
        (t.prompt, turn(queues.step(&k, first, at(5))).prompt),
        (Some(at(5)), None)
    );
    assert_eq!(
        queues.changed(&k, &k),
        Some(1),
        "the release, which its own attempt comes after"
    );
    let look = Duration::from_millis(10);
    queues.taken_untracked(&k, first, t, at(6), Some(POLL), look);
    assert_eq!(queues.leave(&k, first), Some(2));
    assert_eq!(
        queues.changed(&k, &k),
        None,
        "nothing can be reported of the new holder"
    );
    assert_eq!(queues.step(&k, second, at(6)), Step::Wait(at(16)));
    let t = turn(queues.step(&k, second, at(16)));
    assert_eq!(
        (t.prompt, queues.changed(&k, &k)),
        (None, Some(2)),
        "it is heard again, before the answer too"
    );
    queues.taken(&k, second, t, at(16), Some(POLL), POLL);
    assert_eq!(turn(queues.step(&k, second, at(16))).prompt, None);
}

#[test]
fn a_head_that_was_prompted_while_it_tried_tries_again_and_its_successor_is_not_prompted() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let first = queues.join(&k, 1, LIMITS);
    let second = queues.join(&k, 2, LIMITS);
    let t = turn(queues.step(&k, first, at(0)));
    queues.released(&k, Some(at(1)));
    queues.taken(&k, first, t, at(2), Some(POLL), POLL);
    let t = turn(queues.step(&k, first, at(2)));
    assert_eq!(t.prompt, Some(at(1)));
    queues.released(&k, None);
    queues.taken_untracked(
        &k,
        first,
        Turn { prompt: None, ..t },
        at(3),
        Some(POLL),
        POLL,
    );
    assert_eq!(
        turn(queues.step(&k, first, at(3))).prompt,
        None,
        "a release that is over is tried at once, too"
    );
    queues.released(&k, Some(at(4)));
    queues.leave(&k, first);
    assert_eq!(turn(queues.step(&k, second, at(4))).prompt, None);
}

fn limits(ttl: u64) -> Limits {
    Limits::new(Duration::from_millis(ttl), Duration::from_secs(12))
}

/// Returns when a waiter that is polled gets its turn, in milliseconds.
fn turn_of(queues: &mut LocalQueues<i32>, k: &Arc<str>, waiter: Ticket, from: u64) -> u64 {
    let mut now = at(from);
    while let Step::Follow(look) = queues.step(k, waiter, now) {
        now = now + look;
    }
    u64::try_from(now.saturating_since(at(0)).as_millis()).unwrap()
}

#[test]
fn a_head_that_nobody_polls_is_passed_over_within_its_ttl_and_queues_again() {
    for (ttl, soon) in [(100, 100), (4_000, 3_000), (30_000, 13_000)] {
        for (tries, behind) in [(false, 1), (true, 1), (false, 50), (true, 50)] {
            let mut queues = LocalQueues::new();
            let k = key("a");
            let head = queues.join(&k, 0, limits(ttl));
            let others: Vec<_> = (1..=behind)
                .map(|waker| queues.join(&k, waker, limits(600_000)))
                .collect();
            if tries {
                turn(queues.step(&k, head, at(0)));
            }
            let passed = turn_of(&mut queues, &k, others[others.len() - 1], 0);
            assert!(
                passed <= soon,
                "{ttl} ms, {tries}, {behind} behind: after {passed} ms"
            );
            assert_eq!(queues.step(&k, head, at(passed)), Step::Rejoin);
            queues.rejoin(&k, head, 0, limits(ttl));
            assert!(matches!(queues.step(&k, head, at(passed)), Step::Follow(_)));
            assert_eq!(queues.waiting(), others.len() + 1);
        }
    }
}

#[test]
fn a_head_that_waits_for_a_report_is_left_in_its_place() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let head = queues.join(&k, 1, limits(4_000));
    let second = queues.join(&k, 2, limits(4_000));
    let t = turn(queues.step(&k, head, at(0)));
    queues.taken(&k, head, t, at(0), None, Duration::from_secs(600));
    for now in (0..60_000).step_by(700) {
        assert!(
            matches!(queues.step(&k, second, at(now)), Step::Follow(look) if look <= POLL),
            "at {now} ms"
        );
    }
    assert_eq!(queues.changed(&k, &k), Some(1));
    assert!(
        turn_of(&mut queues, &k, second, 60_000) <= 64_000,
        "it was told, and does nothing"
    );
    assert_eq!(queues.leave(&k, head), None, "it has no place any more");
}

#[test]
fn reports_without_end_make_a_head_look_seldom_and_a_release_at_once() {
    let mut queues = LocalQueues::new();
    let k = key("a");
    let head = queues.join(&k, 1, LIMITS);
    let mut looks = 0;
    for now in 0..2_000 {
        if let Step::Try(turn) = queues.step(&k, head, at(now)) {
            looks += 1;
            queues.taken(&k, head, turn, at(now), None, Duration::from_secs(600));
        }
        queues.changed(&k, &k);
    }
    assert!((10..=25).contains(&looks), "{looks}");
    assert!(matches!(queues.step(&k, head, at(2_000)), Step::Wait(_)));
    queues.released(&k, None);
    let turn = turn(queues.step(&k, head, at(2_000)));
    // What it waited for is over: the next reports are followed at once.
    queues.progressed(&k, head);
    queues.taken(&k, head, turn, at(2_000), None, Duration::from_secs(600));
    queues.changed(&k, &k);
    assert!(matches!(queues.step(&k, head, at(2_000)), Step::Try(_)));
}

#[derive(Clone, Debug)]
enum Event {
    Join,
    Leave(usize),
    Attempt { report: bool, granted: bool },
    Released { on_its_way: bool },
    Changed,
    Missed,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Join),
        2 => (0..4_usize).prop_map(Event::Leave),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(report, granted)| Event::Attempt { report, granted }),
        2 => any::<bool>().prop_map(|on_its_way| Event::Released { on_its_way }),
        2 => Just(Event::Changed),
        1 => Just(Event::Missed),
        2 => (0..3_000_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    /// Whatever happens: first come first served, one competitor at a time, and nobody waits longer
    /// than the poll.
    #[test]
    fn any_history_keeps_order_and_strands_nobody(events in prop::collection::vec(event(), 0..80)) {
        let mut queues = LocalQueues::new();
        let k = key("a");
        let mut model = Vec::new();
        let mut now = 0;
        for event in events {
            match event {
                Event::Join => model.push(queues.join(&k, (), LIMITS)),
                Event::Leave(at) if at < model.len() => { queues.leave(&k, model.remove(at)); }
                Event::Attempt { report, granted } => {
                    if let Some(&head) = model.first() && let Step::Try(turn) = queues.step(&k, head, at(now)) {
                        let told = report && queues.changed(&k, &k).is_some();
                        match turn.prompt {
                            Some(_) => queues.taken_untracked(&k, head, turn, at(now), Some(POLL), POLL),
                            None => queues.taken(&k, head, turn, at(now), Some(POLL), POLL),
                        }
                        if granted {
                            queues.leave(&k, model.remove(0));
                        }
                        if let (true, None, Some(&next)) = (told, turn.prompt, model.first()) {
                            let soon = match queues.step(&k, next, at(now)) {
                                Step::Try(_) => true,
                                Step::Wait(until) => until <= at(now) + BLIND_POLL,
                                Step::Follow(_) | Step::Rejoin => false,
                            };
                            prop_assert!(soon, "a report was forgotten");
                        }
                    }
                }
                Event::Released { on_its_way } => {
                    queues.released(&k, on_its_way.then(|| at(now)));
                    if let Some(&head) = model.first() {
                        let step = queues.step(&k, head, at(now));
                        prop_assert!(matches!(step, Step::Try(Turn { prompt, .. }) if prompt.is_some() == on_its_way), "{step:?}");
                    }
                }
                Event::Changed => { queues.changed(&k, &k); }
                Event::Missed => { queues.missed(|_| true); }
                Event::Pass(millis) => now += millis,
                Event::Leave(_) => {}
            }
            prop_assert_eq!(queues.waiting(), model.len());
            for (place, ticket) in model.iter().enumerate() {
                match queues.step(&k, *ticket, at(now)) {
                    Step::Try(_) => prop_assert_eq!(place, 0),
                    Step::Wait(until) => prop_assert!(place == 0 && until <= at(now) + POLL),
                    Step::Follow(look) => prop_assert!(place > 0 && look <= POLL),
                    Step::Rejoin => prop_assert!(false, "nobody was overdue"),
                }
            }
        }
    }
}
