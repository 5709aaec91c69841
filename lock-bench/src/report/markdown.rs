use std::fmt::Write;

use crate::{
    holding::Held,
    measure::Row,
    plan::Scenario,
    report::targets::Target,
    stores::Counts,
    suites::{Results, Suite},
};

/// Writes the whole report.
pub(crate) fn report(suite: &Suite, results: &Results, machine: &str) -> String {
    let mut text = format!("{machine}\n\n");
    if !results.rows.is_empty() {
        text += &rows(&results.rows);
        text += "\nFrom one to the next:\n\n";
        text += &passages(&results.rows);
    }
    if !results.held.is_empty() {
        text += "\nHeld by one process:\n\n";
        text += &held(&results.held);
    }
    if let Some(passed) = &results.passed {
        let names = passed.names;
        let seconds = passed.seconds();
        let bytes = passed.bytes_left_per_name;
        let _ = writeln!(
            text,
            "\n{names} names locked once each, one after the other: {seconds:.2} s, {bytes:.2} bytes per name left."
        );
    }
    if let Some(idle) = &results.idle {
        let _ = writeln!(
            text,
            "\nOne waiter of a lock that stays taken sends {:.2} commands/s.",
            idle.messages_per_s
        );
    }
    text += "\nTargets:\n\n";
    text += &targets(&suite.targets, results);
    for message in &suite.left_out {
        let _ = writeln!(text, "\nLeft out: {message}");
    }
    text
}

fn rows(rows: &[Row]) -> String {
    let mut text = "| scenario | subject | tasks | processes | cycles/s | slowest and fastest round | p50 ms | p99 ms | longest wait ms | RPCs per cycle | messages per cycle |\n\
                    | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        .to_owned();
    for Row {
        key,
        figures,
        rounds,
    } in rows
    {
        let slowest = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let fastest = rounds.iter().copied().fold(0.0, f64::max);
        let rpcs = figures
            .rpcs_per_cycle
            .map_or_else(|| "-".to_owned(), |rpcs| format!("{rpcs:.2}"));
        let errors = if figures.errors > 0 {
            format!(" ({} errors)", figures.errors)
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "| {} | {}{errors} | {} | {} | {:.0} | {slowest:.0} to {fastest:.0} | {} | {} | {} | {rpcs} | {} |",
            key.scenario,
            key.subject,
            key.tasks,
            key.processes,
            figures.cycles_per_s,
            three_digits(figures.p50_ms),
            three_digits(figures.p99_ms),
            three_digits(figures.longest_wait_ms),
            by_kind(&figures.messages_per_cycle),
        );
    }
    text
}

/// Contention as those see it who wait, and the server.
fn passages(rows: &[Row]) -> String {
    let mut text = "| scenario | subject | tasks | processes | hand-over p50 ms | p99 ms | handed over | smallest and largest share | p99 wait against median | reads per cycle | server's CPU µs per cycle |\n\
                    | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    let or_dash = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
    let contended = rows
        .iter()
        .filter(|row| row.key.scenario != Scenario::Uncontended);
    for Row { key, figures, .. } in contended {
        let passage = figures.passage;
        // Only of those that are held there are times.
        let hand_over = passage.filter(|passage| passage.hand_over_p99_ms > 0.0);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            key.scenario,
            key.subject,
            key.tasks,
            key.processes,
            or_dash(hand_over.map(|passage| three_digits(passage.hand_over_p50_ms))),
            or_dash(hand_over.map(|passage| three_digits(passage.hand_over_p99_ms))),
            or_dash(hand_over.map(|passage| format!("{:.0} %", passage.handed_over * 100.0))),
            or_dash(passage.map(|passage| {
                format!(
                    "{:.0} to {:.0}",
                    passage.smallest_share, passage.largest_share
                )
            })),
            or_dash(figures.waits_apart().map(three_digits)),
            or_dash(figures.reads_per_cycle.map(three_digits)),
            or_dash(figures.cpu_us_per_cycle.map(three_digits)),
        );
    }
    text
}

/// Lists the kinds that occur at least once in a hundred cycles.
fn by_kind(counts: &Counts) -> String {
    let kinds: Vec<_> = counts
        .0
        .iter()
        .filter(|(_, count)| **count >= 0.01)
        .map(|(kind, count)| format!("{count:.2} {kind}"))
        .collect();
    if kinds.is_empty() {
        "-".to_owned()
    } else {
        kinds.join(", ")
    }
}

fn held(held: &[Held]) -> String {
    let mut text =
        "| names | leases | renewals/s | messages/s | bytes per guard | seconds to acquire all |\n\
                    | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    for held in held {
        let leases = held
            .leases
            .map_or_else(|| "-".to_owned(), |leases| leases.to_string());
        // One guard is smaller than the pages in which memory is counted.
        let bytes = if held.names > 1 {
            format!("{:.0}", held.bytes_per_guard)
        } else {
            "-".to_owned()
        };
        let _ = writeln!(
            text,
            "| {} | {leases} | {:.2} | {:.2} | {bytes} | {:.3} |",
            held.names, held.renewals_per_s, held.messages_per_s, held.seconds_to_acquire
        );
    }
    text
}

pub(crate) fn targets(targets: &[Target], results: &Results) -> String {
    let mut text =
        "| target | bound | measured | in single rounds | |\n| --- | --- | ---: | --- | --- |\n"
            .to_owned();
    for target in targets {
        let what = &target.what;
        let bound = target.bound;
        let _ = match target.measured(results) {
            Some(value) => {
                let verdict = if bound.is_met(value) {
                    "pass"
                } else {
                    "**miss**"
                };
                let spread = target
                    .spread(results)
                    .map(|(low, high)| format!("{} to {}", figure(low), figure(high)))
                    .unwrap_or_default();
                writeln!(
                    text,
                    "| {what} | {bound} | {} | {spread} | {verdict} |",
                    figure(value)
                )
            }
            None => writeln!(text, "| {what} | {bound} | - | | not measured |"),
        };
    }
    text
}

/// Shows enough digits that a miss is never rounded to a pass.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

fn three_digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value if value >= 0.01 => format!("{value:.3}"),
        value => format!("{value:.6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Key, Subject},
        report::{targets::Bound, tests},
    };

    #[test]
    fn a_target_passes_or_misses_or_was_not_measured() {
        let key = Key::uncontended(Subject::Ours, 1);
        let results = Results {
            rows: vec![tests::row(key)],
            ..Results::default()
        };
        let list = [
            Target::ratio("met", Bound::AtLeast(1.0), key, key),
            Target::ratio("missed", Bound::AtLeast(1.01), key, key),
            Target::ratio(
                "absent",
                Bound::AtLeast(1.0),
                key,
                Key::uncontended(Subject::Raw, 1),
            ),
        ];
        let text = targets(&list, &results);
        for line in [
            "| met | at least 1 | 1.000 | 1.000 to 1.000 | pass |",
            "| missed | at least 1.01 | 1.000 | 1.000 to 1.000 | **miss** |",
            "| absent | at least 1 | - | | not measured |",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn errors_are_shown_beside_the_figures() {
        let mut row = tests::row(Key::processes(Subject::Ours, 8));
        row.figures.errors = 3;
        let text = rows(&[row]);
        assert!(
            text.contains(
                "| contended | ours (3 errors) | 1 | 8 | 1234 | 1200 to 1300 | 0.750 | 2.50 | 4.00 | 2.00 | 2.00 Txn, 0.01 Watch |"
            ),
            "{text}"
        );
    }
}
