//! What an operator has read, and what it says of it.

use lock_core::{ErrorKind, LockError};

use super::{
    MemberReport, MemberStatus, Plan, PlanStatus, Plans, Refusal, Sighting, Verified,
    joined::MemberRecord,
};

/// The plans and the members, as they were at one instant or later, in this order: a member that
/// is not seen has read the plans, or will.
pub(super) struct Seen {
    pub(super) plans: Plans,
    pub(super) revision: i64,
    pub(super) members: Vec<(String, MemberRecord)>,
}

impl Seen {
    pub(super) fn reports(&self) -> Vec<MemberReport> {
        let reports = self.members.iter().map(|(_, member)| member.report.clone());
        reports.collect()
    }

    pub(super) fn plan(&self, prefix: &str) -> Result<&Plan, LockError> {
        self.plans.plan(prefix).ok_or_else(|| {
            let known: Vec<_> = (self.plans.plans.iter())
                .map(|plan| named(&plan.prefix))
                .collect();
            let known = match known.is_empty() {
                true => "there are none; make one first".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            invalid(format!("there is no plan {}; {known}", named(prefix)))
        })
    }

    pub(super) fn status_of(&self, plan: &Plan, floor: u64, verified: Verified) -> PlanStatus {
        let behind = (self.members.iter())
            .filter(|(_, member)| !plan.is_followed_by(&member.report))
            .map(|(_, member)| {
                let draining = member.report.draining.get(&plan.prefix);
                (member.label.clone(), draining.cloned().unwrap_or_default())
            })
            .collect();
        PlanStatus {
            plan: plan.clone(),
            settled: plan.is_settled(&self.reports()),
            floor,
            behind,
            verified,
        }
    }

    /// With the members that are behind, or the foreign lockers, if it is for them.
    pub(super) fn refused(&self, plan: &Plan, refusal: Refusal, foreign: &[Sighting]) -> LockError {
        let whom: Vec<_> = match refusal {
            Refusal::Unsettled => {
                let behind = self.status_of(plan, 0, Verified::default()).behind;
                behind.into_keys().collect()
            }
            Refusal::Foreign => foreign.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let more = match whom.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let message = format!("{}: {refusal}", named(&plan.prefix));
        invalid(match whom.is_empty() {
            true => message,
            false => {
                let whom: Vec<_> = whom.into_iter().take(NAMED).collect();
                format!("{message} ({}{more})", whom.join(", "))
            }
        })
    }

    pub(super) fn replace(&mut self, plan: &Plan, next: Option<Plan>, epoch: u64) {
        self.plans.epoch = epoch;
        let plans = &mut self.plans.plans;
        match next {
            Some(next) => {
                let place = plans.iter_mut().find(|it| it.prefix == plan.prefix);
                if let Some(place) = place {
                    *place = next;
                }
            }
            None => plans.retain(|it| it.prefix != plan.prefix),
        }
    }

    pub(super) fn member_statuses(self) -> Vec<MemberStatus> {
        let members = self.members.into_iter();
        let mut members: Vec<_> = members.map(member_status).collect();
        members.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
        members
    }
}

/// The number of members or foreign lockers that a refusal names.
const NAMED: usize = 5;

fn member_status((id, member): (String, MemberRecord)) -> MemberStatus {
    MemberStatus {
        id,
        label: member.label,
        seen: member.report.seen,
    }
}

/// The names of a plan, for messages.
pub(super) fn named(prefix: &str) -> String {
    match prefix.is_empty() {
        true => "of all names".to_owned(),
        false => format!("`{prefix}`"),
    }
}

pub(super) fn invalid(message: String) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}
