//! The report as one page of HTML that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::{Case, Claim, Outcome, Report};

const STYLE: &str = include_str!("page.css");

/// Renders a report.
pub(crate) fn render(report: &Report) -> String {
    let title = format!("Conformance of {}", report.backend);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                (verdict(report))
                h2 { "Levels and badges" }
                (claims(&report.claims))
                (violations(report))
                h2 { "Guarantees" }
                @for (group, cases) in report.groups() { (guarantee(group, &cases)) }
                footer {
                    p { "Seed " code { (report.seed) } "; repeat with "
                        code { "LOCK_CONFORMANCE_SEED=" (report.seed) } "." }
                }
            }
        }
    };
    page.into_string()
}

fn verdict(report: &Report) -> Markup {
    let count = |outcome| {
        let cases = report.cases.iter();
        cases.filter(|case| case.outcome == outcome).count()
    };
    html! {
        @match report.verdict {
            Some(standing) => p.verdict.(standing.as_str()) { (standing.as_str()) },
            None => p.verdict.unproven { "nothing is claimed" },
        }
        p {
            (count(Outcome::Held)) " cases hold, " (count(Outcome::Violated)) " do not, "
            (count(Outcome::NotApplicable)) " do not apply, "
            (count(Outcome::Unchecked)) " could not be checked."
        }
    }
}

fn claims(claims: &[Claim]) -> Markup {
    html! {
        table {
            thead { tr { th { "Claim" } th { "Claimed" } th { "Result" } th { "Cases" } th { "Open" } } }
            tbody {
                @for claim in claims {
                    tr {
                        td { strong { (claim.claim) } }
                        td { @if claim.claimed { "yes" } @else { "no" } }
                        td { span.mark.(claim.standing.as_str()) { (claim.standing.as_str()) } }
                        td { (claim.cases_held) " of " (claim.cases_needed) }
                        td { (open(claim)) }
                    }
                }
            }
        }
    }
}

fn open(claim: &Claim) -> Markup {
    html! {
        ul {
            @for case in &claim.violated_by { li { a href={ "#" (anchor(case)) } { (case) } } }
            @for (reason, cases) in &claim.missing {
                li { (reason) @if *cases > 0 { " (" (cases) " cases)" } }
            }
        }
    }
}

fn anchor(case: &str) -> String {
    case.replace("::", "-")
}

fn violations(report: &Report) -> Markup {
    html! {
        @if report.violations().next().is_some() {
            h2 { "Violations" }
            @for case in report.violations() {
                section.violation id=(anchor(&case.case)) {
                    h3 { (case.group()) ": " (case.statement()) }
                    pre { (case.message.as_deref().unwrap_or_default()) }
                    @if !case.likely_defects.is_empty() {
                        p { "The case fails alike on these defects:" }
                        ul { @for defect in &case.likely_defects { li { (defect) } } }
                    }
                    p { "Repeat it: " code { "cargo test --test conformance -- --exact " (case.case) }
                        ", or " code { "lock-conformance run URL --seed " (report.seed) " --only " (case.case) } }
                }
            }
        }
    }
}

fn guarantee(group: &str, cases: &[&Case]) -> Markup {
    let held = cases
        .iter()
        .filter(|case| case.outcome == Outcome::Held)
        .count();
    let applicable = cases
        .iter()
        .filter(|case| case.outcome != Outcome::NotApplicable)
        .count();
    let is_violated = cases.iter().any(|case| case.outcome == Outcome::Violated);
    html! {
        details open[is_violated] {
            summary { strong { (group) } " " (held) " of " (applicable) }
            table {
                @for case in cases {
                    tr {
                        td { span.mark.(class(case.outcome)) { (case.outcome.as_str()) } }
                        td {
                            (case.statement())
                            @if case.outcome != Outcome::Violated && let Some(message) = &case.message {
                                div.reason { (message) }
                            }
                        }
                        td { (case.level) @if let Some(badge) = &case.badge { ", " (badge) } }
                        td.number { (format!("{:.1} s", case.seconds)) }
                    }
                }
            }
        }
    }
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Violated => "violated",
        Outcome::Unchecked => "unproven",
        Outcome::Held => "proven",
        Outcome::NotApplicable => "idle",
    }
}
