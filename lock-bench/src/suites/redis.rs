use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::{
    Result,
    cli::{self, Options},
    fleet::Program,
    holding::HoldingPlan,
    idling::IdlePlan,
    plan::{
        Group, Key, Scenario,
        Subject::{self, Ours, OursApart, PythonRedisLock, Raw, RedisPy, Rslock},
        counted,
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::{Requests, redis::RedisStore},
    subjects::WorkerKind,
    suites::{Results, Suite},
};

const NAMES: usize = 10_000;
const SHARE: u64 = 10;
const CROWD: usize = 1000;

pub(crate) async fn suite(options: &Options) -> Result<Suite> {
    let (programs, left_out) = programs(options).await?;
    Ok(Suite {
        name: "redis",
        store: Box::new(RedisStore::start().await?),
        programs,
        writers: None,
        batch: |_| 1,
        // A task that takes the lock again before a waiter polls does its share sooner, and then
        // waits for the others.
        share: |key| {
            let few = key.processes == 1 && key.tasks < CROWD;
            if key.scenario == Scenario::Contended && few {
                SHARE
            } else {
                0
            }
        },
        relevant,
        groups: groups(),
        holding: Some(HoldingPlan {
            names: NAMES,
            parameters: "?ttl=3s",
            renewal: "evalsha",
        }),
        passing: None,
        idling: Some(IdlePlan {
            parameters: "?ttl=600s",
            part: "set",
        }),
        targets: targets(),
        charts: charts(),
        left_out,
    })
}

/// Our locks, and the raw client that does the same, send scripts: the other commands that are
/// counted ran inside of these.
fn relevant(key: &Key, requests: Requests) -> Requests {
    if matches!(key.subject, Ours | OursApart | Raw) {
        requests.without("set")
    } else {
        requests
    }
}

async fn programs(options: &Options) -> Result<(BTreeMap<Subject, Program>, Vec<String>)> {
    let workers = [
        (Ours, WorkerKind::Ours),
        (OursApart, WorkerKind::OursApart),
        (Raw, WorkerKind::RedisRaw),
        (Rslock, WorkerKind::Rslock),
    ];
    let own: Result<BTreeMap<_, _>> = workers
        .into_iter()
        .map(|(subject, kind)| Ok((subject, cli::own_worker(kind)?)))
        .collect();
    let mut programs = own?;
    let mut left_out = Vec::new();
    // The directory into which scripts/bench.sh installs what Debian does not have.
    let packages = std::path::absolute(options.output.join("python"))?;
    for (subject, module) in [(RedisPy, "redis"), (PythonRedisLock, "redis_lock")] {
        match python_worker(subject, module, &packages).await {
            Some(program) => drop(programs.insert(subject, program)),
            None => left_out.push(format!(
                "{subject}: there is no python3 that has the module {module}"
            )),
        }
    }
    Ok((programs, left_out))
}

async fn python_worker(subject: Subject, module: &str, packages: &Path) -> Option<Program> {
    let named = std::env::var_os("LOCK_TEST_PYTHON_BIN").map(PathBuf::from);
    let environment = vec![("PYTHONPATH".to_owned(), packages.display().to_string())];
    for path in named
        .into_iter()
        .chain(["python3", "/usr/bin/python3"].map(PathBuf::from))
    {
        let mut import = Command::new(&path);
        import
            .args(["-c", &format!("import redis, {module}")])
            .envs(environment.iter().cloned())
            .stdin(Stdio::null());
        if import
            .stderr(Stdio::null())
            .status()
            .await
            .is_ok_and(|status| status.success())
        {
            let script = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("python/worker.py")
                .display()
                .to_string();
            return Some(Program {
                path,
                arguments: vec![script, "--library".to_owned(), subject.to_string()],
                environment,
            });
        }
    }
    None
}

/// Builds the groups. All that a target compares is in one group, so that it is measured at about
/// the same time.
fn groups() -> Vec<Group> {
    let own = |tasks| {
        Group::new(
            format!("own names, {tasks} tasks"),
            [Ours, Raw, Rslock].map(|subject| Key::uncontended(subject, tasks)),
        )
    };
    let one = |tasks, subjects: &[Subject]| {
        Group::new(
            format!("one name, {tasks} tasks"),
            subjects
                .iter()
                .map(|subject| Key::contended(*subject, tasks)),
        )
    };
    let all = [Ours, RedisPy, PythonRedisLock, Rslock];
    // A fleet's targets are ratios to 8 processes, and that one's is to a single task.
    let single =
        [Ours, Raw, Rslock, RedisPy, PythonRedisLock].map(|subject| Key::uncontended(subject, 1));
    let fleets = [8, 32, 64, 128].map(|processes| Key::processes(Ours, processes));
    let peers = [8, 32, 64].map(|processes| Key::processes(PythonRedisLock, processes));
    let mut groups = vec![
        Group::new(
            "own names, 1 task; one name, 8 to 128 processes",
            single.into_iter().chain(fleets).chain(peers),
        ),
        own(16),
        own(64),
        one(2, &all),
        one(8, &all),
        one(32, &all),
        Group::new("one name, 1000 waiters", crowds()),
    ];
    let of = |processes: usize, subjects: &[Subject]| {
        let keys = subjects
            .iter()
            .map(move |subject| Key::processes(*subject, processes));
        keys.collect::<Vec<_>>()
    };
    for processes in [8, 32, 64] {
        groups.push(Group::new(
            format!("one name, equal shares, {processes} processes"),
            of(processes, &all).into_iter().map(Key::with_equal_shares),
        ));
    }
    for processes in [8, 64] {
        groups.push(Group::new(
            format!("one name held for 5 ms, {processes} processes"),
            of(processes, &all).into_iter().map(Key::with_hold),
        ));
    }
    groups
}

/// Few and many waiters: tasks of one client, and clients.
fn crowds() -> [Key; 3] {
    [
        Key::contended(Ours, CROWD),
        Key::contended(OursApart, 8),
        Key::contended(OursApart, CROWD),
    ]
}

fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for tasks in [1, 16, 64] {
        let what = format!("uncontended, {}, ours against raw", counted(tasks, "task"));
        targets.push(Target::ratio(
            what,
            Bound::AtLeast(0.9),
            Key::uncontended(Ours, tasks),
            Key::uncontended(Raw, tasks),
        ));
    }
    let peers = [
        (RedisPy, &[(2, 2.0), (8, 5.0), (32, 10.0)][..]),
        (PythonRedisLock, &[(8, 2.0), (32, 2.0)]),
        (Rslock, &[(8, 2.0), (32, 2.0)]),
    ];
    for (peer, bounds) in peers {
        for (tasks, least) in bounds {
            let what = format!("one name, {tasks} tasks, ours against {peer}");
            targets.push(Target::ratio(
                what,
                Bound::AtLeast(*least),
                Key::contended(Ours, *tasks),
                Key::contended(peer, *tasks),
            ));
        }
    }
    for tasks in [8, 32] {
        targets.push(Target::new(
            format!("one name, {tasks} tasks, p99 of ours against rslock's"),
            Bound::AtMost(0.1),
            move |results| {
                Some(
                    results.figures(Key::contended(Ours, tasks))?.p99_ms
                        / results.figures(Key::contended(Rslock, tasks))?.p99_ms,
                )
            },
        ));
    }
    for (processes, least) in [(32, 0.8), (64, 0.7), (128, 0.6)] {
        targets.push(Target::ratio(
            format!("one name, {processes} processes, against 8"),
            Bound::AtLeast(least),
            Key::processes(Ours, processes),
            Key::processes(Ours, 8),
        ));
    }
    targets.extend(fleet_targets());
    targets.extend(crowd_targets());
    let what = "one name, 8 processes, against our single-task uncontended rate";
    targets.push(Target::ratio(
        what,
        Bound::AtLeast(0.5),
        Key::processes(Ours, 8),
        Key::uncontended(Ours, 1),
    ));
    targets.push(Target::new(
        "one name, 32 tasks, longest wait against median wait",
        Bound::AtMost(10.0),
        |results| {
            let figures = results.figures(Key::contended(Ours, 32))?;
            (figures.median_wait_ms > 0.0).then(|| figures.longest_wait_ms / figures.median_wait_ms)
        },
    ));
    targets.push(Target::new(
        "10,000 names held: bytes per guard",
        Bound::AtMost(2048.0),
        |results| Some(results.held(NAMES)?.bytes_per_guard),
    ));
    targets.push(Target::new(
        "10,000 names held: reads of the server from its sockets for one renewal",
        Bound::AtMost(0.1),
        |results| {
            let held = results.held(NAMES)?;
            Some(held.reads_per_s? / held.renewals_per_s)
        },
    ));
    targets.push(Target::new(
        "commands per second of one idle waiter",
        Bound::AtMost(1.0),
        |results| Some(results.idle.as_ref()?.messages_per_s),
    ));
    targets
}

