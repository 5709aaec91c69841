use std::{fmt::Write, io, path::Path, sync::Mutex, time::Duration};

use lock_core::{Capabilities, backend::locked};
use serde_json::{Value, json};

use crate::{
    Case, Claim, Verdict,
    verdict::{Finding, Findings, Record, is_needed},
};

/// Collects how the cases ended.
#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Vec<Record>>);

impl Report {
    pub(crate) fn note(&self, case: Case, outcome: &Result<Verdict, String>, took: Duration) {
        locked(&self.0).push(Record {
            case,
            outcome: outcome.clone(),
            took,
        });
    }

    /// Judges what has run so far.
    pub(crate) fn findings(&self, claims: &[Claim], backend: Option<&Capabilities>) -> Findings {
        Findings::of(claims, backend, &locked(&self.0))
    }

    /// True if something that is claimed needs a case that was selected and could not be checked.
    pub(crate) fn lacks_what_is_claimed(
        &self,
        claims: &[Claim],
        backend: Option<&Capabilities>,
    ) -> bool {
        locked(&self.0).iter().any(|record| {
            matches!(record.outcome, Ok(Verdict::Lacking(..)))
                && is_needed(&record.case, claims, backend)
        })
    }

    /// True if there was no store, and that was allowed.
    pub(crate) fn was_not_run(&self) -> bool {
        let records = locked(&self.0);
        let not_run = |record: &Record| matches!(record.outcome, Ok(Verdict::NotRun(_)));
        records.iter().any(not_run) && records.iter().all(|record| record.outcome.is_ok())
    }

    /// The lines after the runner's own summary.
    pub(crate) fn summary(&self, backend: &str, findings: &Findings, is_whole: bool) -> String {
        let counts = self.counts();
        let mut text = format!(
            "conformance of {backend}: {} cases hold, {} do not, {} do not apply, {} could not be checked",
            counts[0], counts[1], counts[2], counts[3]
        );
        if !is_whole {
            text.push_str("\n  only a part of the cases was selected, which proves no claim");
            return text;
        }
        for finding in &findings.of {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {}", line(finding));
        }
        let verdict = match findings.has_claims {
            true => findings.standing.as_str(),
            false => "nothing is claimed; state what to prove with `claims(Level::..)`",
        };
        let _ = write!(text, "\n  verdict: {verdict}");
        text
    }

    /// Counts what held, failed, did not apply and was not checked.
    fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for record in locked(&self.0).iter() {
            counts[match record.outcome {
                Ok(Verdict::Passed) => 0,
                Err(_) => 1,
                Ok(Verdict::NotApplicable(_)) => 2,
                Ok(Verdict::Lacking(..) | Verdict::NotRun(_)) => 3,
            }] += 1;
        }
        counts
    }

    /// Writes everything as JSON.
    pub(crate) fn write(&self, path: &Path, backend: &str, findings: &Findings) -> io::Result<()> {
        let claims: Vec<_> = findings.of.iter().map(claim).collect();
        let cases: Vec<_> = locked(&self.0).iter().map(case).collect();
        let report = json!({
            "backend": backend,
            "verdict": findings.has_claims.then(|| findings.standing.as_str()),
            "claims": claims,
            "cases": cases,
        });
        std::fs::write(path, format!("{report:#}\n"))
    }
}

fn line(finding: &Finding) -> String {
    let claimed = if finding.is_claimed { "claimed" } else { "" };
    let mut text = format!(
        "{:<15} {claimed:<8} {:<9} {} of {}",
        finding.claim.to_string(),
        finding.standing.as_str(),
        finding.held,
        finding.needed
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

fn claim(finding: &Finding) -> Value {
    json!({
        "claim": finding.claim.to_string(),
        "claimed": finding.is_claimed,
        "standing": finding.standing.as_str(),
        "cases_held": finding.held,
        "cases_needed": finding.needed,
        "violated_by": finding.violated_by,
        "missing": finding.missing,
    })
}

fn case(record: &Record) -> Value {
    let (outcome, message) = match &record.outcome {
        Ok(Verdict::Passed) => ("held", None),
        Ok(Verdict::NotApplicable(reason)) => ("not applicable", Some(reason)),
        Ok(Verdict::Lacking(_, reason) | Verdict::NotRun(reason)) => ("unchecked", Some(reason)),
        Err(message) => ("violated", Some(message)),
    };
    json!({
        "case": record.case.full_name(),
        "level": Claim::from(record.case.level()).to_string(),
        "badge": record.case.badge().map(|badge| Claim::from(badge).to_string()),
        "outcome": outcome,
        "message": message,
        "seconds": record.took.as_secs_f64(),
    })
}
