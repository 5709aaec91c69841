use std::{fmt::Write, io, path::Path, process::ExitCode};

use lock_core::Capabilities;
use serde_json::{Value, json};

use crate::{
    Case, CaseResult, Claim, Finding, KnownDefect, Standing, Verdict,
    verdict::{Findings, is_needed},
};

/// Everything that a run of the suite has found.
#[derive(Clone, Debug)]
#[must_use = "the exit code is the verdict"]
pub struct Judgement {
    backend: String,
    seed: u64,
    findings: Findings,
    results: Vec<CaseResult>,
    /// True if every case was selected, so that claims can be judged.
    is_whole: bool,
    /// True if a claim needs a case that was selected and could not be checked.
    lacks_what_is_claimed: bool,
    store: Store,
}

/// Start of the store that the cases ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Ready,
    /// There is none, and that is allowed.
    Skipped,
    /// There is none, although there should be one.
    Failed,
}

impl Judgement {
    pub(crate) fn new(
        backend: &str,
        seed: u64,
        claims: &[Claim],
        declared: Option<&Capabilities>,
        store: Store,
        results: Vec<CaseResult>,
    ) -> Self {
        let lacks_what_is_claimed = results.iter().any(|result| {
            matches!(result.outcome, Ok(Verdict::Lacking(..)))
                && is_needed(&result.case, claims, declared)
        });
        Self {
            backend: backend.to_owned(),
            seed,
            findings: Findings::of(claims, declared, &results),
            results,
            is_whole: true,
            lacks_what_is_claimed,
            store,
        }
    }

    /// Marks that only a part of the cases was selected.
    pub(crate) fn of_a_part(mut self) -> Self {
        self.is_whole = false;
        self
    }

    /// Name of the backend.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Seed of the cases' random choices.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// All levels and badges, in ascending order, with what was seen of each.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings.of
    }

    /// The cases, in the order in which they ended.
    #[must_use]
    pub fn results(&self) -> &[CaseResult] {
        &self.results
    }

    /// Result of the whole run; `None` if nothing is claimed.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.findings.has_claims.then_some(self.findings.standing)
    }

    /// Result as the exit code of a process; see [`Suite::run`](crate::Suite::run).
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    pub(crate) fn code(&self) -> u8 {
        let has_failed = self.results.iter().any(|result| result.outcome.is_err());
        let is_unproven = match self.is_whole {
            true => self.standing() == Some(Standing::Unproven),
            false => self.lacks_what_is_claimed,
        };
        match self.findings.standing {
            _ if self.store == Store::Failed => 3,
            _ if self.store == Store::Skipped => 0,
            Standing::Violated => 1,
            _ if is_unproven || has_failed => 2,
            _ => 0,
        }
    }

    /// Tells in a few lines what is proven, violated and unproven, and what is missing.
    #[must_use]
    pub fn summary(&self) -> String {
        let counts = self.counts();
        let mut text = format!(
            "conformance of {}: {} cases hold, {} do not, {} do not apply, {} could not be checked \
             (seed {})",
            self.backend, counts[0], counts[1], counts[2], counts[3], self.seed
        );
        if !self.is_whole {
            text.push_str("\n  only a part of the cases was selected, which proves no claim");
            return text;
        }
        for finding in &self.findings.of {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {}", line(finding));
        }
        let _ = match self.standing() {
            Some(standing) => write!(text, "\n  verdict: {standing}"),
            None => write!(
                text,
                "\n  verdict: nothing is claimed; state what to prove with `claims(Level::..)`"
            ),
        };
        text
    }

    /// Counts what held, failed, did not apply and was not checked.
    fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for result in &self.results {
            counts[match result.outcome {
                Ok(Verdict::Passed) => 0,
                Err(_) => 1,
                Ok(Verdict::NotApplicable(_)) => 2,
                Ok(Verdict::Lacking(..) | Verdict::NotRun(_)) => 3,
            }] += 1;
        }
        counts
    }

    /// Everything as JSON: `backend`, `seed`, `verdict`, `claims` and `cases`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let claims: Vec<_> = self.findings.of.iter().map(claim_json).collect();
        let cases: Vec<_> = self.results.iter().map(case_json).collect();
        json!({
            "backend": self.backend,
            "seed": self.seed,
            "verdict": self.standing().map(|standing| standing.to_string()),
            "claims": claims,
            "cases": cases,
        })
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, format!("{:#}\n", self.to_json()))
    }
}

fn line(finding: &Finding) -> String {
    let claimed = if finding.is_claimed { "claimed" } else { "" };
    let mut text = format!(
        "{:<15} {claimed:<8} {:<9} {} of {}",
        finding.claim, finding.standing, finding.held, finding.needed
    );
    for case in &finding.violated_by {
        let _ = write!(text, "\n      violated by {case}");
    }
    for (reason, count) in &finding.missing {
        let _ = match count {
            0 => write!(text, "\n      {reason}"),
            _ => write!(text, "\n      {count} cases unchecked: {reason}"),
        };
    }
    text
}

fn claim_json(finding: &Finding) -> Value {
    json!({
        "claim": finding.claim.to_string(),
        "claimed": finding.is_claimed,
        "standing": finding.standing.to_string(),
        "cases_held": finding.held,
        "cases_needed": finding.needed,
        "violated_by": finding.violated_by,
        "missing": finding.missing,
    })
}

fn case_json(result: &CaseResult) -> Value {
    let (outcome, message) = match &result.outcome {
        Ok(Verdict::Passed) => ("held", None),
        Ok(Verdict::NotApplicable(reason)) => ("not applicable", Some(reason)),
        Ok(Verdict::Lacking(_, reason) | Verdict::NotRun(reason)) => ("unchecked", Some(reason)),
        Err(message) => ("violated", Some(message)),
    };
    let likely_defects: Vec<_> = match &result.outcome {
        Ok(_) => Vec::new(),
        Err(message) => likely_defects(&result.case, message),
    };
    json!({
        "case": result.case.full_name(),
        "level": Claim::from(result.case.level()).to_string(),
        "badge": result.case.badge().map(|badge| Claim::from(badge).to_string()),
        "outcome": outcome,
        "message": message,
        "seconds": result.took.as_secs_f64(),
        "likely_defects": likely_defects,
    })
}

/// Defects on which the case says the same; if there is none, those that it finds.
fn likely_defects(case: &Case, message: &str) -> Vec<&'static str> {
    let found: Vec<_> = case.known_defects().collect();
    let alike = |defect: &&KnownDefect| !defect.says.is_empty() && message.contains(defect.says);
    let is_told = found.iter().any(|defect| alike(&defect));
    let matching = found.iter().filter(|defect| !is_told || alike(defect));
    matching.map(|defect| defect.text).collect()
}
