//! A process's side of the coordination, without I/O. The code and the model run the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use lock_core::LockName;
use serde::{Deserialize, Serialize};

use super::Plan;
use crate::Phase;

/// A process that follows the plans.
///
/// It registers before it reads the plans; a plan that is written later then waits for it. It may
/// grant locks in the phase that it has read last, even if there is a later one by now, because an
/// operator goes no further without its report, as long as its membership is valid. What it grants
/// is valid no longer than that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// The plans, by prefix, as they were read last.
    plans: Arc<[Plan]>,
    /// The number of the last change in them; none before they have been read under the membership.
    seen: Option<u64>,
    tickets: BTreeMap<u64, Admitted>,
    last_ticket: u64,
}

/// An attempt or a guard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Admitted {
    name: LockName,
    phase: Phase,
}

/// The reason why a member grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotProven;

impl fmt::Display for NotProven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this process cannot prove its phase of the migration, so it grants no lock")
    }
}

/// What a member tells the operators of how far it has followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberReport {
    /// The number of the last change that it knows.
    pub seen: u64,
    /// By prefix, names with guards of another phase than the plan's: some of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<String, BTreeSet<String>>,
}

/// The number of names that a report has for each prefix.
const NAMED: usize = 5;

impl Member {
    /// The plans as they are now, read while the membership was valid.
    pub fn told(&mut self, plans: Arc<[Plan]>, epoch: u64) {
        if self.seen.is_none_or(|seen| seen <= epoch) {
            self.plans = plans;
            self.seen = Some(epoch);
        }
    }

    /// The membership has ended: all guards are lost with it, and the phases may change without
    /// this process.
    pub fn expelled(&mut self) {
        self.seen = None;
        self.tickets.clear();
    }

    /// The plan of a name, as far as this process knows.
    #[must_use]
    pub fn plan_of(&self, name: &LockName) -> Option<&Plan> {
        let name = name.as_str();
        let behind = self.plans.partition_point(|plan| *plan.prefix <= *name);
        let plan = self.plans.get(behind.checked_sub(1)?)?;
        name.starts_with(&plan.prefix).then_some(plan)
    }

    /// The phase for new acquisitions of a name: [`Phase::SourceOnly`] without a plan.
    #[must_use]
    pub fn phase_of(&self, name: &LockName) -> Phase {
        self.plan_of(name)
            .map_or(Phase::SourceOnly, |plan| plan.phase)
    }

    /// Admits an acquisition, and says in which phase, and under which number. `is_valid` says that
    /// the membership has not run out.
    ///
    /// # Errors
    ///
    /// [`NotProven`] unless the phase is known and nobody can change it unnoticed.
    pub fn begin(&mut self, name: &LockName, is_valid: bool) -> Result<(u64, Phase), NotProven> {
        let is_complete = self
            .plan_of(name)
            .is_some_and(|plan| plan.complete.is_some());
        if !is_complete && (self.seen.is_none() || !is_valid) {
            return Err(NotProven);
        }
        let phase = self.phase_of(name);
        self.last_ticket += 1;
        let name = name.clone();
        self.tickets
            .insert(self.last_ticket, Admitted { name, phase });
        Ok((self.last_ticket, phase))
    }

    /// The attempt has failed, or its guard is not held any more.
    pub fn end(&mut self, ticket: u64) {
        self.tickets.remove(&ticket);
    }

    /// Tells if the attempt or guard has not ended, and its membership has not.
    #[must_use]
    pub fn is_admitted(&self, ticket: u64) -> bool {
        self.tickets.contains_key(&ticket)
    }

    /// Tells if an attempt may go on: it is of the membership that is valid now, and of the phase
    /// for new acquisitions.
    #[must_use]
    pub fn is_current(&self, ticket: u64) -> bool {
        let admitted = self.tickets.get(&ticket);
        admitted.is_some_and(|admitted| self.phase_of(&admitted.name) == admitted.phase)
    }

    /// The attempts and guards of other phases than their plans'.
    pub fn draining(&self) -> impl Iterator<Item = u64> {
        self.tickets
            .keys()
            .copied()
            .filter(|ticket| !self.is_current(*ticket))
    }

    /// The number of attempts and guards.
    #[must_use]
    pub fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// What the operators may rely on: none before the plans have been read.
    #[must_use]
    pub fn report(&self) -> Option<MemberReport> {
        let mut report = MemberReport {
            seen: self.seen?,
            ..MemberReport::default()
        };
        for ticket in self.draining() {
            let Some(plan) = (self.tickets.get(&ticket)).and_then(|it| self.plan_of(&it.name))
            else {
                continue;
            };
            let names = report.draining.entry(plan.prefix.clone()).or_default();
            if names.len() < NAMED {
                names.insert(self.tickets[&ticket].name.to_string());
            }
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(phase: Phase, epoch: u64) -> Arc<[Plan]> {
        let mut plan = Plan::new("orders/", epoch);
        plan.phase = phase;
        [plan].into()
    }

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_granted_without_a_proven_phase() {
        let mut member = Member::default();
        assert_eq!(member.begin(&name("orders/1"), true), Err(NotProven));
        member.told(plan(Phase::Dual, 1), 1);
        assert_eq!(member.begin(&name("orders/1"), false), Err(NotProven));
        assert!(member.begin(&name("orders/1"), true).is_ok());
        member.expelled();
        assert_eq!(member.begin(&name("orders/1"), true), Err(NotProven));
        assert_eq!(member.report(), None);
    }

    #[test]
    fn a_plan_is_followed_when_its_older_guards_are_gone() {
        let mut member = Member::default();
        member.told(Arc::default(), 0);
        let (early, phase) = member.begin(&name("orders/1"), true).unwrap();
        let (other, _) = member.begin(&name("invoices"), true).unwrap();
        assert_eq!(phase, Phase::SourceOnly);
        member.told(plan(Phase::SourceOnly, 1), 1);
        let settled = |member: &Member, phase, epoch| {
            plan(phase, epoch)[0].is_followed_by(&member.report().unwrap())
        };
        assert!(settled(&member, Phase::SourceOnly, 1));
        member.told(plan(Phase::Dual, 2), 2);
        assert!(!member.is_current(early) && member.is_current(other));
        assert!(!settled(&member, Phase::Dual, 2));
        assert_eq!(member.report().unwrap().draining["orders/"].len(), 1);
        let (late, phase) = member.begin(&name("orders/1"), true).unwrap();
        assert_eq!(phase, Phase::Dual);
        member.end(early);
        assert!(member.is_current(late) && settled(&member, Phase::Dual, 2));
        assert!(
            !settled(&member, Phase::TargetOnly, 3),
            "it has not been told of it"
        );
        // A report that was on its way for long, or a read.
        member.told(plan(Phase::SourceOnly, 1), 1);
        assert_eq!(member.phase_of(&name("orders/1")), Phase::Dual);
    }

    #[test]
    fn a_complete_plan_needs_no_membership() {
        let mut member = Member::default();
        let mut plans = plan(Phase::Final, 9).to_vec();
        plans[0].complete = Some(5);
        member.told(plans.into(), 9);
        member.expelled();
        assert!(member.begin(&name("orders/1"), false).is_ok());
        assert_eq!(member.begin(&name("invoices"), false), Err(NotProven));
    }
}
