//! When a member writes its report.

use std::time::Duration;

use lock_core::backend::Moment;

use super::MemberReport;

/// The least time between two reports of which only the names differ.
const NAMES: Duration = Duration::from_secs(1);

/// The report that was written last.
#[derive(Debug, Default)]
pub(super) struct Written {
    report: Option<(MemberReport, Moment)>,
}

impl Written {
    /// Tells if a report is to be written: at once when a plan is followed, and otherwise rarely.
    pub(super) fn is_outdated_by(&self, report: &MemberReport, now: Moment) -> bool {
        let Some((written, at)) = &self.report else {
            return true;
        };
        if written == report {
            return false;
        }
        let is_progress =
            written.seen != report.seen || !written.draining.keys().eq(report.draining.keys());
        is_progress || now.saturating_since(*at) >= NAMES
    }

    pub(super) fn was_written(&mut self, report: MemberReport, now: Moment) {
        self.report = Some((report, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_at_once_and_names_rarely() {
        let draining = |seen, prefixes: &[(&str, &str)]| {
            let mut report = MemberReport {
                seen,
                ..MemberReport::default()
            };
            for (prefix, name) in prefixes {
                let names = report.draining.entry((*prefix).to_owned()).or_default();
                names.insert((*name).to_owned());
            }
            report
        };
        let start = Moment::from_origin(NAMES);
        let mut written = Written::default();
        let first = draining(1, &[("a/", "a/1"), ("b/", "b/1")]);
        assert!(written.is_outdated_by(&first, start));
        written.was_written(first.clone(), start);
        assert!(!written.is_outdated_by(&first, start + NAMES));
        let other_name = draining(1, &[("a/", "a/2"), ("b/", "b/1")]);
        assert!(!written.is_outdated_by(&other_name, start));
        assert!(written.is_outdated_by(&other_name, start + NAMES));
        assert!(written.is_outdated_by(&draining(1, &[("b/", "b/1")]), start));
        assert!(written.is_outdated_by(&draining(2, &[]), start));
    }
}
