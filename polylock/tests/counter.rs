//! The example `counter` as a user runs it: its figures, its exit codes, and what it leaves behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![cfg(feature = "mem")]

#[cfg(all(unix, any(feature = "etcd", feature = "redis")))]
mod common;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

/// Builds the example with the features of this test, and tells where it is.
fn counter() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let features = [
            ("mem", true),
            ("etcd", cfg!(feature = "etcd")),
            ("redis", cfg!(feature = "redis")),
        ];
        let features: Vec<_> = features
            .into_iter()
            .filter_map(|(feature, on)| on.then_some(feature))
            .collect();
        let status = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
            .args([
                "build",
                "--quiet",
                "--package",
                "polylock",
                "--example",
                "counter",
                "--no-default-features",
                "--features",
            ])
            .arg(features.join(","))
            .args(if cfg!(debug_assertions) {
                None
            } else {
                Some("--release")
            })
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success());
        // This test is `<target>/<profile>/deps/<name>`.
        let this = env::current_exe().unwrap();
        this.parent()
            .and_then(Path::parent)
            .unwrap()
            .join("examples/counter")
    })
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(counter())
        .args(arguments)
        .env("TMPDIR", directory)
        .output()
        .unwrap()
}

/// The number before a word in the line that begins with a phase.
fn figure(output: &Output, phase: &str, word: &str) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(phase))
        .unwrap_or_else(|| panic!("no `{phase}` in {output:?}"));
    let words: Vec<_> = line.split_whitespace().collect();
    let at = words.iter().position(|found| *found == word).unwrap();
    words[at - 1].parse().unwrap()
}

#[test]
fn loses_without_the_lock_and_nothing_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["--workers", "4", "--increments", "50"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        figure(&output, "without the lock", "lost") > 0,
        "{output:?}"
    );
    assert_eq!(
        (
            figure(&output, "with the lock", "counted"),
            figure(&output, "with the lock", "lost")
        ),
        (200, 0)
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("fencing tokens   1 to 200"),
        "{output:?}"
    );
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn several_processes_need_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["--processes", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("within one process"),
        "{output:?}"
    );
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_bad_url_is_an_error_and_not_a_result() {
    let directory = tempfile::tempdir().unwrap();
    for (url, expected) in [
        ("zookeeper://h", "counter: connect: unknown scheme: "),
        ("nonsense", "counter: invalid URL: "),
    ] {
        let output = run(directory.path(), &[url]);
        assert_eq!(
            (output.status.code(), output.stdout.is_empty()),
            (Some(2), true),
            "{output:?}"
        );
        assert!(
            String::from_utf8_lossy(&output.stderr).starts_with(expected),
            "{output:?}"
        );
    }
    assert_eq!(
        run(directory.path(), &["--workers", "0"]).status.code(),
        Some(2)
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_file() {
    use std::io::{BufRead, BufReader};

    for signal in ["-INT", "-TERM"] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(counter());
        command
            .args(["--increments", "1000000000"])
            .env("TMPDIR", directory.path());
        let mut running = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first_line = String::new();
        BufReader::new(running.stdout.take().unwrap())
            .read_line(&mut first_line)
            .unwrap();
        assert!(
            Command::new("kill")
                .arg(signal)
                .arg(running.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(running.wait().unwrap().code(), Some(130), "{signal}");
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "{signal}");
    }
}

#[cfg(all(unix, any(feature = "etcd", feature = "redis")))]
mod several_processes {
    use super::{common::Server, *};
    use std::io::{BufRead, BufReader};

    #[cfg(feature = "redis")]
    #[test]
    fn share_the_lock_through_redis() {
        let server = Server::redis();
        if let Some(server) = server {
            lose_nothing(server.url());
            leave_nothing_when_interrupted(server.url());
        }
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn share_the_lock_through_etcd() {
        let server = Server::etcd();
        if let Some(server) = server {
            lose_nothing(server.url());
            leave_nothing_when_interrupted(server.url());
        }
    }

    fn lose_nothing(url: &str) {
        let directory = tempfile::tempdir().unwrap();
        let output = run(
            directory.path(),
            &[
                url,
                "--processes",
                "4",
                "--workers",
                "4",
                "--increments",
                "20",
            ],
        );
        assert!(output.status.success(), "{output:?}");
        assert!(
            figure(&output, "without the lock", "lost") > 0,
            "{output:?}"
        );
        assert_eq!(
            (
                figure(&output, "with the lock", "counted"),
                figure(&output, "with the lock", "lost")
            ),
            (320, 0)
        );
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    fn leave_nothing_when_interrupted(url: &str) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(counter());
        command
            .args([url, "--processes", "2", "--increments", "1000000"])
            .env("TMPDIR", directory.path());
        let mut running = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(running.stdout.take().unwrap());
        // Printed once the other processes are ready.
        output.read_line(&mut String::new()).unwrap();
        let children = children_of(running.id());
        assert_eq!(children.len(), 2);
        assert!(
            Command::new("kill")
                .arg("-INT")
                .arg(running.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(running.wait().unwrap().code(), Some(130));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        let start = std::time::Instant::now();
        while children.iter().any(|child| is_alive(child)) {
            assert!(
                start.elapsed() < std::time::Duration::from_secs(30),
                "{children:?} outlive their parent"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn children_of(parent: u32) -> Vec<String> {
        let listed = Command::new("ps")
            .args(["-A", "-o", "ppid=,pid="])
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let pairs = text.lines().filter_map(|line| line.trim().split_once(' '));
        pairs
            .filter(|(ppid, _)| *ppid == parent.to_string())
            .map(|(_, pid)| pid.trim().to_owned())
            .collect()
    }

    fn is_alive(pid: &str) -> bool {
        let state = Command::new("ps")
            .args(["-o", "stat=", "-p", pid])
            .output()
            .unwrap()
            .stdout;
        !state.is_empty() && !state.starts_with(b"Z")
    }
}
