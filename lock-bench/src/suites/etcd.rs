use std::collections::BTreeMap;

use crate::{
    Result,
    cli::{self, Options},
    fleet::Program,
    holding::HoldingPlan,
    measure::Figures,
    plan::{
        Group, Key, Scenario,
        Subject::{self, GoMutex, Ours, Raw},
        counted,
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::{Requests, etcd::EtcdStore},
    subjects::{WorkerKind, go_mutex},
    suites::{Results, Suite},
};

const NAMES: usize = 10_000;

pub(crate) async fn suite(options: &Options) -> Result<Suite> {
    let (programs, left_out) = programs(options).await?;
    Ok(Suite {
        name: "etcd",
        store: Box::new(EtcdStore::start().await?),
        programs,
        writers: Some(cli::own_worker(WorkerKind::EtcdWriters)?),
        batch: |_| 1,
        share: |_| 0,
        relevant,
        groups: groups(),
        holding: Some(HoldingPlan {
            names: NAMES,
            parameters: "?ttl=3s",
            renewal: "LeaseKeepAlive",
        }),
        passing: None,
        idling: None,
        targets: targets(),
        charts: charts(),
        left_out,
    })
}

/// The writers that run beside the measurement only put, and locks never do: they write in
/// transactions.
fn relevant(key: &Key, requests: Requests) -> Requests {
    if key.scenario == Scenario::ContendedWithWriters {
        requests.without("Put")
    } else {
        requests
    }
}

async fn programs(options: &Options) -> Result<(BTreeMap<Subject, Program>, Vec<String>)> {
    let own = [
        (Ours, cli::own_worker(WorkerKind::Ours)?),
        (Raw, cli::own_worker(WorkerKind::EtcdRaw)?),
    ];
    let mut programs = BTreeMap::from(own);
    std::fs::create_dir_all(&options.output)?;
    let mut left_out = Vec::new();
    match go_mutex::build(&std::path::absolute(&options.output)?).await {
        Ok(program) => drop(programs.insert(GoMutex, program)),
        Err(reason) => left_out.push(reason),
    }
    Ok((programs, left_out))
}

/// Builds the groups. All that a target compares is in one group, so that it is measured at about
/// the same time.
fn groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for tasks in [1, 16, 64] {
        let runs = [Ours, Raw, GoMutex].map(|subject| Key::uncontended(subject, tasks));
        groups.push(Group::new(
            format!("own names, {}", counted(tasks, "task")),
            runs,
        ));
    }
    let one_name = |tasks| {
        [Ours, GoMutex]
            .map(|subject| Key::contended(subject, tasks))
            .to_vec()
    };
    let with = |mut runs: Vec<Key>, more: Key| {
        runs.push(more);
        runs
    };
    groups.push(Group::new(
        "one name, 2 tasks, idle and with writers",
        with(one_name(2), Key::contended(Ours, 2).with_writers()),
    ));
    groups.push(Group::new(
        "one name, 8 and 1000 tasks",
        with(one_name(8), Key::contended(Ours, 1000)),
    ));
    groups.push(Group::new("one name, 64 tasks", one_name(64)));
    let processes = [(Ours, 8), (GoMutex, 8), (Ours, 64), (Ours, 128)];
    groups.push(Group::new(
        "one name, 8 to 128 processes",
        processes.map(|(subject, count)| Key::processes(subject, count)),
    ));
    for processes in [8, 64] {
        groups.push(Group::new(
            format!("one name held for 5 ms, {processes} processes"),
            [Ours, GoMutex].map(|subject| Key::processes(subject, processes).with_hold()),
        ));
    }
    groups
}

fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for tasks in [1, 16, 64] {
        let what = format!("uncontended, {}, ours against raw", counted(tasks, "task"));
        targets.push(Target::ratio(
            what,
            Bound::AtLeast(0.95),
            Key::uncontended(Ours, tasks),
            Key::uncontended(Raw, tasks),
        ));
    }
    for (tasks, least) in [(2, 8.0), (8, 15.0), (64, 2.5)] {
        let what = format!("one name, {tasks} tasks, ours against Go's Mutex");
        targets.push(Target::ratio(
            what,
            Bound::AtLeast(least),
            Key::contended(Ours, tasks),
            Key::contended(GoMutex, tasks),
        ));
    }
    let what = "one name, 8 processes, ours against Go's Mutex";
    targets.push(Target::ratio(
        what,
        Bound::AtLeast(15.0),
        Key::processes(Ours, 8),
        Key::processes(GoMutex, 8),
    ));
    for (processes, least) in [(64, 0.7), (128, 0.6)] {
        let what = format!("one name, {processes} processes, against ours at 8 processes");
        targets.push(Target::ratio(
            what,
            Bound::AtLeast(least),
            Key::processes(Ours, processes),
            Key::processes(Ours, 8),
        ));
    }
    for processes in [8, 64] {
        targets.push(Target::unfairness(
            Bound::AtMost(1.5),
            Key::processes(Ours, processes).with_hold(),
        ));
    }
    let what = "one name, 1,000 tasks, against ours at 8 tasks";
    targets.push(Target::ratio(
        what,
        Bound::AtLeast(0.7),
        Key::contended(Ours, 1000),
        Key::contended(Ours, 8),
    ));
    targets.push(Target::new(
        "RPCs per contended cycle, average of ours",
        Bound::AtMost(2.5),
        |results| average_contended(results, |figures| figures.rpcs_per_cycle),
    ));
    targets.push(Target::new(
        "the same, with every message on a stream counted",
        Bound::AtMost(2.5),
        |results| average_contended(results, |figures| Some(figures.messages_per_cycle.sum())),
    ));
    let what = "8 writers on other keys, 2 tasks contending, against idle";
    targets.push(Target::ratio(
        what,
        Bound::AtLeast(0.6),
        Key::contended(Ours, 2).with_writers(),
        Key::contended(Ours, 2),
    ));
    targets.extend(holding_targets());
    targets
}

fn average_contended(results: &Results, figure: fn(&Figures) -> Option<f64>) -> Option<f64> {
    let contended = results
        .rows
        .iter()
        .filter(|row| row.key.subject == Ours && row.key.scenario != Scenario::Uncontended);
    let values: Vec<_> = contended.filter_map(|row| figure(&row.figures)).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn holding_targets() -> [Target; 3] {
    [
        Target::new("10,000 names held: leases", Bound::AtMost(1.0), |results| {
            results.held(NAMES)?.leases
        }),
        // Whole renewals are counted, about nine in a window, so one more in either window is no
        // difference.
        Target::new(
            "10,000 names held: keep-alive rate against one name",
            Bound::AtMost(1.3),
            |results| {
                let many = results.held(NAMES)?.renewals_per_s;
                let one = results.held(1)?.renewals_per_s;
                (one > 0.0).then(|| many / one)
            },
        ),
        Target::new(
            "10,000 names held: bytes per guard",
            Bound::AtMost(2048.0),
            |results| Some(results.held(NAMES)?.bytes_per_guard),
        ),
    ]
}

fn charts() -> Vec<Chart> {
    let one_process =
        |key: &Key| key.scenario == Scenario::Contended && key.processes == 1 && key.tasks > 1;
    vec![
        Chart {
            file: "etcd-uncontended",
            title: "etcd, own names: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: |key| key.scenario == Scenario::Uncontended,
        },
        Chart {
            file: "etcd-contended-tasks",
            title: "etcd, one name, tasks of one process: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: one_process,
        },
        Chart {
            file: "etcd-contended-processes",
            title: "etcd, one name, processes: cycles per second",
            axis: Axis::Processes,
            measure: Measure::Throughput,
            shows: |key| key.scenario == Scenario::Contended && key.tasks == 1,
        },
        Chart {
            file: "etcd-contended-p99",
            title: "etcd, one name, tasks of one process: p99 of a cycle in ms, logarithmic",
            axis: Axis::Tasks,
            measure: Measure::P99,
            shows: one_process,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::Counts;

    #[test]
    fn the_writers_requests_are_not_the_locks() {
        let counts = Counts([("Txn".to_owned(), 10.0), ("Put".to_owned(), 100.0)].into());
        let requests = Requests {
            reads: None,
            cpu_s: None,
            calls: counts.clone(),
            messages: counts,
        };
        let idle = Key::contended(Ours, 2);
        assert_eq!(
            relevant(&idle.with_writers(), requests.clone()).calls.sum(),
            10.0
        );
        assert_eq!(relevant(&idle, requests).messages.sum(), 110.0);
    }

    #[test]
    fn nothing_is_measured_twice() {
        let mut keys: Vec<Key> = groups().into_iter().flat_map(|group| group.runs).collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn every_target_is_measured() {
        let rows = groups()
            .into_iter()
            .flat_map(|group| group.runs)
            .map(crate::report::tests::row)
            .collect();
        let held = [1, NAMES].map(crate::report::tests::held).to_vec();
        let results = Results {
            rows,
            held,
            passed: None,
            idle: None,
        };
        for target in targets() {
            assert!(target.measured(&results).is_some(), "{}", target.what);
        }
    }
}
