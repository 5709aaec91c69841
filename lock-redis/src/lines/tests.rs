use super::*;
use proptest::prelude::*;

const POLL: Duration = Duration::from_secs(2);

/// Nobody is overdue.
const LIMITS: Limits = Limits { react: POLL, attempt: POLL, look: POLL };

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
    let (mut lines, k) = (Lines::new(), key("a"));
    let (first, second, third) = (lines.join(&k, 1, LIMITS), lines.join(&k, 2, LIMITS), lines.join(&k, 3, LIMITS));
    assert_eq!(lines.step(&k, first, at(0)), Step::Try(Turn { reports: 0, prompt: None }));
    assert_eq!(lines.step(&k, second, at(0)), Step::Follow(POLL));
    assert_eq!(lines.leave(&k, second), None, "the head stays the head");
    assert_eq!(lines.leave(&k, first), Some(3));
    assert_eq!(lines.step(&k, third, at(0)), Step::Try(Turn { reports: 0, prompt: None }));
    assert_eq!(lines.leave(&k, third), None);
    assert!(lines.is_empty(&k) && lines.waiting() == 0, "no residue");
}

#[test]
fn a_busy_head_waits_for_the_report_the_expiry_or_the_poll() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let head = lines.join(&k, 1, LIMITS);
    let t = turn(lines.step(&k, head, at(0)));
    lines.taken(&k, head, t, at(0), Some(Duration::from_millis(500)), POLL);
    assert_eq!(lines.step(&k, head, at(0)), Step::Wait(at(501)));
    let t = turn(lines.step(&k, head, at(501)));
    lines.taken(&k, head, t, at(501), None, POLL);
    assert_eq!(lines.step(&k, head, at(501)), Step::Wait(at(2501)));
    assert_eq!(lines.changed("b"), None);
    assert_eq!(lines.changed(&k), Some(1));
    assert!(matches!(lines.step(&k, head, at(502)), Step::Try(_)));
}

#[test]
fn a_report_during_the_attempt_is_not_forgotten() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let head = lines.join(&k, 1, LIMITS);
    let t = turn(lines.step(&k, head, at(0)));
    assert_eq!(lines.changed(&k), Some(1));
    lines.taken(&k, head, t, at(1), Some(POLL), POLL);
    assert!(matches!(lines.step(&k, head, at(1)), Step::Try(_)));
}

#[test]
fn the_grant_of_the_head_tells_the_next_when_to_try() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let (first, second) = (lines.join(&k, 1, LIMITS), lines.join(&k, 2, LIMITS));
    let t = turn(lines.step(&k, first, at(0)));
    lines.taken(&k, first, t, at(0), Some(Duration::from_millis(100)), POLL);
    assert_eq!(lines.leave(&k, first), Some(2));
    assert_eq!(lines.step(&k, second, at(0)), Step::Wait(at(101)));
    assert_eq!(lines.changed(&k), Some(2), "released");
    assert!(matches!(lines.step(&k, second, at(1)), Step::Try(_)));
}

#[test]
fn a_lost_link_wakes_every_head() {
    let mut lines = Lines::new();
    let (a, b) = (key("a"), key("b"));
    let (first, _, other) = (lines.join(&a, 1, LIMITS), lines.join(&a, 2, LIMITS), lines.join(&b, 3, LIMITS));
    for (k, head) in [(&a, first), (&b, other)] {
        let t = turn(lines.step(k, head, at(0)));
        lines.taken(k, head, t, at(0), None, POLL);
    }
    let mut woken = lines.missed(|_| true);
    woken.sort_unstable();
    assert_eq!(woken, [1, 3]);
    assert!(matches!(lines.step(&a, first, at(0)), Step::Try(_)) && matches!(lines.step(&b, other, at(0)), Step::Try(_)));
}

#[test]
fn after_a_failure_reports_do_not_cut_the_pause_short() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let (first, second) = (lines.join(&k, 1, LIMITS), lines.join(&k, 2, LIMITS));
    lines.pause(&k, first, at(100));
    lines.missed(|_| true);
    lines.leave(&k, first);
    assert_eq!(lines.step(&k, second, at(0)), Step::Wait(at(100)));
    assert!(matches!(lines.step(&k, second, at(100)), Step::Try(_)));
}

#[test]
fn a_release_on_its_way_prompts_the_head_once() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let (first, second) = (lines.join(&k, 1, LIMITS), lines.join(&k, 2, LIMITS));
    let t = turn(lines.step(&k, first, at(0)));
    lines.taken(&k, first, t, at(0), Some(POLL), POLL);
    assert_eq!(lines.released(&k, Some(at(5))), Some(1));
    let t = turn(lines.step(&k, first, at(5)));
    assert_eq!((t.prompt, turn(lines.step(&k, first, at(5))).prompt), (Some(at(5)), None));
    assert_eq!(lines.changed(&k), Some(1), "the release, which its own attempt comes after");
    let look = Duration::from_millis(10);
    lines.taken_unheard(&k, first, t, at(6), Some(POLL), look);
    assert_eq!(lines.leave(&k, first), Some(2));
    assert_eq!(lines.changed(&k), None, "nothing can be reported of the new holder");
    assert_eq!(lines.step(&k, second, at(6)), Step::Wait(at(16)));
    let t = turn(lines.step(&k, second, at(16)));
    assert_eq!((t.prompt, lines.changed(&k)), (None, Some(2)), "it is heard again, before the answer too");
    lines.taken(&k, second, t, at(16), Some(POLL), POLL);
    assert_eq!(turn(lines.step(&k, second, at(16))).prompt, None);
}

