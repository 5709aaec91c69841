//! `lockctl run` on a real Redis and a real etcd: no command without its lock, no lock without its
//! command for longer than the lease.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// TTL of the locks of the tests that wait for its end.
const TTL: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(30);

/// A server, and a place for what commands write.
struct World {
    server: Server,
    files: tempfile::TempDir,
}

fn worlds() -> impl Iterator<Item = World> {
    let redis = servers::redis(RedisOptions::new().own());
    let etcd = servers::etcd(EtcdOptions::new().own());
    let servers = [redis, etcd].into_iter().flatten();
    servers.map(|server| World {
        server,
        files: tempfile::tempdir().unwrap(),
    })
}

impl World {
    fn lockctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockctl"));
        command
            .args(arguments)
            .env("LOCK_URL", self.server.url())
            .env("FILES", self.files.path())
            .stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> (i32, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.lockctl(arguments).output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        (status.code().unwrap(), said)
    }

    /// Starts a command under the lock `job`, which writes its process id and then does the rest.
    fn start(&self, options: &[&str], script: &str) -> Running {
        let _ = fs::remove_file(self.file("pid"));
        let ttl = format!("{}s", TTL.as_secs());
        let script = format!("echo $$ >$FILES/new && mv $FILES/new $FILES/pid; {script}");
        let arguments = [
            &["run", "job", "--ttl", &ttl],
            options,
            &["--", "sh", "-c", &script],
        ];
        let lockctl = self.lockctl(&arguments.concat()).spawn().unwrap();
        let pid = self.number("pid");
        Running { lockctl, pid }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Waits for a file, and reads a process id from it.
    fn number(&self, name: &str) -> Pid {
        let file = self.file(name);
        let mut line = String::new();
        // The shell makes the file before it writes the line.
        await_that(name, || {
            line = fs::read_to_string(&file).unwrap_or_default();
            line.ends_with('\n')
        });
        Pid::from_raw(line.trim().parse().unwrap())
    }

    fn status(&self) -> Value {
        let (code, said) = self.output(&["status", "job", "--json"]);
        assert_eq!(code, 0, "{said}");
        serde_json::from_str(&said).unwrap()
    }

    fn is_free(&self) -> bool {
        self.status()["held"] == false
    }
}

struct Running {
    lockctl: Child,
    /// The command, which leads its process group.
    pid: Pid,
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.lockctl.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    fn code(&mut self) -> i32 {
        self.wait().code().expect("no signal ended lockctl")
    }

    fn wait(&mut self) -> ExitStatus {
        self.lockctl.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.lockctl.kill();
        let _ = self.lockctl.wait();
    }
}

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie runs no more, and has no command line.
fn is_running(pid: Pid) -> bool {
    let line = Path::new("/proc").join(pid.to_string()).join("cmdline");
    match cfg!(target_os = "linux") {
        true => fs::read(line).is_ok_and(|line| !line.is_empty()),
        false => kill(pid, None).is_ok(),
    }
}

/// Returns true if the process has a handler for the signal.
fn is_catching(pid: Pid, signal: Signal) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & (1 << (signal as i32 - 1)) != 0
}

#[test]
fn the_command_has_the_lock_and_its_code_is_passed_on() {
    for world in worlds() {
        let script = "echo $LOCK_NAME $LOCK_TOKEN $LOCK_OWNER; exit 7";
        let (code, said) = world.output(&["run", "job", "--", "sh", "-c", script]);
        let words: Vec<_> = said.split_whitespace().collect();
        assert!(code == 7 && words.len() == 3, "{code}: {said}");
        assert!(words[0] == "job" && words[1].parse::<u64>().unwrap() > 0);
        assert!(world.is_free());
        let (code, said) = world.output(&["run", "job", "--", "sh", "-c", "kill -KILL $$"]);
        assert_eq!(code, 128 + 9, "{said}");
        let (code, said) = world.output(&["run", "job", "--", "/no/such/program"]);
        assert_eq!(code, 127, "{said}");
        let (code, said) = world.output(&["run", "job", "--", "/"]);
        assert_eq!(code, 126, "{said}");
        assert!(world.is_free());
    }
}

#[test]
fn who_does_not_get_the_lock_runs_nothing() {
    for world in worlds() {
        let mut running = world.start(&[], "read line <$FILES/never || sleep 60");
        let touched = world.file("touched");
        let touch = ["--", "touch", touched.to_str().unwrap()];
        for (options, expected) in [
            (&["run", "job", "-n"][..], 1),
            (&["run", "job", "--wait", "200ms", "-E", "42"], 42),
            (&["try", "job", "--conflict-exit-code", "9"], 9),
        ] {
            let (code, said) = world.output(&[options, &touch].concat());
            assert!(code == expected && said.contains("somebody else"), "{said}");
        }
        assert!(!touched.exists());
        let status = world.status();
        let note = status["holders"][0]["metadata"].as_str().unwrap();
        assert!(note.contains("lockctl on"), "{status}");
        running.signal(Signal::SIGTERM);
        assert_eq!(running.code(), 128 + 15);
        assert_eq!(world.output(&["try", "job"]).0, 0);
        assert!(world.is_free());
    }
}

