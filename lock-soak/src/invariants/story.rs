use std::time::Duration;

use super::{Check, Terms, Violation};
use crate::{
    event::{Ask, Event, How, Instant, Kind},
    history::History,
};

/// A history made by hand, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Story {
    events: Vec<Event>,
    prompt: bool,
    steady: bool,
    membership: Option<Duration>,
}

const TTL: Duration = Duration::from_secs(10);

pub(super) fn at(millis: u64) -> Instant {
    Instant(millis * 1000)
}

impl Story {
    pub(super) fn then(mut self, millis: u64, process: u32, kind: Kind) -> Self {
        self.events.push(Event {
            at: at(millis),
            process,
            kind,
        });
        self
    }

    pub(super) fn asks(self, millis: u64, process: u32, ask: u64) -> Self {
        self.then(
            millis,
            process,
            Kind::Asked {
                ask: Ask(ask),
                register: 0,
                how: How::Wait,
                ttl: TTL,
            },
        )
    }

    /// Asks and is granted the lock at once, for a TTL of 10 s.
    pub(super) fn holds(self, millis: u64, process: u32, ask: u64, token: u64) -> Self {
        let granted = Kind::Granted {
            ask: Ask(ask),
            token,
            valid_until: at(millis + 10_000),
        };
        self.asks(millis, process, ask)
            .then(millis, process, granted)
    }

    pub(super) fn releases(self, millis: u64, process: u32, ask: u64) -> Self {
        self.then(millis, process, Kind::Ending { ask: Ask(ask) })
            .then(
                millis + 1,
                process,
                Kind::Ended {
                    ask: Ask(ask),
                    error: None,
                },
            )
    }

    /// Makes the store one that tells its waiters.
    pub(super) fn prompt(mut self) -> Self {
        self.prompt = true;
        self
    }

    /// Makes it a story of a migration, whose memberships have this TTL.
    pub(super) fn of_members(mut self, ttl: Duration) -> Self {
        self.membership = Some(ttl);
        self
    }

    /// Makes it a story without faults.
    pub(super) fn steady(mut self) -> Self {
        self.steady = true;
        self
    }

    pub(super) fn verdict(self, check: Check) -> Result<(), Violation> {
        let wait_limit = |_| Duration::from_secs(2);
        let terms = Terms {
            ttls: TTL.into(),
            clients: 8,
            wait_limit,
            prompt: self.prompt,
            membership: self.membership,
            steady: self.steady,
            forgets_tokens: !self.prompt,
        };
        check(&History::new(self.events), &terms)
    }

    pub(super) fn keeps(self, check: Check) {
        assert_eq!(self.verdict(check), Ok(()));
    }

    pub(super) fn outage(self, from: u64, to: u64) -> Self {
        let fault = || "kill all".to_owned();
        let began = Kind::FaultBegan {
            fault: fault(),
            majority: true,
        };
        self.then(from, 0, began)
            .then(to, 0, Kind::FaultEnded { fault: fault() })
    }

    /// Stops the store, lets it go back, and has it healthy again.
    pub(super) fn goes_back(self, from: u64, to: u64) -> Self {
        let began = Kind::FaultBegan {
            fault: "go back".to_owned(),
            majority: true,
        };
        self.then(from, 0, began)
            .then(from, 0, Kind::WentBack)
            .then(
                to,
                0,
                Kind::FaultEnded {
                    fault: "go back".to_owned(),
                },
            )
    }

    pub(super) fn pause(self, process: u32, from: u64, to: u64) -> Self {
        self.then(from, 0, Kind::Paused { process })
            .then(to, 0, Kind::Resumed { process })
    }

    pub(super) fn removal(self, millis: u64, token: u64) -> Self {
        self.then(millis, 0, Kind::Removed { register: 0, token })
    }

    pub(super) fn breaks(self, check: Check, part: &str) {
        let violation = self.verdict(check).expect_err("not caught");
        assert!(violation.message.contains(part), "{violation:?}");
    }
}
