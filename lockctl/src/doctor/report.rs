//! What was found.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use polylock::Capabilities;
use serde::Serialize;
use serde_json::{Value, json};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Good,
    /// To know, and nothing to do.
    Note,
    /// Works, and may hurt.
    Warning,
    /// Does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    check: String,
    message: String,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    declared: Value,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(capabilities: &Capabilities) -> Self {
        Self {
            declared: declared(capabilities),
            findings: Vec::new(),
        }
    }

    pub(super) fn good(&mut self, check: impl Into<String>, message: impl Into<String>) {
        self.add(Level::Good, check.into(), message.into());
    }

    pub(super) fn note(&mut self, check: impl Into<String>, message: impl Into<String>) {
        self.add(Level::Note, check.into(), message.into());
    }

    pub(super) fn warn(&mut self, check: impl Into<String>, message: impl Into<String>) {
        self.add(Level::Warning, check.into(), message.into());
    }

    pub(super) fn bad(&mut self, check: impl Into<String>, message: impl Into<String>) {
        self.add(Level::Failure, check.into(), message.into());
    }

    fn add(&mut self, level: Level, check: String, message: String) {
        self.findings.push(Finding {
            level,
            check,
            message,
        });
    }

    pub(super) fn has_failed(&self) -> bool {
        self.count(Level::Failure) > 0
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|it| it.level == level).count()
    }

    pub(super) fn print(&self) {
        let width = self.findings.iter().map(|it| it.check.chars().count());
        let width = width.max().unwrap_or_default();
        for it in &self.findings {
            println!("{} {:width$}  {}", mark(it.level), it.check, it.message);
        }
        println!("\nThe backend declares:");
        if let Value::Object(declared) = &self.declared {
            for (what, value) in declared {
                let value = value.as_str().map_or(value.to_string(), str::to_owned);
                println!("        {what:<16}  {value}");
            }
        }
        let (failures, warnings) = (self.count(Level::Failure), self.count(Level::Warning));
        println!("\n{failures} failures, {warnings} warnings");
    }
}

/// Colours are for terminals, and for who has not asked for none.
fn mark(level: Level) -> String {
    let (word, colour) = match level {
        Level::Good => ("ok   ", 32),
        Level::Note => ("note ", 36),
        Level::Warning => ("warn ", 33),
        Level::Failure => ("FAIL ", 31),
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
    match io::stdout().is_terminal() && !plain {
        true => format!("\x1b[{colour}m{word}\x1b[0m"),
        false => word.to_owned(),
    }
}

fn declared(it: &Capabilities) -> Value {
    let seconds = |duration: Duration| humantime::format_duration(duration).to_string();
    json!({
        "backend": it.backend,
        "consistency": it.consistency.to_string(),
        "fifo": it.fifo,
        "fencing": it.fencing.map(|it| it.to_string()),
        "ttl_min": seconds(it.ttl.min),
        "ttl_max": seconds(it.ttl.max),
        "ttl_granularity": seconds(it.ttl.granularity),
        "crash_bound": seconds(it.crash_bound),
        "push_wake_up": it.push_wake_up,
        "push_loss": it.push_loss,
        "inspect": it.inspect,
        "queue_length": it.queue_length,
        "force_release": it.force_release,
        "watch": it.watch,
        "list": it.list,
        "raise_token": it.raise_token,
        "metadata": it.metadata,
        "shared_mode": it.shared_mode,
    })
}

/// A time, to three digits or so.
pub(super) fn time(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polylock::Consistency;

    #[test]
    fn only_failures_fail() {
        let capabilities = Capabilities::new("store", Consistency::BestEffort);
        let mut report = Report::new(&capabilities);
        report.good("a", "b");
        report.note("a", "b");
        report.warn("a", "b");
        assert!(!report.has_failed());
        report.bad("a", "b");
        assert!(report.has_failed());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["declared"]["consistency"], "best-effort");
        assert_eq!(json["findings"][3]["level"], "failure");
    }
}
