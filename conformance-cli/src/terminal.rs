//! Progress and results for people.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use lock_conformance::{CaseResult, Finding, Judgement};

/// A bar on a terminal, and violations as they are found.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn of(cases: usize) -> Self {
        let bar = ProgressBar::new(cases as u64);
        // The default style stands in for one that cannot be read.
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(crate) fn note(&self, result: &CaseResult) {
        let name = result.case.full_name();
        if let Err(message) = &result.outcome {
            self.0
                .suspend(|| eprintln!("violated: {name}\n    {message}"));
        }
        self.0.set_message(name);
        self.0.inc(1);
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// Prints what is proven, violated and unproven.
pub(crate) fn print(judgement: &Judgement) {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["claim", "claimed", "result", "cases", "open"]);
    for finding in judgement.findings() {
        table.add_row([
            finding.claim.to_string(),
            if finding.is_claimed { "yes" } else { "" }.to_owned(),
            finding.standing.to_string(),
            format!("{} of {}", finding.held, finding.needed),
            open(finding),
        ]);
    }
    println!("{table}");
    match judgement.standing() {
        Some(standing) => println!("{}: {standing}", judgement.backend()),
        None => println!(
            "{}: nothing is claimed; say what to prove with --claim",
            judgement.backend()
        ),
    }
    println!("seed: {}", judgement.seed());
}

fn open(finding: &Finding) -> String {
    let violated = finding.violated_by.iter().cloned();
    let missing = finding.missing.iter().map(|(reason, cases)| match cases {
        0 => reason.clone(),
        _ => format!("{reason} ({cases})"),
    });
    violated.chain(missing).collect::<Vec<_>>().join("\n")
}