/// Clients that are processes, beside other libraries and each other.
fn fleet_targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for processes in [8, 32, 64] {
        let ours = Key::processes(Ours, processes);
        let theirs = Key::processes(PythonRedisLock, processes);
        for (what, of, against) in [
            ("free for all", ours, theirs),
            (
                "equal shares",
                ours.with_equal_shares(),
                theirs.with_equal_shares(),
            ),
        ] {
            let what =
                format!("one name, {processes} processes, {what}, ours against {PythonRedisLock}");
            targets.push(Target::ratio(what, Bound::AtLeast(1.5), of, against));
        }
    }
    let fleets = [8, 32, 64, 128].map(|processes| Key::processes(Ours, processes));
    for fleet in fleets {
        targets.push(Target::new(
            format!("{fleet}: commands per cycle, as reads from sockets"),
            Bound::AtMost(5.0),
            move |results| results.figures(fleet)?.reads_per_cycle,
        ));
    }
    targets.push(Target::new(
        "one name, 8 to 128 processes: most commands per cycle against fewest",
        Bound::AtMost(1.1),
        move |results| {
            let reads: Option<Vec<_>> = fleets
                .iter()
                .map(|fleet| results.figures(*fleet)?.reads_per_cycle)
                .collect();
            let reads = reads?;
            let most = reads.iter().copied().fold(0.0, f64::max);
            Some(most / reads.into_iter().fold(f64::INFINITY, f64::min))
        },
    ));
    let fleet = Key::processes(Ours, 64);
    for key in [fleet, fleet.with_hold()] {
        targets.push(Target::new(
            format!("{key}: p99 wait against median wait"),
            Bound::AtMost(3.0),
            move |results| results.figures(key)?.waits_apart(),
        ));
        targets.push(Target::unfairness(Bound::AtMost(1.5), key));
    }
    let hand_over = |results: &Results, subject| {
        let figures = results.figures(Key::processes(subject, 64).with_hold())?;
        Some(figures.passage?.hand_over_p50_ms)
    };
    targets.push(Target::new(
        "held for 5 ms, 64 processes, p50 of a hand-over against the raw client's cycle of two round trips",
        Bound::AtMost(1.0),
        move |results| {
            Some(hand_over(results, Ours)? / results.figures(Key::uncontended(Raw, 1))?.p50_ms)
        },
    ));
    targets.push(Target::new(
        "the same against python-redis-lock's",
        Bound::AtMost(1.0),
        move |results| Some(hand_over(results, Ours)? / hand_over(results, PythonRedisLock)?),
    ));
    targets
}

