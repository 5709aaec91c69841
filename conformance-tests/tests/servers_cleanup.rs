//! However a test process ends, its servers and their directories are gone.
#![cfg(all(feature = "servers", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use conformance_tests::servers::{self, EtcdOptions, RedisOptions, Server};

const LIMIT: Duration = Duration::from_secs(30);
/// How the process of [`a_process_with_servers`] is to end.
const END: &str = "LOCK_TEST_END";
const MARK: &str = "server:";

/// Not a test of its own: what the others run in a process of its own, and end.
#[test]
#[ignore = "the other tests run this one as a child process"]
fn a_process_with_servers() {
    let Ok(end) = env::var(END) else { return };
    let running = [servers::redis(RedisOptions::new().own()).unwrap(), servers::etcd(EtcdOptions::new().own()).unwrap()];
    if end == "frozen" {
        running.iter().for_each(|server| server.freeze().unwrap());
    }
    running.iter().for_each(announce);
    match end.as_str() {
        "exit" => std::process::exit(3),
        "panic" => panic!("as asked for"),
        "abort" => std::process::abort(),
        _ => loop {
            std::thread::park();
        },
    }
}

/// One in a container has neither.
fn announce(server: &Server) {
    let directory = server.directory().unwrap_or_default();
    println!("\n{MARK}{} {}", server.pid().unwrap_or_default(), directory.display());
}

#[test]
fn gone_after_exit() {
    let Some(mut process) = Process::start("exit") else { return };
    process.assert_all_gone();
}

#[test]
fn gone_after_a_panic() {
    let Some(mut process) = Process::start("panic") else { return };
    process.assert_all_gone();
}

#[test]
fn gone_after_an_abort() {
    let Some(mut process) = Process::start("abort") else { return };
    process.assert_all_gone();
}

#[test]
fn gone_after_sigkill() {
    let Some(mut process) = Process::start("wait") else { return };
    process.signal("KILL");
    process.assert_all_gone();
}

#[test]
fn gone_after_sigterm() {
    let Some(mut process) = Process::start("wait") else { return };
    process.signal("TERM");
    process.assert_all_gone();
}

/// As a terminal does it: to the whole group of the test process.
#[test]
fn gone_after_ctrl_c() {
    let Some(mut process) = Process::start("wait") else { return };
    process.signal_group("INT");
    process.assert_all_gone();
}

#[test]
fn gone_after_sigkill_although_frozen() {
    let Some(mut process) = Process::start("frozen") else { return };
    process.signal("KILL");
    process.assert_all_gone();
}

/// Somebody kills even the shell that would have cleaned up.
#[test]
fn the_server_ends_with_its_supervisor() {
    let leashes = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).status();
    let Some(process) = Process::start("wait").filter(|_| leashes.is_ok_and(|status| status.success())) else { return };
    for (pid, directory) in &process.servers {
        send("KILL", &parent_of(*pid).to_string());
        eventually("the server is gone", || !exists(*pid));
        let _ = fs::remove_dir_all(directory);
    }
}

/// A test process that has an etcd and a Redis server.
#[derive(Debug)]
struct Process {
    child: Child,
    servers: Vec<(u32, PathBuf)>,
}

impl Process {
    /// `None` where there are no programs to make servers of.
    fn start(end: &str) -> Option<Self> {
        let obstacle = servers::etcd_obstacle(&EtcdOptions::new().own()).or(servers::redis_obstacle(&RedisOptions::new().own()));
        if let Some(skip) = obstacle {
            eprintln!("{skip}");
            return None;
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "a_process_with_servers", "--ignored", "--nocapture"]).env(END, end);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let servers: Vec<_> = lines.filter_map(|line| parse(line.strip_prefix(MARK)?)).take(2).collect();
        assert_eq!(servers.len(), 2, "the child announced {servers:?}");
        let process = Self { child, servers };
        let are_processes = process.servers.iter().all(|(pid, _)| *pid != 0);
        if !are_processes {
            eprintln!("skipped: the servers of this machine are in containers");
        }
        are_processes.then_some(process)
    }

    fn signal(&self, name: &str) {
        self.servers.iter().for_each(|(pid, directory)| assert!(exists(*pid) && directory.exists()));
        send(name, &self.child.id().to_string());
    }

    fn signal_group(&self, name: &str) {
        send(name, &format!("-{}", self.child.id()));
    }

    fn assert_all_gone(&mut self) {
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "{status}");
        for (pid, directory) in &self.servers {
            eventually("the server and its directory are gone", || !exists(*pid) && !directory.exists());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(announcement: &str) -> Option<(u32, PathBuf)> {
    let (pid, directory) = announcement.split_once(' ')?;
    Some((pid.parse().ok()?, directory.into()))
}

fn send(signal: &str, target: &str) {
    let script = format!("kill -s {signal} -- {target}");
    assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success(), "{script}");
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
