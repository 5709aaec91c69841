use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lock_core::backend::Moment;

/// Who waits for which lock in this client, and when the first of each line competes for it: synchronous, no I/O.
///
/// Only the head of a line sends requests. Each of its attempts is also a read over the tracking link, so the server
/// reports the next change of the key: then the head tries again at once. `reports` counts them, so that one that arrives
/// while an attempt is on its way is not forgotten when the attempt's answer says that the lock is taken.
///
/// A holder in the same client prompts the head as soon as its release is on its way: sent after it over the same connection, the
/// head's request finds the lock free, one round trip earlier than by a report. Such an attempt reads nothing over the tracking link:
/// whatever is reported after it is about what was before, until the head has looked over that link once more.
#[derive(Clone, Debug)]
pub(crate) struct Lines<W> {
    lines: HashMap<Arc<str>, Line<W>>,
    last_ticket: u64,
}

#[derive(Clone, Debug)]
struct Line<W> {
    queue: VecDeque<(Ticket, W)>,
    reports: u64,
    /// The last that is known of the key is newer than anything that can be reported.
    unheard: bool,
    /// The head is to try at once, because of a release on its way; since when the lock has gone from hand to hand like that.
    prompt: Option<Moment>,
    /// When the head tries next if nothing is reported before; `None` for now.
    next_try: Option<Moment>,
    /// After a failure: no attempt before this, whatever is reported.
    pause: Option<Moment>,
    /// Since when every attempt has failed: who becomes head in between does not start to count anew.
    trouble: Option<Moment>,
}

/// A waiter's place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A head's turn to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Which reports the attempt can know of.
    reports: u64,
    /// Since when the lock has gone from hand to hand, if this goes on with it: to be sent the way of the release.
    pub(crate) prompt: Option<Moment>,
}

/// What a waiter does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Competes for the lock.
    Try(Turn),
    /// Waits to be woken, until this instant at most.
    Wait(Option<Moment>),
}

/// Redis expires keys to the millisecond.
const EXPIRY_GRAIN: Duration = Duration::from_millis(1);

impl<W: Clone> Lines<W> {
    pub(crate) fn new() -> Self {
        Self { lines: HashMap::new(), last_ticket: 0 }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lines.values().map(|line| line.queue.len()).sum()
    }

    pub(crate) fn is_empty(&self, key: &str) -> bool {
        !self.lines.contains_key(key)
    }

    /// Takes the last place in the key's line.
    pub(crate) fn join(&mut self, key: &Arc<str>, waker: W) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let line = self.lines.entry(Arc::clone(key)).or_insert_with(|| Line {
            queue: VecDeque::new(),
            reports: 0,
            unheard: false,
            prompt: None,
            next_try: None,
            pause: None,
            trouble: None,
        });
        line.queue.push_back((ticket, waker));
        ticket
    }

    /// Gives up a place, granted or not; returns the new head to be woken.
    pub(crate) fn leave(&mut self, key: &str, ticket: Ticket) -> Option<W> {
        let line = self.lines.get_mut(key)?;
        let at = line.queue.iter().position(|(other, _)| *other == ticket)?;
        line.queue.remove(at);
        if line.queue.is_empty() {
            self.lines.remove(key);
            return None;
        }
        if at > 0 {
            return None;
        }
        line.prompt = None;
        line.head()
    }

    /// What a waiter does now; a prompt is good for one try.
    pub(crate) fn step(&mut self, key: &str, ticket: Ticket, now: Moment) -> Step {
        let Some(line) = self.headed(key, ticket) else { return Step::Wait(None) };
        match line.next_try.max(line.pause) {
            Some(next) if next > now => Step::Wait(Some(next)),
            _ => {
                let prompt = line.prompt.take();
                // Over the tracking link, whose next report may come before the answer.
                line.unheard &= prompt.is_some();
                Step::Try(Turn { reports: line.reports, prompt })
            }
        }
    }

    /// After the head's attempt the lock is held, by another or by the head itself, and the lease ends in `expires_in`
    /// if it does. Whoever is head then waits for a report, but no longer than `poll`.
    pub(crate) fn taken(&mut self, key: &str, ticket: Ticket, turn: Turn, now: Moment, expires_in: Option<Duration>, poll: Duration) {
        let Some(line) = self.headed(key, ticket) else { return };
        line.next_try = (turn.reports == line.reports).then(|| now + pause(expires_in, poll));
        (line.pause, line.trouble, line.unheard) = (None, None, false);
    }

    /// The same after an attempt that was not made over the tracking link: the next change will not be reported.
    pub(crate) fn taken_unheard(
        &mut self,
        key: &str,
        ticket: Ticket,
        turn: Turn,
        now: Moment,
        expires_in: Option<Duration>,
        poll: Duration,
    ) {
        let Some(line) = self.headed(key, ticket) else { return };
        // What the server reported while a release and the attempt were on their way was the release.
        let told = if turn.prompt.is_some() { line.prompt.is_some() } else { turn.reports != line.reports };
        line.next_try = (!told).then(|| now + pause(expires_in, poll));
        (line.pause, line.trouble, line.unheard) = (None, None, true);
    }

    /// The head's attempt failed, as all have since `since`, or since earlier ones of the line.
    pub(crate) fn trouble(&mut self, key: &str, ticket: Ticket, since: Moment) -> Moment {
        self.headed(key, ticket).map_or(since, |line| *line.trouble.get_or_insert(since))
    }

    /// After a failed attempt the head pauses, whatever is reported until the next one.
    pub(crate) fn pause(&mut self, key: &str, ticket: Ticket, until: Moment) {
        if let Some(line) = self.headed(key, ticket) {
            (line.next_try, line.pause) = (None, Some(until));
        }
    }

    /// The holder is this client's, and its release is on its way; or, without `since`, over. Returns the head to be woken.
    pub(crate) fn released(&mut self, key: &str, since: Option<Moment>) -> Option<W> {
        let line = self.lines.get_mut(key)?;
        (line.prompt, line.next_try) = (since, None);
        line.reports += 1;
        line.head()
    }

    /// The server reports that the key has changed; returns the head to be woken.
    pub(crate) fn changed(&mut self, key: &str) -> Option<W> {
        self.lines.get_mut(key)?.report()
    }

    /// Reports may have been missed: every head looks for itself.
    pub(crate) fn missed(&mut self) -> Vec<W> {
        self.lines.values_mut().filter_map(Line::report).collect()
    }

    fn headed(&mut self, key: &str, ticket: Ticket) -> Option<&mut Line<W>> {
        self.lines.get_mut(key).filter(|line| line.is_head(ticket))
    }
}

