use serde::{Deserialize, Serialize};

use super::MemberReport;
use crate::Phase;

/// The migration of all names that begin with a prefix.
///
/// While [members](super::Member) change from one phase to the other some are in either, so that at
/// any time live guards are of these two phases, which are adjacent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// The start of the names; empty for all.
    pub prefix: String,
    /// The phase for new acquisitions.
    pub phase: Phase,
    /// The phase before; guards of it may be left.
    pub from: Phase,
    /// The number of the last change of phase, among those of all plans.
    pub epoch: u64,
    /// The operator wants no further step forward.
    #[serde(default)]
    pub paused: bool,
    /// The floor for ever, once the migration is complete. No membership is needed then.
    #[serde(default)]
    pub complete: Option<u64>,
}

impl Plan {
    /// A plan that changes nothing yet.
    #[must_use]
    pub fn new(prefix: impl Into<String>, epoch: u64) -> Self {
        Self {
            prefix: prefix.into(),
            phase: Phase::SourceOnly,
            from: Phase::SourceOnly,
            epoch,
            paused: false,
            complete: None,
        }
    }

    /// Tells if some name could belong to both.
    #[must_use]
    pub fn overlaps(&self, prefix: &str) -> bool {
        self.prefix.starts_with(prefix) || prefix.starts_with(&self.prefix)
    }

    /// Tells if live guards may be of this phase.
    #[must_use]
    pub fn allows(&self, phase: Phase) -> bool {
        self.phase == phase || self.from == phase
    }

    /// Tells if a member with this report has followed: no guard of another phase is left in its
    /// process, and none will be made.
    #[must_use]
    pub fn is_followed_by(&self, report: &MemberReport) -> bool {
        report.seen >= self.epoch && !report.draining.contains_key(&self.prefix)
    }

    /// Tells if all live members have followed, so that all live guards are of this phase.
    #[must_use]
    pub fn is_settled(&self, reports: &[MemberReport]) -> bool {
        reports.iter().all(|report| self.is_followed_by(report))
    }
}
