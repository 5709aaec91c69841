use std::collections::BTreeMap;

use crate::{
    Result, cli,
    plan::{
        Group, Key, Scenario,
        Subject::{self, MigratingDual, MigratingFinal, MigratingSource, OnSource, OnTarget},
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::migrate::MigrateStore,
    subjects::WorkerKind,
    suites::{Results, Suite},
};

const WORKERS: [(Subject, WorkerKind); 5] = [
    (OnSource, WorkerKind::OnSource),
    (OnTarget, WorkerKind::OnTarget),
    (MigratingSource, WorkerKind::MigratingSource),
    (MigratingDual, WorkerKind::MigratingDual),
    (MigratingFinal, WorkerKind::MigratingFinal),
];

pub(crate) async fn suite() -> Result<Suite> {
    let programs: Result<BTreeMap<_, _>> = WORKERS
        .into_iter()
        .map(|(subject, kind)| Ok((subject, cli::own_worker(kind)?)))
        .collect();
    Ok(Suite {
        name: "migrate",
        store: Box::new(MigrateStore::start().await?),
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
    let runs = WORKERS.map(|(subject, _)| Key::uncontended(subject, 1));
    vec![Group::new("own names, 1 task", runs)]
}

/// Seconds of one cycle.
fn cycle(results: &Results, subject: Subject) -> Option<f64> {
    let per_s = results.figures(Key::uncontended(subject, 1))?.cycles_per_s;
    (per_s > 0.0).then(|| 1.0 / per_s)
}

fn targets() -> Vec<Target> {
    let costs = |what, most, of: Subject, against: &'static [Subject]| {
        Target::new(what, Bound::AtMost(most), move |results: &Results| {
            let parts: Option<Vec<_>> = against.iter().map(|it| cycle(results, *it)).collect();
            Some(cycle(results, of)? / parts?.iter().sum::<f64>())
        })
    };
    vec![
        costs(
            "source-only, cycle against the source's own",
            1.05,
            MigratingSource,
            &[OnSource],
        ),
        costs(
            "dual, cycle against the sum of both stores' own",
            1.15,
            MigratingDual,
            &[OnSource, OnTarget],
        ),
        costs(
            "final, cycle against the target's own",
            1.02,
            MigratingFinal,
            &[OnTarget],
        ),
    ]
}

fn charts() -> Vec<Chart> {
    vec![Chart {
        file: "migrate-uncontended",
        title: "A migration from Redis to etcd, own names: cycles per second",
        axis: Axis::Tasks,
        measure: Measure::Throughput,
        shows: |key| key.scenario == Scenario::Uncontended,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests;

    #[test]
    fn every_target_is_measured_and_both_stores_count() {
        let runs = groups().into_iter().flat_map(|group| group.runs);
        let results = Results {
            rows: runs.map(tests::row).collect(),
            ..Results::default()
        };
        let measured: Vec<_> = targets().iter().map(|it| it.measured(&results)).collect();
        assert_eq!(measured, [Some(1.0), Some(0.5), Some(1.0)]);
    }
}
