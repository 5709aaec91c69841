//! Deliberate errors, each of which a property must find.

use crate::state::Limits;

/// A deliberate error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Processes go from any phase to any other.
    SkipsDual,
    /// A process in `Dual` hands out the guard before it has the target.
    HandsOutBeforeTarget,
    /// The source is released while the guard is still used.
    ReleasesSourceEarly,
    /// One process takes the target first.
    TakesTargetFirst,
    /// The target's tokens are presented as they are.
    NoFloor,
    /// The floor is read before the target is owned.
    ReadsFloorEarly,
    /// The floor is read as it is now, although the lock may be somebody else's by now.
    ReadsFloorLate,
    /// `Dual` leaves the floor as it is.
    FloorNotRaised,
    /// `Dual` leaves the source's counter as it is.
    SourceNotRaised,
    /// The target's lock may be somebody else's when the floor has been raised.
    NotConfirmed,
    /// `Final` is entered beside processes in `Dual`.
    FinalTooEarly,
    /// `TargetOnly` is entered before a process in `Dual` has looked how far the source's tokens
    /// have come.
    NoLead,
    /// `SourceOnly` is entered before the source's tokens have passed the target's.
    BackTooSoon,
    /// A member reports that it has followed while it has guards of the older phase.
    ReportsEarly,
    /// A guard outlives the membership under which it was granted.
    MembershipNotInDeadline,
    /// A process whose membership is over goes on in the phase that it knew.
    PhaseCached,
    /// An operator goes on although members have not followed.
    AdvancesUnsettled,
    /// A process reads the plan, and registers then.
    ReadsBeforeJoin,
}

impl Flaw {
    /// With the property that it breaks.
    pub(crate) const ALL: [(Self, &str); 13] = [
        (Self::SkipsDual, EXCLUSION),
        (Self::HandsOutBeforeTarget, EXCLUSION),
        (Self::ReleasesSourceEarly, EXCLUSION),
        (Self::TakesTargetFirst, NO_DEADLOCK),
        (Self::NoFloor, TOKENS),
        (Self::ReadsFloorEarly, TOKENS),
        (Self::ReadsFloorLate, TOKENS),
        (Self::FloorNotRaised, TOKENS),
        (Self::SourceNotRaised, TOKENS),
        (Self::NotConfirmed, TOKENS),
        (Self::FinalTooEarly, TOKENS),
        (Self::NoLead, TOKENS),
        (Self::BackTooSoon, TOKENS),
    ];

    /// Those of the coordination, with the property that they break.
    pub(crate) const OF_COORDINATION: [(Self, &str); 6] = [
        (Self::ReportsEarly, EXCLUSION),
        (Self::MembershipNotInDeadline, EXCLUSION),
        (Self::PhaseCached, EXCLUSION),
        (Self::AdvancesUnsettled, EXCLUSION),
        (Self::ReadsBeforeJoin, EXCLUSION),
        (Self::NoLead, TOKENS),
    ];
}

pub(crate) const EXCLUSION: &str = "exclusion";
pub(crate) const TOKENS: &str = "tokens grow";
pub(crate) const COMPLETE: &str = "complete when nobody is behind";
pub(crate) const NO_DEADLOCK: &str = "no deadlock";

impl Limits {
    /// What a flaw of the coordination needs to show.
    pub(crate) fn for_flaw_of_coordination(flaw: Flaw) -> Self {
        let two = Self {
            acquisitions: 2,
            orders: 2,
            operators: 1,
            ..Self::default()
        };
        match flaw {
            Flaw::MembershipNotInDeadline | Flaw::PhaseCached => Self { pauses: 1, ..two },
            _ => two,
        }
    }

    /// What a flaw needs to show.
    pub(crate) fn for_flaw(flaw: Flaw) -> Self {
        let two = Self {
            acquisitions: 2,
            ..Self::default()
        };
        match flaw {
            Flaw::ReadsFloorLate | Flaw::NotConfirmed => Self { removals: 1, ..two },
            Flaw::BackTooSoon => Self {
                acquisitions: 3,
                ..two
            },
            Flaw::FinalTooEarly | Flaw::SourceNotRaised => Self {
                acquisitions: 3,
                ..two
            },
            _ => two,
        }
    }
}
