//! Programs that end while they hold locks: the next run must not wait for their leases.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![cfg(all(unix, any(feature = "etcd", feature = "redis")))]

mod common;

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use common::Server;
use polylock::{
    AcquireOptions, DistributedLock, DistributedLockExt, LockGuard, backend::EXIT_LIMIT,
};
use tokio::runtime::{Builder, Runtime};

/// Far longer than any of these tests takes.
const TTL: Duration = Duration::from_secs(60);
/// Time that a loaded machine adds.
const SLACK: Duration = Duration::from_millis(1500);

const URL: &str = "LOCK_TEST_EXIT_URL";
const RUNTIME: &str = "LOCK_TEST_EXIT_RUNTIME";
const HELD_BY: &str = "LOCK_TEST_EXIT_HELD_BY";
const COUNT: &str = "LOCK_TEST_EXIT_COUNT";

/// The program: takes locks, and ends when it is told to, without releasing them.
#[test]
#[ignore = "is run by the other tests, in a process of its own"]
fn program() {
    let Ok(url) = env::var(URL) else { return };
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let count = env::var(COUNT).unwrap().parse().unwrap();
    let held_by = env::var(HELD_BY).unwrap();
    let runtime = match env::var(RUNTIME).unwrap().as_str() {
        "current-thread" => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap(),
    };
    let outlives = match held_by.as_str() {
        "main" => runtime.block_on(async {
            let (_locks, _guards) = take(&url, count).await;
            wait_to_be_told();
            Vec::new()
        }),
        "tasks" => runtime.block_on(async {
            let (_locks, guards) = take(&url, count).await;
            for guard in guards {
                tokio::spawn(async move { guard.lost().await });
            }
            tokio::task::yield_now().await;
            wait_to_be_told();
            Vec::new()
        }),
        "nobody" => {
            let (_locks, guards) = runtime.block_on(take(&url, count));
            wait_to_be_told();
            guards
        }
        _ => unreachable!(),
    };
    drop(runtime);
    drop(outlives);
}

async fn take(url: &str, count: usize) -> (impl DistributedLock, Vec<LockGuard>) {
    let locks = polylock::connect(url).await.unwrap();
    let mut guards = Vec::new();
    for number in 0..count {
        guards.push(
            locks
                .acquire_with(&name(number), AcquireOptions::new().with_ttl(TTL))
                .await
                .unwrap(),
        );
    }
    (locks, guards)
}

fn wait_to_be_told() {
    println!("\nholding");
    let _ = std::io::stdin().read(&mut [0]);
}

fn name(number: usize) -> polylock::LockName {
    format!("held/{number}").parse().unwrap()
}

/// A run of the program.
struct Run {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Run {
    fn start(url: &str, runtime: &str, held_by: &str, count: usize) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["program", "--exact", "--ignored", "--nocapture"])
            .envs([
                (URL, url),
                (RUNTIME, runtime),
                (HELD_BY, held_by),
                (COUNT, &count.to_string()),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "holding" {
            line.clear();
            assert_ne!(
                stdout.read_line(&mut line).unwrap(),
                0,
                "the program ended before it held its locks"
            );
        }
        Self {
            process,
            stdin,
            stdout,
        }
    }

    /// Lets it end; returns the time that took, and its log.
    fn end(mut self) -> (Duration, String) {
        let start = Instant::now();
        self.stdin.write_all(b"\n").unwrap();
        self.stdout.read_to_end(&mut Vec::new()).unwrap();
        let took = start.elapsed();
        let logged = self.process.wait_with_output().unwrap();
        assert!(logged.status.success(), "{logged:?}");
        (took, String::from_utf8(logged.stderr).unwrap())
    }
}

/// Number of locks that the next run gets at once.
fn free(url: &str, count: usize) -> usize {
    Runtime::new().unwrap().block_on(async {
        let locks = polylock::connect(url).await.unwrap();
        let mut free = 0;
        for number in 0..count {
            if let Some(guard) = locks.try_acquire(name(number)).await.unwrap() {
                guard.release().await.unwrap();
                free += 1;
            }
        }
        locks.shutdown().await.unwrap();
        free
    })
}

fn the_next_run_gets_what_the_last_one_held(server: &Server) {
    for parameters in ["", "?background_thread=true"] {
        let url = format!("{}{parameters}", server.url());
        for runtime in ["current-thread", "multi-thread"] {
            for (held_by, count) in [("main", 1), ("main", 100), ("tasks", 100), ("nobody", 3)] {
                let (took, logged) = Run::start(&url, runtime, held_by, count).end();
                let free = free(server.url(), count);
                assert_eq!(free, count, "{url}, {runtime}, held by {held_by}: {logged}");
                assert!(
                    took < EXIT_LIMIT + SLACK,
                    "{url}, {runtime}, held by {held_by}: {took:?}, {logged}"
                );
            }
        }
    }
}

fn a_store_that_is_gone_does_not_hold_up_the_end(
    server: impl Fn() -> Option<Server>,
    silence: impl Fn(&mut Server) -> bool,
) {
    for parameters in ["", "?background_thread=true"] {
        for held_by in ["main", "tasks"] {
            let Some(mut server) = server() else { return };
            let run = Run::start(
                &format!("{}{parameters}", server.url()),
                "multi-thread",
                held_by,
                20,
            );
            if !silence(&mut server) {
                return;
            }
            let (took, logged) = run.end();
            assert!(
                took < EXIT_LIMIT + SLACK,
                "{parameters}, held by {held_by}: {took:?}, {logged}"
            );
            assert!(
                logged.contains("WARN") && logged.contains("`held/"),
                "{parameters}, held by {held_by}: {logged}"
            );
        }
    }
}

fn what_is_not_to_be_released_is_named(server: &Server) {
    let url = format!("{}?release_at_exit=false", server.url());
    let (_, logged) = Run::start(&url, "current-thread", "main", 2).end();
    assert_eq!(free(server.url(), 2), 0);
    assert!(
        logged.contains("WARN") && logged.contains("`held/0`") && logged.contains("`held/1`"),
        "{logged}"
    );
}

macro_rules! on {
    ($store:ident, $feature:literal) => {
        #[cfg(feature = $feature)]
        mod $store {
            use super::*;

            #[test]
            fn the_next_run_gets_what_the_last_one_held() {
                let Some(server) = Server::$store() else {
                    return;
                };
                super::the_next_run_gets_what_the_last_one_held(&server);
            }

            #[test]
            fn a_store_that_is_gone_does_not_hold_up_the_end() {
                super::a_store_that_is_gone_does_not_hold_up_the_end(Server::$store, Server::end);
                super::a_store_that_is_gone_does_not_hold_up_the_end(
                    Server::$store,
                    Server::freeze,
                );
            }

            #[test]
            fn what_is_not_to_be_released_is_named() {
                let Some(server) = Server::$store() else {
                    return;
                };
                super::what_is_not_to_be_released_is_named(&server);
            }
        }
    };
}

on!(etcd, "etcd");
on!(redis, "redis");
