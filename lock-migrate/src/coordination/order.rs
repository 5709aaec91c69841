//! The operator's decisions, without I/O. The code and the model run the same.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MemberReport, Plan, Sighting};
use crate::Phase;

/// A change of a plan that an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// To the next phase.
    Advance,
    /// To the phase before.
    RollBack,
    /// No further step forward until [`Resume`](Self::Resume).
    Pause,
    /// Takes a [`Pause`](Self::Pause) back.
    Resume,
    /// Removes a plan that is back where it began.
    Remove,
    /// Ends the migration for good: no way back, and no members any more.
    Complete,
}

/// What an operator knows when it decides.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    reports: &'a [MemberReport],
    foreign: &'a [Sighting],
    is_without_members: bool,
}

impl<'a> Evidence<'a> {
    /// The reports of all live members.
    #[must_use]
    pub fn new(reports: &'a [MemberReport]) -> Self {
        Self {
            reports,
            foreign: &[],
            is_without_members: false,
        }
    }

    /// Those who were seen to lock in the source without being members, lately enough to count.
    #[must_use]
    pub fn with_foreign(mut self, foreign: &'a [Sighting]) -> Self {
        self.foreign = foreign;
        self
    }

    /// It is no surprise that there are no members.
    #[must_use]
    pub fn without_members(mut self, is_expected: bool) -> Self {
        self.is_without_members = is_expected;
        self
    }
}

/// What an order comes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// The plan from then on; `None` if it is removed.
    pub plan: Option<Plan>,
    /// What has to be done before the plan is written, in this order; and the plan written only if
    /// no plan has changed since.
    pub preparation: Preparation,
}

/// What has to be done before a plan is written, so that tokens go on growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preparation {
    /// Nothing.
    None,
    /// Raise the floor beyond the source's tokens, at the instant of the change: names that nobody
    /// has locked in [`Phase::Dual`] go on from them.
    RaiseFloor,
    /// Wait until the source's tokens are beyond the target's.
    AwaitSource,
    /// Read the floor, which is final, and put it into the plan.
    ReadFloor,
}

/// The reason why an order is refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// Members have not followed the last change yet.
    Unsettled,
    /// The plan is paused.
    Paused,
    /// There are no members to follow a step forward.
    NoMembers,
    /// Somebody locks in the source who is no member, and would not be excluded any more.
    Foreign,
    /// There is no phase beyond this one.
    AtEnd,
    /// The plan is where it began.
    AtStart,
    /// The migration is complete.
    Complete,
    /// Only a plan in [`Phase::SourceOnly`] can be removed.
    NotAtStart,
    /// Only a plan in [`Phase::Final`] can be completed.
    NotAtEnd,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsettled => {
                "members have not followed the last change yet; wait for them, or roll back"
            }
            Self::Paused => "the plan is paused; resume it first",
            Self::NoMembers => {
                "there are no live members; deploy the URL with phase=coordinated and this target first, or say that there are none"
            }
            Self::Foreign => {
                "others lock in the source, whom nobody would exclude any more; make them members or end them, and try again when none was seen for the foreign window"
            }
            Self::AtEnd => "the plan is in its last phase; complete it, or roll back",
            Self::AtStart => "the plan is in its first phase; abort it, or advance",
            Self::Complete => "the migration is complete; there is no way back",
            Self::NotAtStart => "the plan is not in the phase source-only; roll back first",
            Self::NotAtEnd => "the plan is not in the phase final; advance first",
        })
    }
}

impl Plan {
    /// Decides what an order comes to. The change gets the number `epoch`.
    ///
    /// # Errors
    ///
    /// The reason why not.
    pub fn decide(
        &self,
        order: Order,
        evidence: Evidence<'_>,
        epoch: u64,
    ) -> Result<Step, Refusal> {
        let reports = evidence.reports;
        if self.complete.is_some() {
            return Err(Refusal::Complete);
        }
        match order {
            Order::Advance if self.paused => Err(Refusal::Paused),
            Order::Advance => {
                let next = self.phase.next().ok_or(Refusal::AtEnd)?;
                if reports.is_empty() && !evidence.is_without_members {
                    return Err(Refusal::NoMembers);
                }
                let step = self.enter(next, reports, epoch)?;
                match next == Phase::TargetOnly && !evidence.foreign.is_empty() {
                    true => Err(Refusal::Foreign),
                    false => Ok(step),
                }
            }
            Order::RollBack => {
                let previous = self.phase.previous().ok_or(Refusal::AtStart)?;
                self.enter(previous, reports, epoch)
            }
            Order::Pause | Order::Resume => {
                let mut plan = self.clone();
                plan.paused = order == Order::Pause;
                Ok(Step::to(plan))
            }
            Order::Remove if self.phase != Phase::SourceOnly => Err(Refusal::NotAtStart),
            Order::Remove if !self.is_settled(reports) => Err(Refusal::Unsettled),
            Order::Remove => Ok(Step {
                plan: None,
                preparation: Preparation::None,
            }),
            Order::Complete if self.phase != Phase::Final => Err(Refusal::NotAtEnd),
            Order::Complete if !self.is_settled(reports) => Err(Refusal::Unsettled),
            Order::Complete => Ok(Step {
                preparation: Preparation::ReadFloor,
                ..Step::to(self.clone())
            }),
        }
    }

    fn enter(&self, phase: Phase, reports: &[MemberReport], epoch: u64) -> Result<Step, Refusal> {
        // Back to where members come from is no third phase: possible at any time.
        let is_reversal = phase == self.from;
        if !is_reversal && !self.is_settled(reports) {
            return Err(Refusal::Unsettled);
        }
        let preparation = match (self.phase, phase) {
            _ if is_reversal && !self.is_settled(reports) => Preparation::None,
            (Phase::Dual, Phase::TargetOnly) => Preparation::RaiseFloor,
            (Phase::Dual, Phase::SourceOnly) => Preparation::AwaitSource,
            _ => Preparation::None,
        };
        let mut plan = self.clone();
        plan.from = self.phase;
        plan.phase = phase;
        plan.epoch = epoch;
        Ok(Step {
            preparation,
            ..Step::to(plan)
        })
    }
}

impl Step {
    fn to(plan: Plan) -> Self {
        Self {
            plan: Some(plan),
            preparation: Preparation::None,
        }
    }
}
