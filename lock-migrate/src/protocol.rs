//! The steps of one acquisition, as a synchronous machine: it says what to do next, and is told
//! what came of it. The client runs it against real stores, the model against every interleaving.

use crate::Phase;

/// How far one acquisition has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    phase: Phase,
    head_room: u64,
    source: Option<u64>,
    target: Option<u64>,
    floor: Option<u64>,
    /// Set once the source's counter has it.
    token: Option<u64>,
    /// The floor was raised, and the target's lock has not been seen to be ours since.
    unconfirmed: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Acquire in the source; then [`Attempt::source_taken`].
    TakeSource,
    /// Acquire in the target; then [`Attempt::target_taken`].
    TakeTarget,
    /// Read the floor as it was at an instant at which the target's lock was ours: when its token
    /// was this; then [`Attempt::floor_read`].
    ReadFloor {
        /// The target's token.
        owned_at: u64,
    },
    /// Raise the source's counter; then [`Attempt::source_raised`].
    RaiseSource {
        /// To at least this.
        to: u64,
    },
    /// Raise the floor; then [`Attempt::floor_raised`].
    RaiseFloor {
        /// To at least this.
        to: u64,
    },
    /// Make sure that the target's lock is still ours, or was when the floor had been raised; then
    /// [`Attempt::target_confirmed`].
    ConfirmTarget,
    /// Done.
    HandOut {
        /// What the guard presents.
        token: u64,
    },
}

impl Attempt {
    /// Begins an acquisition. The floor is raised by `head_room` more than is needed, so that it is
    /// written rarely.
    #[must_use]
    pub fn new(phase: Phase, head_room: u64) -> Self {
        Self {
            phase,
            head_room,
            source: None,
            target: None,
            floor: None,
            token: None,
            unconfirmed: false,
        }
    }

