//! The programs, each in several processes on real servers, and in one in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};

/// A store, and the number of processes that can share it.
struct Store {
    url: String,
    processes: usize,
    _server: Option<Server>,
}

fn stores() -> impl Iterator<Item = Store> {
    let redis = servers::redis(RedisOptions::new().own());
    let etcd = servers::etcd(EtcdOptions::new().own());
    let memory = Store {
        url: "mem://".to_owned(),
        processes: 1,
        _server: None,
    };
    let servers = [redis, etcd].into_iter().flatten().map(|server| Store {
        url: server.url().to_owned(),
        processes: 3,
        _server: Some(server),
    });
    std::iter::once(memory).chain(servers)
}

impl Store {
    /// Runs a program in all processes, and returns what each has printed.
    fn run(&self, program: &str, arguments: impl Fn(usize) -> Vec<String>) -> Vec<String> {
        let start = |at| -> Child {
            Command::new(program)
                .args(arguments(at))
                .env(
                    "LOCK_CONFIG",
                    concat!(env!("CARGO_MANIFEST_DIR"), "/locks.toml"),
                )
                .env("LOCK_URL", &self.url)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let children: Vec<_> = (0..self.processes).map(start).collect();
        let ended = children.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{program} on {}", self.url);
            String::from_utf8(output.stdout).unwrap()
        });
        ended.collect()
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_cron_job_runs_once_in_each_period() {
    for store in stores() {
        let directory = tempfile::tempdir().unwrap();
        let reports = directory.path().join("reports");
        store.run(env!("CARGO_BIN_EXE_cron"), |_| {
            let every = ["--every", "1s", "--periods", "4", "--reports"];
            let every = every.into_iter().map(str::to_owned);
            every.chain([text(&reports)]).collect()
        });
        let reports = fs::read_to_string(&reports).unwrap();
        let words: Vec<Vec<u64>> = reports
            .lines()
            .map(|line| line.split(' ').map(|it| it.parse().unwrap()).collect())
            .collect();
        let periods: BTreeSet<_> = words.iter().map(|it| it[0]).collect();
        assert_eq!(periods.len(), words.len(), "{}: {reports}", store.url);
        assert!(periods.len() >= 3, "{}: {reports}", store.url);
        assert!(
            words.windows(2).all(|it| it[0][1] < it[1][1]),
            "tokens grow: {reports}"
        );
    }
}

#[test]
fn one_process_after_the_other_leads() {
    for store in stores() {
        let said = store.run(env!("CARGO_BIN_EXE_leader"), |at| {
            let steps = ["--steps", "3", "--every", "20ms", "--name"];
            let steps = steps.into_iter().map(str::to_owned);
            steps.chain([format!("node-{at}")]).collect()
        });
        for (at, said) in said.iter().enumerate() {
            assert!(said.contains(&format!("node-{at} leads")), "{said}");
            assert_eq!(said.lines().count(), 4, "{}: {said}", store.url);
        }
    }
}

#[test]
fn each_job_is_done_once() {
    for store in stores() {
        let jobs = tempfile::tempdir().unwrap();
        for job in 0..30 {
            fs::write(jobs.path().join(job.to_string()), "").unwrap();
        }
        let said = store.run(env!("CARGO_BIN_EXE_workers"), |_| vec![text(jobs.path())]);
        let done = said.iter().map(|said| -> u32 {
            let number = said.split(' ').next().unwrap();
            number.parse().unwrap()
        });
        assert_eq!(done.sum::<u32>(), 30, "{}: {said:?}", store.url);
        assert_eq!(fs::read_dir(jobs.path()).unwrap().count(), 0);
    }
}
