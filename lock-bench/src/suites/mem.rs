use std::collections::BTreeMap;

use crate::{
    Result, cli,
    passing::PassingPlan,
    plan::{
        Group, Key, Scenario,
        Subject::{Lockable, Ours, TokioMutex},
        counted,
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::process::ProcessStore,
    subjects::WorkerKind,
    suites::Suite,
};

const SUBJECTS: [crate::plan::Subject; 3] = [Ours, TokioMutex, Lockable];

pub(crate) fn suite() -> Result<Suite> {
    let workers = [
        (Ours, WorkerKind::Ours),
        (TokioMutex, WorkerKind::TokioMutex),
        (Lockable, WorkerKind::Lockable),
    ];
    let programs: Result<BTreeMap<_, _>> = workers
        .into_iter()
        .map(|(subject, kind)| Ok((subject, cli::own_worker(kind)?)))
        .collect();
    Ok(Suite {
        name: "mem",
        store: Box::new(ProcessStore),
        programs: programs?,
        writers: None,
        // Taking a free lock takes less time than reading the clock.
        batch: |key| {
            if key.scenario == Scenario::Uncontended {
                64
            } else {
                1
            }
        },
        share: |_| 0,
        relevant: |_, requests| requests,
        groups: groups(),
        holding: None,
        passing: Some(PassingPlan { names: 1_000_000 }),
        idling: None,
        targets: targets(),
        charts: charts(),
        left_out: Vec::new(),
    })
}

fn groups() -> Vec<Group> {
    let own = [1, 16, 64].map(|tasks| {
        let runs = SUBJECTS.map(|subject| Key::uncontended(subject, tasks));
        Group::new(format!("own names, {}", counted(tasks, "task")), runs)
    });
    let one = [2, 8, 64].map(|tasks| {
        let runs = SUBJECTS.map(|subject| Key::contended(subject, tasks));
        Group::new(format!("one name, {tasks} tasks"), runs)
    });
    own.into_iter().chain(one).collect()
}

fn targets() -> Vec<Target> {
    let passed = |what: &str, bound, figure: fn(&crate::passing::Passed) -> f64| {
        Target::new(what, bound, move |results| {
            results.passed.as_ref().map(figure)
        })
    };
    vec![
        Target::ratio(
            "own name, 1 task, ours against tokio's Mutex behind a keyed map",
            Bound::AtLeast(0.3),
            Key::uncontended(Ours, 1),
            Key::uncontended(TokioMutex, 1),
        ),
        passed(
            "1,000,000 names locked once: bytes left per name",
            Bound::AtMost(1.0),
            |passed| passed.bytes_left_per_name,
        ),
        passed(
            "1,000,000 names locked once: time of the second half against the first",
            Bound::AtMost(1.2),
            |passed| passed.second_half_seconds / passed.first_half_seconds,
        ),
    ]
}

fn charts() -> Vec<Chart> {
    vec![
        Chart {
            file: "mem-uncontended",
            title: "memory, own names: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: |key| key.scenario == Scenario::Uncontended,
        },
        Chart {
            file: "mem-contended",
            title: "memory, one name: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: |key| key.scenario == Scenario::Contended,
        },
    ]
}
