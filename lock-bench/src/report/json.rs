use serde::Serialize;

use crate::{
    Result,
    measure::Row,
    passage::Passage,
    plan::{Scenario, Subject},
};

/// One row, for other tools to read.
#[derive(Debug, Serialize)]
struct JsonRow {
    scenario: Scenario,
    subject: Subject,
    /// Number of tasks in each process.
    tasks: usize,
    processes: usize,
    cycles_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    rpcs_per_cycle: Option<f64>,
    #[serde(flatten)]
    passage: Option<Passage>,
}

/// Makes an array with one row in each line.
pub(crate) fn rows(rows: &[Row]) -> Result<String> {
    let lines: serde_json::Result<Vec<_>> = rows
        .iter()
        .map(|row| serde_json::to_string(&JsonRow::of(row)))
        .collect();
    Ok(format!("[\n  {}\n]\n", lines?.join(",\n  ")))
}

impl JsonRow {
    fn of(row: &Row) -> Self {
        let key = row.key;
        let figures = &row.figures;
        Self {
            scenario: key.scenario,
            subject: key.subject,
            tasks: key.tasks,
            processes: key.processes,
            cycles_per_s: rounded(figures.cycles_per_s, 10.0),
            p50_ms: rounded(figures.p50_ms, 1e6),
            p99_ms: rounded(figures.p99_ms, 1e6),
            rpcs_per_cycle: figures.rpcs_per_cycle.map(|rpcs| rounded(rpcs, 1000.0)),
            passage: figures.passage,
        }
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::Key, report::tests::row};

    #[test]
    fn the_format_is_what_other_tools_expect() {
        let json = rows(&[
            row(Key::uncontended(Subject::Ours, 16)),
            row(Key::processes(Subject::GoMutex, 8)),
        ])
        .unwrap();
        let expected = r#"[
  {"scenario":"uncontended","subject":"ours","tasks":16,"processes":1,"cycles_per_s":1234.5,"p50_ms":0.75,"p99_ms":2.5,"rpcs_per_cycle":2.0},
  {"scenario":"contended","subject":"go-mutex","tasks":1,"processes":8,"cycles_per_s":1234.5,"p50_ms":0.75,"p99_ms":2.5,"rpcs_per_cycle":2.0,"hand_over_p50_ms":0.5,"hand_over_p99_ms":1.0,"handed_over":1.0,"smallest_share":9.0,"largest_share":10.0}
]
"#;
        assert_eq!(json, expected);
        assert!(
            serde_json::from_str::<serde_json::Value>(&rows(&[]).unwrap())
                .unwrap()
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
}
