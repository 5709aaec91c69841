//! A queue beside a model of its server, with every message on its way for as long as it pleases.

use proptest::prelude::*;

use super::*;
use crate::backoff::HAND_OVER_POLL as LOOK;

const POLL: Duration = Duration::from_secs(600);

const TTL: Duration = Duration::from_secs(30);

fn limits() -> Limits {
    Limits::new(TTL, Duration::from_secs(12))
}

#[derive(Clone, Debug)]
enum Event {
    Join,
    /// The waiter at this place gives up; what it has sent is on its way all the same.
    GiveUp(usize),
    /// The caller of the waiter at this place keeps its future and stops polling it.
    Stall(usize),
    HeadTries,
    /// A waiter that is not the head looks at it.
    Follow(usize),
    /// The server executes what arrived first over one of the links.
    Execute {
        tracking: bool,
    },
    /// The answer to the head's attempt arrives.
    Answer,
    /// The client's own holder releases.
    Release {
        prompts: bool,
    },
    /// The answer to the release arrives.
    Released,
    /// A stranger takes the lock, or removes whoever holds it.
    Stranger,
    /// The oldest report arrives.
    Report,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Join),
        1 => (0..3_usize).prop_map(Event::GiveUp),
        1 => (0..3_usize).prop_map(Event::Stall),
        6 => Just(Event::HeadTries),
        2 => (0..3_usize).prop_map(Event::Follow),
        8 => any::<bool>().prop_map(|tracking| Event::Execute { tracking }),
        6 => Just(Event::Answer),
        4 => any::<bool>().prop_map(|prompts| Event::Release { prompts }),
        4 => Just(Event::Released),
        2 => Just(Event::Stranger),
        4 => Just(Event::Report),
        2 => (0..15_u64).prop_map(Event::Pass),
        1 => (0..20_000_u64).prop_map(Event::Pass),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// Of the head, or of nobody any more.
    Acquire {
        of: Ticket,
        tracks: bool,
    },
    Release,
}

struct World {
    queues: LocalQueues<()>,
    key: Arc<str>,
    /// Those that are polled.
    waiters: Vec<Ticket>,
    /// Those that are not.
    stalled: Vec<Ticket>,
    /// Those that lost their place because they were due, and find out when they are polled.
    passed_over: Vec<Ticket>,
    now: Moment,
    // The server.
    held: bool,
    tracked: bool,
    reports: u32,
    // The client.
    commands: VecDeque<Request>,
    tracking: VecDeque<Request>,
    attempt: Option<(Ticket, Turn)>,
    answer: Option<bool>,
    /// True if this client holds the lock, and its release has not been sent.
    guards: bool,
    /// A release that is not answered: whether it prompted, and whether it was executed.
    release: Option<(bool, bool)>,
}

impl World {
    fn changed(&mut self) {
        self.reports += u32::from(std::mem::take(&mut self.tracked));
    }

    fn execute(&mut self, request: Request) {
        match request {
            Request::Release => {
                self.held = false;
                self.changed();
                self.release = self.release.map(|(prompted, _)| (prompted, true));
            }
            Request::Acquire { of, tracks } => {
                let granted = !self.held;
                if granted {
                    self.held = true;
                    self.changed();
                }
                self.tracked |= tracks;
                if self.attempt.is_some_and(|(head, _)| head == of) {
                    self.answer = Some(granted);
                } else if granted && !self.stalled.contains(&of) {
                    // Undone: nobody wants it any more.
                    self.held = false;
                    self.changed();
                }
            }
        }
    }

    fn head(&self) -> Option<Ticket> {
        Some(self.queues.queues.get(&self.key)?.queue.front()?.ticket)
    }

    /// The waiter's future is not polled any more; what it has sent is on its way, and what is
    /// granted to it is held.
    fn stall(&mut self, ticket: Ticket) {
        self.waiters.retain(|waiter| *waiter != ticket);
        self.stalled.push(ticket);
        if self.attempt.is_some_and(|(of, _)| of == ticket) {
            (self.attempt, self.answer) = (None, None);
        }
    }

