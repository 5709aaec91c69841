use super::*;
use crate::Suite;

fn backend() -> Capabilities {
    let mut backend = Capabilities::new("test", Consistency::Linearizable);
    backend.fifo = true;
    backend
}

/// All cases hold, but for those that `change` decides about.
fn run(change: impl Fn(&Case) -> Option<Result<Verdict, String>>) -> Vec<CaseResult> {
    let backend = backend();
    let record = |case: Case| {
        let outcome = change(&case).unwrap_or_else(|| match case.inapplicable_to(&backend) {
            Some(reason) => Ok(Verdict::NotApplicable(reason)),
            None => Ok(Verdict::Passed),
        });
        CaseResult::new(case, outcome, Duration::ZERO)
    };
    Suite::cases().map(record).collect()
}

fn lacking(need: Need) -> impl Fn(&Case) -> Option<Result<Verdict, String>> {
    move |case| {
        let lacks = case.needs.contains(&need);
        lacks.then(|| Ok(Verdict::Lacking(need, need.missing())))
    }
}

fn standing(findings: &Findings, claim: impl Into<Claim>) -> Standing {
    let claim = claim.into();
    let found = findings.of.iter().find(|finding| finding.claim == claim);
    found.unwrap().standing
}

#[test]
fn what_holds_throughout_is_proven() {
    let findings = Findings::of(
        &[Level::RestartSafe.into()],
        Some(&backend()),
        &run(|_| None),
    );
    assert_eq!(findings.standing, Standing::Proven, "{findings:?}");
    assert_eq!(standing(&findings, Badge::Fifo), Standing::Proven);
}

#[test]
fn a_missing_hook_leaves_the_levels_that_need_it_unproven() {
    let run = run(lacking(Need::OtherProcess));
    let findings = Findings::of(&[Level::Exclusive.into()], Some(&backend()), &run);
    assert_eq!(standing(&findings, Level::Local), Standing::Proven);
    assert_eq!(standing(&findings, Level::Exclusive), Standing::Unproven);
    assert_eq!(standing(&findings, Level::RestartSafe), Standing::Unproven);
    assert_eq!(findings.standing, Standing::Unproven);
    let exclusive = &findings.of[1];
    let hook = "implement `Harness::child_address`";
    assert!(exclusive.missing.contains_key(hook), "{exclusive:?}");
}

#[test]
fn a_hook_that_only_a_higher_level_needs_is_not_missed() {
    let run = run(lacking(Need::Restart));
    let findings = Findings::of(&[Level::PartitionSafe.into()], Some(&backend()), &run);
    assert_eq!(findings.standing, Standing::Proven);
}

#[test]
fn a_failed_case_violates_its_level_and_those_above() {
    let run = run(|case| (case.group == "crash").then(|| Err("two holders".into())));
    let findings = Findings::of(&[Level::RestartSafe.into()], Some(&backend()), &run);
    assert_eq!(standing(&findings, Level::Local), Standing::Proven);
    assert_eq!(standing(&findings, Level::Exclusive), Standing::Violated);
    assert_eq!(standing(&findings, Level::RestartSafe), Standing::Violated);
    assert_eq!(findings.standing, Standing::Violated);
}

#[test]
fn a_violation_counts_though_nothing_is_claimed() {
    let run = run(|case| (case.group == "order").then(|| Err("out of order".into())));
    let findings = Findings::of(&[], Some(&backend()), &run);
    assert!(!findings.has_claims);
    assert_eq!(findings.standing, Standing::Violated);
}

#[test]
fn a_badge_that_is_claimed_and_not_declared_is_unproven() {
    let claims = [Level::Local.into(), Badge::Push.into()];
    let findings = Findings::of(&claims, Some(&backend()), &run(|_| None));
    assert_eq!(standing(&findings, Badge::Push), Standing::Unproven);
    assert_eq!(findings.standing, Standing::Unproven);
}

#[test]
fn a_badge_is_checked_up_to_the_claimed_level() {
    let run = run(lacking(Need::OtherProcess));
    let claims = [Level::Local.into(), Badge::Clean.into()];
    let findings = Findings::of(&claims, Some(&backend()), &run);
    assert_eq!(findings.standing, Standing::Proven, "{findings:?}");
}

#[test]
fn a_process_local_backend_reaches_no_further() {
    let mut backend = backend();
    backend.consistency = Consistency::ProcessLocal;
    let run = run(|_| None);
    let local = Findings::of(&[Level::Local.into()], Some(&backend), &run);
    assert_eq!(local.standing, Standing::Proven);
    let exclusive = Findings::of(&[Level::Exclusive.into()], Some(&backend), &run);
    assert_eq!(exclusive.standing, Standing::Unproven);
}