impl<W: Clone> Line<W> {
    fn is_head(&self, ticket: Ticket) -> bool {
        self.queue.front().is_some_and(|(head, _)| *head == ticket)
    }

    fn head(&self) -> Option<W> {
        self.queue.front().map(|(_, waker)| waker.clone())
    }

    fn report(&mut self) -> Option<W> {
        if self.unheard {
            return None;
        }
        self.reports += 1;
        self.next_try = None;
        self.head()
    }
}

fn pause(expires_in: Option<Duration>, poll: Duration) -> Duration {
    expires_in.map_or(poll, |left| poll.min(left + EXPIRY_GRAIN))
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLL: Duration = Duration::from_secs(2);

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000_000 + millis))
    }

    fn key(name: &str) -> Arc<str> {
        name.into()
    }

    fn turn(step: Step) -> Turn {
        match step {
            Step::Try(turn) => turn,
            Step::Wait(_) => panic!("{step:?}"),
        }
    }

    #[test]
    fn only_the_head_competes_and_the_next_takes_over() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second, third) = (lines.join(&k, 1), lines.join(&k, 2), lines.join(&k, 3));
        assert_eq!(lines.step(&k, first, at(0)), Step::Try(Turn { reports: 0, prompt: None }));
        assert_eq!(lines.step(&k, second, at(0)), Step::Wait(None));
        assert_eq!(lines.leave(&k, second), None, "the head stays the head");
        assert_eq!(lines.leave(&k, first), Some(3));
        assert_eq!(lines.step(&k, third, at(0)), Step::Try(Turn { reports: 0, prompt: None }));
        assert_eq!(lines.leave(&k, third), None);
        assert!(lines.is_empty(&k) && lines.waiting() == 0, "no residue");
    }

    #[test]
    fn a_busy_head_waits_for_the_report_the_expiry_or_the_poll() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let head = lines.join(&k, 1);
        let t = turn(lines.step(&k, head, at(0)));
        lines.taken(&k, head, t, at(0), Some(Duration::from_millis(500)), POLL);
        assert_eq!(lines.step(&k, head, at(0)), Step::Wait(Some(at(501))));
        let t = turn(lines.step(&k, head, at(501)));
        lines.taken(&k, head, t, at(501), None, POLL);
        assert_eq!(lines.step(&k, head, at(501)), Step::Wait(Some(at(2501))));
        assert_eq!(lines.changed("b"), None);
        assert_eq!(lines.changed(&k), Some(1));
        assert!(matches!(lines.step(&k, head, at(502)), Step::Try(_)));
    }

    #[test]
    fn a_report_during_the_attempt_is_not_forgotten() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let head = lines.join(&k, 1);
        let t = turn(lines.step(&k, head, at(0)));
        assert_eq!(lines.changed(&k), Some(1));
        lines.taken(&k, head, t, at(1), Some(POLL), POLL);
        assert!(matches!(lines.step(&k, head, at(1)), Step::Try(_)));
    }

    #[test]
    fn the_grant_of_the_head_tells_the_next_when_to_try() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second) = (lines.join(&k, 1), lines.join(&k, 2));
        let t = turn(lines.step(&k, first, at(0)));
        lines.taken(&k, first, t, at(0), Some(Duration::from_millis(100)), POLL);
        assert_eq!(lines.leave(&k, first), Some(2));
        assert_eq!(lines.step(&k, second, at(0)), Step::Wait(Some(at(101))));
        assert_eq!(lines.changed(&k), Some(2), "released");
        assert!(matches!(lines.step(&k, second, at(1)), Step::Try(_)));
    }

    #[test]
    fn a_lost_link_wakes_every_head() {
        let mut lines = Lines::new();
        let (a, b) = (key("a"), key("b"));
        let (first, _, other) = (lines.join(&a, 1), lines.join(&a, 2), lines.join(&b, 3));
        for (k, head) in [(&a, first), (&b, other)] {
            let t = turn(lines.step(k, head, at(0)));
            lines.taken(k, head, t, at(0), None, POLL);
        }
        let mut woken = lines.missed();
        woken.sort_unstable();
        assert_eq!(woken, [1, 3]);
        assert!(matches!(lines.step(&a, first, at(0)), Step::Try(_)) && matches!(lines.step(&b, other, at(0)), Step::Try(_)));
    }

    #[test]
    fn after_a_failure_reports_do_not_cut_the_pause_short() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second) = (lines.join(&k, 1), lines.join(&k, 2));
        lines.pause(&k, first, at(100));
        lines.missed();
        lines.leave(&k, first);
        assert_eq!(lines.step(&k, second, at(0)), Step::Wait(Some(at(100))));
        assert!(matches!(lines.step(&k, second, at(100)), Step::Try(_)));
    }

    #[test]
    fn a_release_on_its_way_prompts_the_head_once() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second) = (lines.join(&k, 1), lines.join(&k, 2));
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
        assert_eq!(lines.step(&k, second, at(6)), Step::Wait(Some(at(16))));
        let t = turn(lines.step(&k, second, at(16)));
        assert_eq!((t.prompt, lines.changed(&k)), (None, Some(2)), "it is heard again, before the answer too");
        lines.taken(&k, second, t, at(16), Some(POLL), POLL);
        assert_eq!(turn(lines.step(&k, second, at(16))).prompt, None);
    }

    #[test]
    fn a_head_that_was_prompted_while_it_tried_tries_again_and_its_successor_is_not_prompted() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second) = (lines.join(&k, 1), lines.join(&k, 2));
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

    #[test]
    fn trouble_lasts_from_head_to_head_until_the_server_answers() {
        let (mut lines, k) = (Lines::new(), key("a"));
        let (first, second) = (lines.join(&k, 1), lines.join(&k, 2));
        assert_eq!(lines.trouble(&k, first, at(0)), at(0));
        lines.leave(&k, first);
        assert_eq!(lines.trouble(&k, second, at(900)), at(0));
        let t = turn(lines.step(&k, second, at(900)));
        lines.taken(&k, second, t, at(900), None, POLL);
        assert_eq!(lines.trouble(&k, second, at(3000)), at(3000));
    }

    proptest! {
        /// Whatever happens: first come first served, one competitor at a time, and nobody waits longer than the poll.
        #[test]
        fn any_history_keeps_order_and_strands_nobody(events in prop::collection::vec(event(), 0..80)) {
            let (mut lines, k, mut model, mut now) = (Lines::new(), key("a"), Vec::new(), 0);
            for event in events {
                match event {
                    Event::Join => model.push(lines.join(&k, ())),
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
                    Event::Missed => { lines.missed(); }
                    Event::Pass(millis) => now += millis,
                    Event::Leave(_) => {}
                }
                prop_assert_eq!(lines.waiting(), model.len());
                for (place, ticket) in model.iter().enumerate() {
                    match lines.step(&k, *ticket, at(now)) {
                        Step::Try(_) => prop_assert_eq!(place, 0),
                        Step::Wait(until) => {
                            prop_assert_eq!(until.is_some(), place == 0);
                            prop_assert!(until.is_none_or(|until| until <= at(now) + POLL));
                        }
                    }
                }
            }
        }
    }
}