#[test]
fn a_head_that_was_prompted_while_it_tried_tries_again_and_its_successor_is_not_prompted() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let (first, second) = (lines.join(&k, 1, LIMITS), lines.join(&k, 2, LIMITS));
    let t = turn(lines.step(&k, first, at(0)));
    lines.released(&k, Some(at(1)));
    lines.taken(&k, first, t, at(2), Some(POLL), POLL);
    let t = turn(lines.step(&k, first, at(2)));
    assert_eq!(t.prompt, Some(at(1)));
    lines.released(&k, None);
    lines.taken_unheard(&k, first, Turn { prompt: None, ..t }, at(3), Some(POLL), POLL);
    assert_eq!(turn(lines.step(&k, first, at(3))).prompt, None, "a release that is over is tried at once, too");
    lines.released(&k, Some(at(4)));
    lines.leave(&k, first);
    assert_eq!(turn(lines.step(&k, second, at(4))).prompt, None);
}

fn limits(ttl: u64) -> Limits {
    Limits::new(Duration::from_millis(ttl), Duration::from_secs(12))
}

/// When a waiter that is polled gets its turn, in milliseconds.
fn turn_of(lines: &mut Lines<i32>, k: &Arc<str>, waiter: Ticket, from: u64) -> u64 {
    let mut now = at(from);
    while let Step::Follow(look) = lines.step(k, waiter, now) {
        now = now + look;
    }
    u64::try_from(now.saturating_since(at(0)).as_millis()).unwrap()
}

#[test]
fn a_head_that_nobody_polls_is_passed_over_within_its_ttl_and_queues_again() {
    for (ttl, soon) in [(100, 100), (4_000, 3_000), (30_000, 13_000)] {
        for (tries, behind) in [(false, 1), (true, 1), (false, 50), (true, 50)] {
            let (mut lines, k) = (Lines::new(), key("a"));
            let head = lines.join(&k, 0, limits(ttl));
            let others: Vec<_> = (1..=behind).map(|waker| lines.join(&k, waker, limits(600_000))).collect();
            if tries {
                turn(lines.step(&k, head, at(0)));
            }
            let passed = turn_of(&mut lines, &k, others[others.len() - 1], 0);
            assert!(passed <= soon, "{ttl} ms, {tries}, {behind} behind: after {passed} ms");
            assert_eq!(lines.step(&k, head, at(passed)), Step::Rejoin);
            lines.rejoin(&k, head, 0, limits(ttl));
            assert!(matches!(lines.step(&k, head, at(passed)), Step::Follow(_)));
            assert_eq!(lines.waiting(), others.len() + 1);
        }
    }
}

#[test]
fn a_head_that_waits_for_a_report_is_left_in_its_place() {
    let (mut lines, k) = (Lines::new(), key("a"));
    let (head, second) = (lines.join(&k, 1, limits(4_000)), lines.join(&k, 2, limits(4_000)));
    let t = turn(lines.step(&k, head, at(0)));
    lines.taken(&k, head, t, at(0), None, Duration::from_secs(600));
    for now in (0..60_000).step_by(700) {
        assert!(matches!(lines.step(&k, second, at(now)), Step::Follow(look) if look <= POLL), "at {now} ms");
    }
    assert_eq!(lines.changed(&k), Some(1));
    assert!(turn_of(&mut lines, &k, second, 60_000) <= 64_000, "it was told, and does nothing");
    assert_eq!(lines.leave(&k, head), None, "it has no place any more");
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
    /// Whatever happens: first come first served, one competitor at a time, and nobody waits longer than the poll.
    #[test]
    fn any_history_keeps_order_and_strands_nobody(events in prop::collection::vec(event(), 0..80)) {
        let (mut lines, k, mut model, mut now) = (Lines::new(), key("a"), Vec::new(), 0);
        for event in events {
            match event {
                Event::Join => model.push(lines.join(&k, (), LIMITS)),
                Event::Leave(at) if at < model.len() => { lines.leave(&k, model.remove(at)); }
                Event::Attempt { report, granted } => {
                    if let Some(&head) = model.first() && let Step::Try(turn) = lines.step(&k, head, at(now)) {
                        let told = report && lines.changed(&k).is_some();
                        match turn.prompt {
                            Some(_) => lines.taken_unheard(&k, head, turn, at(now), Some(POLL), POLL),
                            None => lines.taken(&k, head, turn, at(now), Some(POLL), POLL),
                        }
                        if granted {
                            lines.leave(&k, model.remove(0));
                        }
                        if let (true, None, Some(&next)) = (told, turn.prompt, model.first()) {
                            prop_assert!(matches!(lines.step(&k, next, at(now)), Step::Try(_)), "a report was forgotten");
                        }
                    }
                }
                Event::Released { on_its_way } => {
                    lines.released(&k, on_its_way.then(|| at(now)));
                    if let Some(&head) = model.first() {
                        let step = lines.step(&k, head, at(now));
                        prop_assert!(matches!(step, Step::Try(Turn { prompt, .. }) if prompt.is_some() == on_its_way), "{step:?}");
                    }
                }
                Event::Changed => { lines.changed(&k); }
                Event::Missed => { lines.missed(|_| true); }
                Event::Pass(millis) => now += millis,
                Event::Leave(_) => {}
            }
            prop_assert_eq!(lines.waiting(), model.len());
            for (place, ticket) in model.iter().enumerate() {
                match lines.step(&k, *ticket, at(now)) {
                    Step::Try(_) => prop_assert_eq!(place, 0),
                    Step::Wait(until) => prop_assert!(place == 0 && until <= at(now) + POLL),
                    Step::Follow(look) => prop_assert!(place > 0 && look <= POLL),
                    Step::Rejoin => prop_assert!(false, "nobody was overdue"),
                }
            }
        }
    }
}