fn crowd_targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for (what, few, many) in [
        (
            "tasks of one client",
            Key::contended(Ours, 8),
            Key::contended(Ours, CROWD),
        ),
        (
            "clients",
            Key::contended(OursApart, 8),
            Key::contended(OursApart, CROWD),
        ),
    ] {
        let rate = format!("one name, 1,000 {what}, against 8");
        targets.push(Target::ratio(rate, Bound::AtLeast(0.8), many, few));
        targets.push(Target::new(
            format!("one name, 1,000 {what}: the server's CPU per cycle against 8"),
            Bound::AtMost(1.2),
            move |results| {
                let cpu = |key| results.figures(key)?.cpu_us_per_cycle;
                Some(cpu(many)? / cpu(few)?)
            },
        ));
    }
    targets
}

fn charts() -> Vec<Chart> {
    let one_process = |key: &Key| key.scenario == Scenario::Contended && key.processes == 1;
    vec![
        Chart {
            file: "redis-uncontended",
            title: "Redis, own names: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: |key| key.scenario == Scenario::Uncontended,
        },
        Chart {
            file: "redis-contended-tasks",
            title: "Redis, one name, tasks of one process: cycles per second",
            axis: Axis::Tasks,
            measure: Measure::Throughput,
            shows: one_process,
        },
        Chart {
            file: "redis-contended-p99",
            title: "Redis, one name, tasks of one process: p99 of a cycle in ms, logarithmic",
            axis: Axis::Tasks,
            measure: Measure::P99,
            shows: one_process,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests;

    #[test]
    fn every_target_is_measured_and_nothing_twice() {
        let rows: Vec<_> = groups()
            .into_iter()
            .flat_map(|group| group.runs)
            .map(tests::row)
            .collect();
        let keys: std::collections::BTreeSet<Key> = rows.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), rows.len());
        let results = Results {
            rows,
            held: [1, NAMES].map(tests::held).to_vec(),
            passed: None,
            idle: Some(tests::idle()),
        };
        for target in targets() {
            assert!(target.measured(&results).is_some(), "{}", target.what);
        }
    }
}
