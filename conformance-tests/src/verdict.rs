//! Decides from the results of the cases what is proven, violated or unproven.

use std::{collections::BTreeMap, fmt, time::Duration};

use lock_core::{Capabilities, Consistency};

use crate::{Badge, Case, Claim, Level, Need, Verdict};

/// Group of the cases that check the harness itself.
pub(crate) const HOOKS: &str = "hooks";

/// Result of one case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CaseResult {
    /// The case.
    pub case: Case,
    /// The verdict, or the text of the failure.
    pub outcome: Result<Verdict, String>,
    /// Time that the case took.
    pub took: Duration,
}

impl CaseResult {
    pub(crate) fn new(case: Case, outcome: Result<Verdict, String>, took: Duration) -> Self {
        Self {
            case,
            outcome,
            took,
        }
    }

    fn is_violation(&self) -> bool {
        self.outcome.is_err() && self.case.group != HOOKS
    }
}

/// Result for a claim. A run's is that of its worst claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// Every case that the claim needs has held.
    Proven,
    /// A case that the claim needs could not be checked.
    Unproven,
    /// A case has found a violation.
    Violated,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Proven => "proven",
            Self::Unproven => "unproven",
            Self::Violated => "violated",
        })
    }
}

/// A claim beside what was seen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The claim.
    pub claim: Claim,
    /// True if the author claims it, or the backend declares it.
    pub is_claimed: bool,
    /// Result for this claim.
    pub standing: Standing,
    /// Cases that have held.
    pub held: usize,
    /// Cases that the claim needs.
    pub needed: usize,
    /// Names of the cases that have found a violation.
    pub violated_by: Vec<String>,
    /// Reasons why it is unproven, each with the number of cases; 0 if no case can prove it.
    pub missing: BTreeMap<String, usize>,
}

/// The findings of a run.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    pub(crate) standing: Standing,
    pub(crate) has_claims: bool,
    pub(crate) of: Vec<Finding>,
}

impl Findings {
    /// Judges a run. `claims` are the author's; what the backend declares is added to them.
    pub(crate) fn of(claims: &[Claim], backend: Option<&Capabilities>, run: &[CaseResult]) -> Self {
        let level = claimed_level(claims);
        let all = Level::ALL
            .map(Claim::from)
            .into_iter()
            .chain(Badge::ALL.map(Claim::from));
        let findings: Vec<_> = all
            .map(|claim| {
                let is_claimed = is_claimed(claim, claims, backend);
                judge(
                    claim,
                    is_claimed,
                    level.unwrap_or(Level::RestartSafe),
                    backend,
                    run,
                )
            })
            .collect();
        let of_claims = findings.iter().filter(|finding| finding.is_claimed);
        let claimed = of_claims.map(|finding| finding.standing).max();
        let standing = if run.iter().any(CaseResult::is_violation) {
            Standing::Violated
        } else if run.iter().any(|record| record.outcome.is_err()) {
            Standing::Unproven
        } else {
            claimed.unwrap_or(Standing::Unproven)
        };
        Self {
            standing,
            has_claims: claimed.is_some(),
            of: findings,
        }
    }
}

fn claimed_level(claims: &[Claim]) -> Option<Level> {
    let level = |claim: &Claim| match claim {
        Claim::Level(level) => Some(*level),
        Claim::Badge(_) => None,
    };
    claims.iter().filter_map(level).max()
}

/// True if the author claims it, a claimed level includes it, or, once a level is claimed, the
/// backend declares it.
pub(crate) fn is_claimed(claim: Claim, claims: &[Claim], backend: Option<&Capabilities>) -> bool {
    let level = claimed_level(claims);
    match claim {
        Claim::Level(this) => level >= Some(this),
        Claim::Badge(badge) => {
            let is_declared = backend.is_some_and(|backend| badge.is_declared_by(backend));
            claims.contains(&claim) || (level.is_some() && is_declared)
        }
    }
}

/// True if something that is claimed cannot be proven without this case.
pub(crate) fn is_needed(case: &Case, claims: &[Claim], backend: Option<&Capabilities>) -> bool {
    let level = claimed_level(claims).unwrap_or(Level::RestartSafe);
    let all = Level::ALL.map(Claim::from);
    let badges = Badge::ALL.map(Claim::from);
    all.into_iter()
        .chain(badges)
        .any(|claim| is_claimed(claim, claims, backend) && claim.rests_on(case, level))
}

fn judge(
    claim: Claim,
    is_claimed: bool,
    level: Level,
    backend: Option<&Capabilities>,
    run: &[CaseResult],
) -> Finding {
    let mut finding = Finding {
        claim,
        is_claimed,
        standing: Standing::Proven,
        held: 0,
        needed: 0,
        violated_by: Vec::new(),
        missing: BTreeMap::new(),
    };
    let rests_on = run
        .iter()
        .filter(|record| claim.rests_on(&record.case, level));
    for record in rests_on {
        note(&mut finding, record, run);
    }
    if let Some(reason) = out_of_reach(claim, backend) {
        finding.missing.insert(reason, 0);
    } else if finding.needed == 0 {
        finding.missing.insert("no case of it applies".into(), 0);
    }
    finding.standing = if !finding.violated_by.is_empty() {
        Standing::Violated
    } else if !finding.missing.is_empty() {
        Standing::Unproven
    } else {
        Standing::Proven
    };
    finding
}

fn note(finding: &mut Finding, record: &CaseResult, run: &[CaseResult]) {
    let missing = match &record.outcome {
        Ok(Verdict::NotApplicable(_)) => return,
        Ok(Verdict::Passed) => ineffective(&record.case, run)
            .map(|need| format!("the harness's {need:?} has no effect")),
        Ok(Verdict::Lacking(_, reason) | Verdict::NotRun(reason)) => Some(reason.clone()),
        Err(message) if record.case.group == HOOKS => {
            Some(message.lines().next().unwrap_or_default().to_owned())
        }
        Err(_) => {
            finding.violated_by.push(record.case.full_name());
            None
        }
    };
    finding.needed += 1;
    match missing {
        Some(reason) => *finding.missing.entry(reason).or_default() += 1,
        None if record.outcome.is_ok() => finding.held += 1,
        None => {}
    }
}

/// An ability that the case needs and that was seen to do nothing.
fn ineffective(case: &Case, run: &[CaseResult]) -> Option<Need> {
    let checks = |need: &Need| {
        run.iter().any(|hook| {
            hook.case.group == HOOKS
                && hook.outcome.is_err()
                && hook.case.needs.last() == Some(need)
        })
    };
    case.needs.iter().copied().find(checks)
}

/// The reason why no case can prove the claim.
fn out_of_reach(claim: Claim, backend: Option<&Capabilities>) -> Option<String> {
    let is_local = backend.is_some_and(|backend| backend.consistency == Consistency::ProcessLocal);
    (is_local && matches!(claim, Claim::Level(level) if level > Level::Local))
        .then(|| "the backend declares Consistency::ProcessLocal".to_owned())
}

#[cfg(test)]
mod tests;