#[test]
fn signals_go_to_the_command_and_the_lock_is_held_until_it_ends() {
    for world in worlds() {
        let script = "trap 'touch $FILES/asked; sleep 0.3; exit 3' TERM INT HUP; touch $FILES/ready; while :; do sleep 0.05; done";
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            for file in ["ready", "asked"] {
                let _ = fs::remove_file(world.file(file));
            }
            let mut running = world.start(&[], script);
            await_that("ready", || world.file("ready").exists());
            running.signal(signal);
            await_that("asked", || world.file("asked").exists());
            assert!(!world.is_free() || !is_running(running.pid));
            assert_eq!(running.code(), 3, "{signal}");
            assert!(world.is_free());
        }
    }
}

#[test]
fn a_signal_ends_the_wait() {
    for world in worlds() {
        let _running = world.start(&[], "sleep 60");
        let mut waiter = world
            .lockctl(&["run", "job", "--", "true"])
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(waiter.id().try_into().unwrap());
        await_that("the waiter listens", || is_catching(pid, Signal::SIGTERM));
        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(waiter.wait().unwrap().code(), Some(128 + 15));
        // A store that does not tell is taken to have none.
        let waiters = || world.status()["waiters"].as_u64().unwrap_or_default();
        await_that("it leaves no entry", || waiters() == 0);
    }
}

#[test]
fn a_command_that_is_killed_frees_the_lock_and_leaves_nothing() {
    for world in worlds() {
        let mut running = world.start(&[], "sleep 60 & echo $! >$FILES/rest; sleep 60");
        let rest = world.number("rest");
        let _ = fs::remove_file(world.file("rest"));
        kill(running.pid, Signal::SIGKILL).unwrap();
        assert_eq!(running.code(), 128 + 9);
        assert!(!is_running(rest), "the rest of the group has ended");
        assert!(world.is_free());
    }
}

#[test]
fn lockctl_that_is_killed_takes_the_command_along_and_the_lease_ends_the_lock() {
    for world in worlds() {
        let script = "trap '' TERM; sleep 60 & echo $! >$FILES/rest; wait";
        let mut running = world.start(&[], script);
        let rest = world.number("rest");
        let _ = fs::remove_file(world.file("rest"));
        running.signal(Signal::SIGKILL);
        running.wait();
        let killed = Instant::now();
        await_that("no process is left", || {
            !is_running(running.pid) && !is_running(rest)
        });
        assert!(killed.elapsed() < TTL / 2, "long before the lock is free");
        await_that("the lease ends", || world.is_free());
        assert!(killed.elapsed() < TTL + Duration::from_secs(3));
    }
}

#[test]
fn lockctl_that_is_stopped_leaves_no_command_beyond_the_lease() {
    for world in worlds() {
        let running = world.start(&[], "trap '' TERM; sleep 60 & wait");
        running.signal(Signal::SIGSTOP);
        await_that("the lease ends", || world.is_free());
        assert!(!is_running(running.pid), "the command has ended before");
        running.signal(Signal::SIGCONT);
    }
}

#[test]
fn a_lock_that_is_taken_away_ends_the_command_gently() {
    for world in worlds() {
        let script = "trap 'touch $FILES/gently; exit 0' TERM; touch $FILES/ready; while :; do sleep 0.05; done";
        let mut running = world.start(&["--grace", "20s"], script);
        await_that("ready", || world.file("ready").exists());
        let (code, said) = world.output(&["release", "job", "--owner", "0000"]);
        assert!(code == 3 && said.contains("does not hold"), "{said}");
        let status = world.status();
        let owner = status["holders"][0]["owner"].as_str().unwrap();
        let (code, said) = world.output(&["release", "job", "--owner", owner]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(running.code(), 75);
        assert!(world.file("gently").exists());
        for file in ["ready", "gently"] {
            let _ = fs::remove_file(world.file(file));
        }
    }
}

#[test]
fn a_command_that_does_not_listen_is_gone_at_the_deadline() {
    for world in worlds() {
        let mut running = world.start(&["--grace", "1s"], "trap '' TERM; sleep 60 & wait");
        world.server.freeze().unwrap();
        let frozen = Instant::now();
        // The release of a lost lock needs no server.
        await_that("the command is gone", || !is_running(running.pid));
        assert!(frozen.elapsed() < TTL + Duration::from_millis(500));
        assert_eq!(running.code(), 75);
        world.server.thaw().unwrap();
    }
}

#[test]
fn locks_are_listed_and_watched() {
    for world in worlds() {
        let mut watch = world
            .lockctl(&["watch", "job", "--json"])
            .stdout(fs::File::create(world.file("watch")).unwrap())
            .spawn()
            .unwrap();
        let watched = || fs::read_to_string(world.file("watch")).unwrap();
        await_that("free is told", || watched().contains("\"held\":false"));
        let mut running = world.start(&["--note", "me"], "sleep 60");
        await_that("held is told", || watched().contains("\"metadata\":\"me\""));
        let (code, said) = world.output(&["list", "jo"]);
        assert!(
            code == 0 && said.contains("job") && said.contains("me"),
            "{said}"
        );
        let (code, said) = world.output(&["list", "other", "--json"]);
        assert!(code == 0 && said.trim() == "[]", "{said}");
        running.signal(Signal::SIGTERM);
        running.wait();
        let is_free_again = || watched().lines().last().unwrap().contains("\"held\":false");
        await_that("free is told again", is_free_again);
        kill(
            Pid::from_raw(watch.id().try_into().unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        assert_eq!(watch.wait().unwrap().code(), Some(130));
    }
}
