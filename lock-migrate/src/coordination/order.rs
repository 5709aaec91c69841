//! The operator's decisions, without I/O. The code and the model run the same.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MemberReport, Plan};
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
            Self::AtEnd => "the plan is in its last phase; complete it, or roll back",
            Self::AtStart => "the plan is in its first phase; abort it, or advance",
            Self::Complete => "the migration is complete; there is no way back",
            Self::NotAtStart => "the plan is not in the phase source-only; roll back first",
            Self::NotAtEnd => "the plan is not in the phase final; advance first",
        })
    }
}

impl Plan {
    /// Decides what an order comes to, as the members report. The change gets the number `epoch`.
    ///
    /// # Errors
    ///
    /// The reason why not.
    pub fn decide(
        &self,
        order: Order,
        reports: &[MemberReport],
        epoch: u64,
    ) -> Result<Step, Refusal> {
        if self.complete.is_some() {
            return Err(Refusal::Complete);
        }
        match order {
            Order::Advance if self.paused => Err(Refusal::Paused),
            Order::Advance => {
                let next = self.phase.next().ok_or(Refusal::AtEnd)?;
                self.enter(next, reports, epoch)
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
