//! The report as JUnit XML, for build servers.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use crate::report::{Case, Outcome, Report};

/// Renders a report; the error is the library's.
pub(crate) fn render(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut document = quick_junit::Report::new(format!("conformance of {}", report.backend));
    for (group, cases) in report.groups() {
        let mut suite = TestSuite::new(group);
        suite.add_test_cases(cases.into_iter().map(test_case));
        document.add_test_suite(suite);
    }
    document.to_string()
}

fn test_case(case: &Case) -> TestCase {
    let message = case.message.clone().unwrap_or_default();
    let status = match case.outcome {
        Outcome::Held => TestCaseStatus::success(),
        Outcome::Violated => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(message);
            status
        }
        Outcome::Unchecked | Outcome::NotApplicable => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(message);
            status
        }
    };
    let mut test = TestCase::new(case.case.clone(), status);
    test.set_time(Duration::try_from_secs_f64(case.seconds).unwrap_or_default());
    test
}
