use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Plan, Verified};

/// What an operator sees.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// All plans, in the order of their prefixes.
    pub plans: Vec<PlanStatus>,
    /// All live members, in the order of their labels.
    pub members: Vec<MemberStatus>,
}

/// A plan and how far its members are.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlanStatus {
    /// The plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// All live members have followed.
    pub settled: bool,
    /// The number that is added to the target's tokens.
    pub floor: u64,
    /// The members that have not followed, by label, with names of guards that still drain; no
    /// names from one that has not heard of the change.
    pub behind: BTreeMap<String, BTreeSet<String>>,
    /// What the latest verifications have found.
    pub verified: Verified,
}

/// A live member.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its id in the store.
    pub id: String,
    /// Host and process, or what it was given.
    pub label: String,
    /// The number of the last change that it knows.
    pub seen: u64,
}