    /// The waiter's future is polled.
    fn looks(&mut self, ticket: Ticket) {
        let head = self.head();
        match self.queues.step(&self.key, ticket, self.now) {
            Step::Try(turn) => {
                if let Some((slow, _)) = self.attempt {
                    self.stall(slow);
                }
                self.attempt = Some((ticket, turn));
                let (link, tracks) = if turn.prompt.is_some() {
                    (&mut self.commands, false)
                } else {
                    (&mut self.tracking, true)
                };
                link.push_back(Request::Acquire { of: ticket, tracks });
            }
            Step::Rejoin => {
                self.passed_over.retain(|passed| *passed != ticket);
                self.queues.rejoin(&self.key, ticket, (), limits());
            }
            Step::Wait(_) | Step::Follow(_) => {}
        }
        let queue = &self.queues.queues[&self.key];
        self.passed_over
            .extend(head.filter(|head| queue.place(*head).is_none()));
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Join if self.waiters.len() < 3 => {
                self.waiters.push(self.queues.join(&self.key, (), limits()));
            }
            Event::GiveUp(at) if at < self.waiters.len() => {
                let ticket = self.waiters.remove(at);
                self.queues.leave(&self.key, ticket);
                if self.attempt.is_some_and(|(of, _)| of == ticket) {
                    self.attempt = None;
                    if self.answer.take() == Some(true) {
                        self.held = false;
                        self.changed();
                    }
                }
            }
            Event::GiveUp(at) if at - self.waiters.len() < self.stalled.len() => {
                let ticket = self.stalled.remove(at - self.waiters.len());
                self.queues.leave(&self.key, ticket);
            }
            Event::Stall(at) if at < self.waiters.len() => self.stall(self.waiters[at]),
            Event::HeadTries => {
                if let (None, Some(head)) = (
                    self.attempt,
                    self.head().filter(|head| self.waiters.contains(head)),
                ) {
                    self.looks(head);
                }
            }
            Event::Follow(at)
                if at < self.waiters.len() && self.head() != Some(self.waiters[at]) =>
            {
                self.looks(self.waiters[at]);
            }
            Event::Execute { tracking } => {
                let next = if tracking {
                    self.tracking.pop_front()
                } else {
                    self.commands.pop_front()
                };
                next.into_iter().for_each(|request| self.execute(request));
            }
            Event::Answer => {
                if let (Some((head, turn)), Some(granted)) = (self.attempt, self.answer.take()) {
                    self.attempt = None;
                    let look = if granted { LOOK } else { Duration::ZERO };
                    match turn.prompt {
                        Some(_) => self
                            .queues
                            .taken_untracked(&self.key, head, turn, self.now, None, look),
                        None => self
                            .queues
                            .taken(&self.key, head, turn, self.now, None, POLL),
                    }
                    if granted {
                        self.guards = true;
                        self.waiters.retain(|waiter| *waiter != head);
                        self.queues.leave(&self.key, head);
                    }
                }
            }
            Event::Release { prompts } if self.guards && self.release.is_none() => {
                self.guards = false;
                self.release = Some((prompts, false));
                self.commands.push_back(Request::Release);
                if prompts {
                    self.queues.released(&self.key, Some(self.now));
                }
            }
            Event::Released => {
                if let Some((prompted, true)) = self.release {
                    self.release = None;
                    if !prompted {
                        self.queues.released(&self.key, None);
                    }
                }
            }
            // Not while this client holds it: a release would then remove the stranger's, which the
            // script does not.
            Event::Stranger
                if !self.guards
                    && self.release.is_none_or(|(_, executed)| executed)
                    && self.answer != Some(true) =>
            {
                self.held = !self.held;
                self.changed();
            }
            Event::Report if self.reports > 0 => {
                self.reports -= 1;
                self.queues.changed(&self.key, &self.key);
            }
            Event::Pass(millis) => self.now = self.now + Duration::from_millis(millis),
            Event::Join
            | Event::GiveUp(_)
            | Event::Stall(_)
            | Event::Follow(_)
            | Event::Release { .. }
            | Event::Stranger
            | Event::Report => {}
        }
    }

    /// Returns whether the head learns of the next change, or looks for itself soon.
    fn hears(&self) -> bool {
        let Some(head) = self.head() else {
            return self
                .waiters
                .iter()
                .all(|waiter| self.passed_over.contains(waiter));
        };
        // The message that is on its way decides.
        if self.attempt.is_some_and(|(of, _)| of == head) {
            return true;
        }
        let queue = &self.queues.queues[&self.key];
        let is_told =
            self.tracked || self.reports > 0 || self.release.is_some_and(|(prompted, _)| !prompted);
        match queue.next() {
            _ if queue.trying.is_some() && self.stalled.contains(&head) => self.is_passed_over(),
            Some(next) if next > self.now + BLIND_POLL => is_told,
            _ if self.stalled.contains(&head) => self.is_passed_over(),
            _ => true,
        }
    }

    /// Returns whether everybody who is polled has the turn within the head's TTL, should nobody
    /// else look before.
    fn is_passed_over(&self) -> bool {
        let takes_over = |waiter: &Ticket| {
            let mut queues = self.queues.clone();
            let mut at = self.now;
            loop {
                match queues.step(&self.key, *waiter, at) {
                    Step::Follow(look) => at = at + look,
                    Step::Rejoin => queues.rejoin(&self.key, *waiter, (), limits()),
                    Step::Try(_) | Step::Wait(_) => return at <= self.now + TTL,
                }
            }
        };
        self.waiters.iter().all(takes_over)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is on its way, and however long: a head that waits for the poll is told of the next
    /// change, and one that is due and not polled is passed over within its TTL.
    #[test]
    fn nobody_relies_on_a_report_that_does_not_come(events in prop::collection::vec(event(), 0..120)) {
        let mut world = World {
            queues: LocalQueues::new(),
            key: "a".into(),
            waiters: Vec::new(),
            stalled: Vec::new(),
            passed_over: Vec::new(),
            now: Moment::from_origin(Duration::from_secs(1000)),
            held: false,
            tracked: false,
            reports: 0,
            commands: VecDeque::new(),
            tracking: VecDeque::new(),
            attempt: None,
            answer: None,
            guards: false,
            release: None,
        };
        for (at, event) in events.iter().enumerate() {
            world.happens(event);
            prop_assert!(world.hears(), "after {:?}", &events[..=at]);
        }
    }
}