    /// The phase that it began in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        if self.phase.takes_source() && self.source.is_none() {
            return Step::TakeSource;
        }
        if self.phase.takes_target() && self.target.is_none() {
            return Step::TakeTarget;
        }
        match (self.source, self.target) {
            (Some(token), None) => Step::HandOut { token },
            (None, Some(owned_at)) => match self.floor {
                None => Step::ReadFloor { owned_at },
                Some(floor) => Step::HandOut {
                    token: owned_at.saturating_add(floor),
                },
            },
            (Some(source), Some(owned_at)) => self.agree(source, owned_at),
            // Every phase takes one of them, and it was not taken.
            (None, None) => Step::TakeSource,
        }
    }

    /// The raise of the source that is needed if the floor is still this: it may be done while the
    /// floor is read, to save the time. The source's counter may be ahead of what is needed.
    #[must_use]
    pub fn likely_raise(&self, floor: u64) -> Option<u64> {
        let (source, owned_at) = self.source.zip(self.target)?;
        let to = owned_at.saturating_add(floor);
        (floor > 0 && source < to).then_some(to)
    }

    /// Makes both stores remember the token before it is handed out.
    fn agree(&mut self, source: u64, owned_at: u64) -> Step {
        let Some(floor) = self.floor else {
            return Step::ReadFloor { owned_at };
        };
        let token = match self.token {
            Some(token) => token,
            None => {
                let of_target = owned_at.saturating_add(floor);
                if source < of_target {
                    return Step::RaiseSource { to: of_target };
                }
                *self.token.insert(source)
            }
        };
        let needed = token.saturating_sub(owned_at);
        if floor < needed {
            return Step::RaiseFloor {
                to: needed.saturating_add(self.head_room),
            };
        }
        if self.unconfirmed {
            return Step::ConfirmTarget;
        }
        Step::HandOut { token }
    }

    /// The source's lock is ours, with this token.
    pub fn source_taken(&mut self, token: u64) {
        self.source = Some(token);
    }

    /// The target's lock is ours, with this token.
    pub fn target_taken(&mut self, token: u64) {
        self.target = Some(token);
    }

    /// The floor that was asked for.
    pub fn floor_read(&mut self, floor: u64) {
        self.floor = Some(floor);
    }

    /// The source's token from now on.
    pub fn source_raised(&mut self, token: u64) {
        self.source = self.source.max(Some(token));
    }

    /// The floor after it was raised.
    pub fn floor_raised(&mut self, floor: u64) {
        self.floor = self.floor.max(Some(floor));
        self.unconfirmed = true;
    }

    /// The target's lock was seen to be ours after the floor was raised.
    pub fn target_confirmed(&mut self) {
        self.unconfirmed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual(source: u64, target: u64, floor: u64) -> Attempt {
        let mut attempt = Attempt::new(Phase::Dual, 100);
        assert_eq!(attempt.step(), Step::TakeSource);
        attempt.source_taken(source);
        assert_eq!(attempt.step(), Step::TakeTarget);
        attempt.target_taken(target);
        assert_eq!(attempt.step(), Step::ReadFloor { owned_at: target });
        attempt.floor_read(floor);
        attempt
    }

    #[test]
    fn a_source_that_is_ahead_raises_the_floor_with_head_room() {
        let mut attempt = dual(5000, 7, 0);
        assert_eq!(attempt.step(), Step::RaiseFloor { to: 5093 });
        attempt.floor_raised(5093);
        assert_eq!(attempt.step(), Step::ConfirmTarget);
        attempt.target_confirmed();
        assert_eq!(attempt.step(), Step::HandOut { token: 5000 });
    }

    #[test]
    fn a_target_that_is_ahead_raises_the_source() {
        let mut attempt = dual(3, 7, 5000);
        assert_eq!(attempt.step(), Step::RaiseSource { to: 5007 });
        attempt.source_raised(5007);
        assert_eq!(attempt.step(), Step::HandOut { token: 5007 });
    }

    #[test]
    fn a_source_that_goes_beyond_what_was_asked_sets_the_token() {
        let mut attempt = dual(3, 7, 5000);
        let _ = attempt.step();
        attempt.source_raised(6000);
        assert_eq!(attempt.step(), Step::RaiseFloor { to: 6093 });
        attempt.floor_raised(7000);
        attempt.target_confirmed();
        assert_eq!(attempt.step(), Step::HandOut { token: 6000 });
    }

    #[test]
    fn a_raise_before_the_floor_is_known_does_no_harm() {
        let mut attempt = Attempt::new(Phase::Dual, 100);
        attempt.source_taken(3);
        assert_eq!(attempt.likely_raise(5000), None);
        attempt.target_taken(7);
        assert_eq!(attempt.likely_raise(0), None);
        assert_eq!(attempt.likely_raise(5000), Some(5007));
        attempt.source_raised(5007);
        assert_eq!(attempt.likely_raise(5000), None);
        // As expected; raised meanwhile; and lower when the target was acquired.
        for (floor, next) in [
            (5000, Step::HandOut { token: 5007 }),
            (6000, Step::RaiseSource { to: 6007 }),
            (4000, Step::RaiseFloor { to: 5100 }),
        ] {
            let mut attempt = attempt.clone();
            attempt.floor_read(floor);
            assert_eq!(attempt.step(), next);
        }
    }

    #[test]
    fn one_store_alone_needs_no_agreement() {
        let mut attempt = Attempt::new(Phase::SourceOnly, 100);
        attempt.source_taken(9);
        assert_eq!(attempt.step(), Step::HandOut { token: 9 });
        for phase in [Phase::TargetOnly, Phase::Final] {
            let mut attempt = Attempt::new(phase, 100);
            assert_eq!(attempt.step(), Step::TakeTarget);
            attempt.target_taken(9);
            assert_eq!(attempt.step(), Step::ReadFloor { owned_at: 9 });
            attempt.floor_read(50);
            assert_eq!(attempt.step(), Step::HandOut { token: 59 });
        }
    }
}
