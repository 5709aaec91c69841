use std::time::Duration;

use lock_core::backend::Moment;

use super::majority::Majority;

/// What a waiter knows of one lock on each server, from a look and from what the servers have
/// reported since.
///
/// A hand-over is reported by one server after the other. Who tried at the first report would be
/// granted there and refused by the rest; so the reports are gathered until a majority may be free.
#[derive(Clone, Debug)]
pub(crate) struct FreeMajority {
    majority: Majority,
    servers: Vec<Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The answer to the look is on its way.
    Asked,
    /// Held, until then if the lease ends.
    WatchedKeys(Option<Moment>),
    Free,
    /// Changed since the look.
    Changed,
    /// It could not be looked at: not counted on.
    Unknown,
}

impl FreeMajority {
    /// A look begins: whatever a server reports from here on counts.
    pub(crate) fn new(majority: Majority) -> Self {
        Self {
            majority,
            servers: vec![Seen::Asked; majority.servers()],
        }
    }

    /// Takes one server's answer to the look: how long the lock is held, `Some(None)` for ever,
    /// `None` if it is free.
    pub(crate) fn seen(&mut self, server: usize, now: Moment, held: Option<Option<Duration>>) {
        // The report may be of a later state than the answer, which was read after it.
        if self.servers[server] != Seen::Changed {
            self.servers[server] = match held {
                Some(left) => Seen::WatchedKeys(left.map(|left| now + left)),
                None => Seen::Free,
            };
        }
    }

    /// Those that have not answered are not counted on.
    pub(crate) fn complete(&mut self) {
        self.servers
            .iter_mut()
            .filter(|seen| **seen == Seen::Asked)
            .for_each(|seen| *seen = Seen::Unknown);
    }

    /// Takes a server's report of a change; whether that makes a try worth while.
    pub(crate) fn reported(&mut self, server: usize) -> bool {
        self.servers[server] = Seen::Changed;
        self.may_be_free()
    }

    /// Returns whether a majority may be free.
    pub(crate) fn may_be_free(&self) -> bool {
        self.free() >= self.majority.needed()
    }

    /// Returns when the leases of enough servers have ended, if nothing is reported before.
    pub(crate) fn ends(&self) -> Option<Moment> {
        let missing = self.majority.needed().saturating_sub(self.free());
        let mut ends: Vec<_> = self.servers.iter().filter_map(Seen::ends).collect();
        ends.sort_unstable();
        ends.get(missing.checked_sub(1)?).copied()
    }

    fn free(&self) -> usize {
        self.servers
            .iter()
            .filter(|seen| matches!(seen, Seen::Free | Seen::Changed))
            .count()
    }
}

impl Seen {
    fn ends(&self) -> Option<Moment> {
        match self {
            Self::WatchedKeys(ends) => *ends,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000 + millis))
    }

    fn held(millis: u64) -> Option<Option<Duration>> {
        Some(Some(Duration::from_millis(millis)))
    }

    #[test]
    fn one_report_of_three_is_not_enough() {
        let mut free = FreeMajority::new(Majority::of(3));
        for server in 0..3 {
            free.seen(server, at(0), held(100 * (server as u64 + 1)));
        }
        assert_eq!(
            free.ends(),
            Some(at(200)),
            "the second lease to end makes a majority"
        );
        assert!(!free.reported(1));
        assert_eq!(free.ends(), Some(at(100)));
        assert!(!free.reported(1), "the same server again");
        assert!(free.reported(0));
    }

    #[test]
    fn a_server_out_of_sight_is_not_counted_on() {
        let mut free = FreeMajority::new(Majority::of(3));
        free.seen(0, at(0), None);
        free.seen(1, at(0), Some(None));
        free.complete();
        assert!(!free.may_be_free());
        assert_eq!(free.ends(), None, "the other one is held for ever");
        assert!(free.reported(1));
    }

    #[test]
    fn a_report_that_overtakes_the_answer_is_not_forgotten() {
        let mut free = FreeMajority::new(Majority::of(3));
        assert!(!free.reported(0));
        for server in 0..3 {
            free.seen(server, at(0), held(100));
        }
        assert!(free.reported(2));
    }
}
