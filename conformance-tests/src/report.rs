use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use crate::Verdict;

/// Counts how the cases ended, for the lines after the runner's own summary.
#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: BTreeMap<String, usize>,
}

impl Report {
    pub(crate) fn note(&self, verdict: &Result<Verdict, String>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match verdict {
            Ok(Verdict::Passed) => counts.passed += 1,
            Ok(Verdict::Skipped(reason)) => *counts.skipped.entry(reason.clone()).or_default() += 1,
            Err(_) => counts.failed += 1,
        }
    }

    pub(crate) fn summary(&self, backend: &str) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped: usize = counts.skipped.values().sum();
        let mut text = format!("conformance of {backend}: {} hold, {} do not, {skipped} skipped", counts.passed, counts.failed);
        for (reason, count) in &counts.skipped {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {count:>3} skipped: {reason}");
        }
        text
    }
}
