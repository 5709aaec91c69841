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
        Subject::{self, Ours, PythonRedisLock, Raw, RedisPy, Rslock},
        counted,
    },
    report::{
        plot::{Axis, Chart, Measure},
        targets::{Bound, Target},
    },
    stores::{Requests, redis::RedisStore},
    subjects::WorkerKind,
    suites::Suite,
};

const NAMES: usize = 10_000;
const SHARE: u64 = 10;

pub(crate) async fn suite(options: &Options) -> Result<Suite> {
    let (programs, left_out) = programs(options).await?;
    Ok(Suite {
        name: "redis",
        store: Box::new(RedisStore::start().await?),
        programs,
        writers: None,
        batch: |_| 1,
        // Whoever takes the lock again before a waiter looks does its share sooner, and then waits for the others.
        share: |key| if key.scenario == Scenario::Contended && key.processes == 1 { SHARE } else { 0 },
        relevant,
        groups: groups(),
        holding: Some(HoldingPlan { names: NAMES, parameters: "?ttl=3s", renewal: "evalsha" }),
        passing: None,
        idling: Some(IdlePlan { parameters: "?ttl=600s", part: "set" }),
        targets: targets(),
        charts: charts(),
        left_out,
    })
}

/// Our locks, and the raw client that does the same, send scripts: what else is counted ran inside of them.
fn relevant(key: &Key, requests: Requests) -> Requests {
    if matches!(key.subject, Ours | Raw) { requests.without("set") } else { requests }
}

async fn programs(options: &Options) -> Result<(BTreeMap<Subject, Program>, Vec<String>)> {
    let workers = [(Ours, WorkerKind::Ours), (Raw, WorkerKind::RedisRaw), (Rslock, WorkerKind::Rslock)];
    let own: Result<BTreeMap<_, _>> = workers.into_iter().map(|(subject, kind)| Ok((subject, cli::own_worker(kind)?))).collect();
    let (mut programs, mut left_out) = (own?, Vec::new());
    // Where scripts/bench.sh installs what Debian does not have.
    let packages = std::path::absolute(options.output.join("python"))?;
    for (subject, module) in [(RedisPy, "redis"), (PythonRedisLock, "redis_lock")] {
        match python_worker(subject, module, &packages).await {
            Some(program) => drop(programs.insert(subject, program)),
            None => left_out.push(format!("{subject}: there is no python3 that has the module {module}")),
        }
    }
    Ok((programs, left_out))
}

async fn python_worker(subject: Subject, module: &str, packages: &Path) -> Option<Program> {
    let named = std::env::var_os("LOCK_TEST_PYTHON_BIN").map(PathBuf::from);
    let environment = vec![("PYTHONPATH".to_owned(), packages.display().to_string())];
    for path in named.into_iter().chain(["python3", "/usr/bin/python3"].map(PathBuf::from)) {
        let mut import = Command::new(&path);
        import.args(["-c", &format!("import redis, {module}")]).envs(environment.iter().cloned()).stdin(Stdio::null());
        if import.stderr(Stdio::null()).status().await.is_ok_and(|status| status.success()) {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/worker.py").display().to_string();
            return Some(Program { path, arguments: vec![script, "--library".to_owned(), subject.to_string()], environment });
        }
    }
    None
}

/// What a target compares is in one group, so that it is measured at about the same time.
fn groups() -> Vec<Group> {
    let own = |tasks, more: &[Key]| {
        let runs = [Ours, Raw, Rslock].map(|subject| Key::uncontended(subject, tasks));
        Group::new(format!("own names, {}", counted(tasks, "task")), runs.into_iter().chain(more.iter().copied()))
    };
    let one = |tasks, subjects: &[Subject]| {
        Group::new(format!("one name, {tasks} tasks"), subjects.iter().map(|subject| Key::contended(*subject, tasks)))
    };
    let all = [Ours, RedisPy, PythonRedisLock, Rslock];
    vec![
        own(1, &[Key::uncontended(RedisPy, 1), Key::uncontended(PythonRedisLock, 1), Key::processes(Ours, 8)]),
        own(16, &[]),
        own(64, &[]),
        one(2, &all),
        one(8, &all),
        one(32, &all),
    ]
}

fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for tasks in [1, 16, 64] {
        let what = format!("uncontended, {}, ours against raw", counted(tasks, "task"));
        targets.push(Target::ratio(what, Bound::AtLeast(0.9), Key::uncontended(Ours, tasks), Key::uncontended(Raw, tasks)));
    }
    let peers =
        [(RedisPy, &[(2, 2.0), (8, 5.0), (32, 10.0)][..]), (PythonRedisLock, &[(8, 2.0), (32, 2.0)]), (Rslock, &[(8, 2.0), (32, 2.0)])];
    for (peer, bounds) in peers {
        for (tasks, least) in bounds {
            let what = format!("one name, {tasks} tasks, ours against {peer}");
            targets.push(Target::ratio(what, Bound::AtLeast(*least), Key::contended(Ours, *tasks), Key::contended(peer, *tasks)));
        }
    }
    for tasks in [8, 32] {
        targets.push(Target::new(format!("one name, {tasks} tasks, p99 of ours against rslock's"), Bound::AtMost(0.1), move |results| {
            Some(results.figures(Key::contended(Ours, tasks))?.p99_ms / results.figures(Key::contended(Rslock, tasks))?.p99_ms)
        }));
    }
    let what = "one name, 8 processes, against our single-task uncontended rate";
    targets.push(Target::ratio(what, Bound::AtLeast(0.5), Key::processes(Ours, 8), Key::uncontended(Ours, 1)));
    targets.push(Target::new("one name, 32 tasks, longest wait against median wait", Bound::AtMost(10.0), |results| {
        let figures = results.figures(Key::contended(Ours, 32))?;
        (figures.median_wait_ms > 0.0).then(|| figures.longest_wait_ms / figures.median_wait_ms)
    }));
    targets.push(Target::new("10,000 names held: bytes per guard", Bound::AtMost(2048.0), |results| {
        Some(results.held(NAMES)?.bytes_per_guard)
    }));
    targets.push(Target::new("10,000 names held: reads of the server from its sockets for one renewal", Bound::AtMost(0.1), |results| {
        let held = results.held(NAMES)?;
        Some(held.reads_per_s? / held.renewals_per_s)
    }));
    targets.push(Target::new("commands per second of one idle waiter", Bound::AtMost(1.0), |results| {
        Some(results.idle.as_ref()?.messages_per_s)
    }));
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
    use crate::{report::tests, suites::Results};

    #[test]
    fn every_target_is_measured_and_nothing_twice() {
        let rows: Vec<_> = groups().into_iter().flat_map(|group| group.runs).map(tests::row).collect();
        let keys: std::collections::BTreeSet<Key> = rows.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), rows.len());
        let results = Results { rows, held: [1, NAMES].map(tests::held).to_vec(), passed: None, idle: Some(tests::idle()) };
        for target in targets() {
            assert!(target.measured(&results).is_some(), "{}", target.what);
        }
    }
}
