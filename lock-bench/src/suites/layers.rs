use std::collections::BTreeMap;

use crate::{
    Result, cli,
    plan::{
        Group, Key, Scenario,
        Subject::{self, Layered, LayeredListened, Ours, Unlayered},
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::redis::RedisStore,
    subjects::WorkerKind,
    suites::Suite,
};

const SUBJECTS: [Subject; 4] = [Ours, Unlayered, Layered, LayeredListened];

/// Share of the cycles that are left under traces and metrics.
const LEAST: f64 = 0.95;

pub(crate) async fn suite() -> Result<Suite> {
    let workers = [
        (Ours, WorkerKind::Ours),
        (Unlayered, WorkerKind::Unlayered),
        (Layered, WorkerKind::Layered),
        (LayeredListened, WorkerKind::LayeredListened),
    ];
    let programs: Result<BTreeMap<_, _>> = workers
        .into_iter()
        .map(|(subject, kind)| Ok((subject, cli::own_worker(kind)?)))
        .collect();
    Ok(Suite {
        name: "layers",
        store: Box::new(RedisStore::start().await?),
        programs: programs?,
        writers: None,
        batch: |_| 1,
        share: |_| 0,
        relevant: |_, requests| requests.without("set"),
        groups: groups(),
        holding: None,
        passing: None,
        idling: None,
        targets: targets(),
        charts: charts(),
        left_out: Vec::new(),
    })
}

fn groups() -> Vec<Group> {
    let runs = SUBJECTS.map(|subject| Key::uncontended(subject, 1));
    vec![Group::new("own names, 1 task", runs)]
}

fn targets() -> Vec<Target> {
    let compared = [
        ("an empty stack", Unlayered, 0.98),
        ("trace and metrics, nobody listens", Layered, LEAST),
        (
            "trace and metrics, to a log and Prometheus",
            LayeredListened,
            LEAST,
        ),
    ];
    let target = |(what, subject, least)| {
        Target::ratio(
            format!("{what}, against none"),
            Bound::AtLeast(least),
            Key::uncontended(subject, 1),
            Key::uncontended(Ours, 1),
        )
    };
    compared.map(target).into()
}

fn charts() -> Vec<Chart> {
    vec![Chart {
        file: "layers-uncontended",
        title: "Layers on Redis, own names: cycles per second",
        axis: Axis::Tasks,
        measure: Measure::Throughput,
        shows: |key| key.scenario == Scenario::Uncontended,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::tests, suites::Results};

    #[test]
    fn every_target_is_measured_and_nothing_twice() {
        let runs = groups().into_iter().flat_map(|group| group.runs);
        let rows: Vec<_> = runs.map(tests::row).collect();
        let keys: std::collections::BTreeSet<Key> = rows.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), rows.len());
        let results = Results {
            rows,
            ..Results::default()
        };
        for target in targets() {
            assert!(target.measured(&results).is_some(), "{}", target.what);
        }
    }
}
