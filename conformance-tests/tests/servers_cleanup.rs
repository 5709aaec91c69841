//! However a test process ends, its servers and their directories, or containers, are gone.
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

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};

const LIMIT: Duration = Duration::from_secs(30);
/// The way in which the process of [`a_process_with_servers`] is to end.
const END: &str = "LOCK_TEST_END";
const MARK: &str = "server:";

/// Not a test of its own: the others run it in a process of its own, and end that process.
#[test]
#[ignore = "the other tests run this one as a child process"]
fn a_process_with_servers() {
    let Ok(end) = env::var(END) else { return };
    let running = [
        servers::redis(RedisOptions::new().own()).unwrap(),
        servers::etcd(EtcdOptions::new().own()).unwrap(),
    ];
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

fn announce(server: &Server) {
    match (server.pid(), server.directory(), server.container_name()) {
        (Some(pid), Some(directory), _) => {
            println!("\n{MARK}process {pid} {}", directory.display());
        }
        (_, _, Some(container)) => println!("\n{MARK}container {container} -"),
        _ => panic!("a server of one's own is one of these: {server:?}"),
    }
}

#[test]
fn gone_after_exit() {
    let Some(mut process) = Process::start("exit") else {
        return;
    };
    process.assert_all_gone();
}

#[test]
fn gone_after_a_panic() {
    let Some(mut process) = Process::start("panic") else {
        return;
    };
    process.assert_all_gone();
}

#[test]
fn gone_after_an_abort() {
    let Some(mut process) = Process::start("abort") else {
        return;
    };
    process.assert_all_gone();
}

#[test]
fn gone_after_sigkill() {
    let Some(mut process) = Process::start("wait") else {
        return;
    };
    process.signal("KILL");
    process.assert_all_gone();
}

#[test]
fn gone_after_sigterm() {
    let Some(mut process) = Process::start("wait") else {
        return;
    };
    process.signal("TERM");
    process.assert_all_gone();
}

/// Signals the whole group of the test process, as a terminal does.
#[test]
fn gone_after_ctrl_c() {
    let Some(mut process) = Process::start("wait") else {
        return;
    };
    process.signal_group("INT");
    process.assert_all_gone();
}

#[test]
fn gone_after_sigkill_although_frozen() {
    let Some(mut process) = Process::start("frozen") else {
        return;
    };
    process.signal("KILL");
    process.assert_all_gone();
}

/// Kills even the shell that would have cleaned up.
#[test]
fn the_server_ends_with_its_supervisor() {
    let leashes = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "true"])
        .status();
    let Some(process) =
        Process::start("wait").filter(|_| leashes.is_ok_and(|status| status.success()))
    else {
        return;
    };
    for server in &process.servers {
        let Running::Process(pid, directory) = server else {
            continue;
        };
        send("KILL", &parent_of(*pid).to_string());
        eventually("the server is gone", || !exists(*pid));
        let _ = fs::remove_dir_all(directory);
    }
}

/// A test process that has an etcd and a Redis server.
#[derive(Debug)]
struct Process {
    child: Child,
    servers: Vec<Running>,
}

/// Kind of a server.
#[derive(Debug)]
enum Running {
    Process(u32, PathBuf),
    Container(String),
}

impl Running {
    fn parse(announcement: &str) -> Option<Self> {
        let mut words = announcement.splitn(3, ' ');
        match (words.next()?, words.next()?, words.next()?) {
            ("process", pid, directory) => Some(Self::Process(pid.parse().ok()?, directory.into())),
            ("container", name, _) => Some(Self::Container(name.to_owned())),
            _ => None,
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Process(pid, directory) => exists(*pid) && directory.exists(),
            Self::Container(name) => has_container(name),
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Process(pid, directory) => !exists(*pid) && !directory.exists(),
            Self::Container(name) => !has_container(name),
        }
    }
}

impl Process {
    /// `None` where there are no programs to run servers with.
    fn start(end: &str) -> Option<Self> {
        let obstacle = servers::etcd_obstacle(&EtcdOptions::new().own())
            .or(servers::redis_obstacle(&RedisOptions::new().own()));
        if let Some(skip) = obstacle {
            eprintln!("{skip}");
            return None;
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "a_process_with_servers",
                "--ignored",
                "--nocapture",
            ])
            .env(END, end);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let servers: Vec<_> = lines
            .filter_map(|line| Running::parse(line.strip_prefix(MARK)?))
            .take(2)
            .collect();
        assert_eq!(servers.len(), 2, "the child announced {servers:?}");
        Some(Self { child, servers })
    }

    fn signal(&self, name: &str) {
        self.servers
            .iter()
            .for_each(|server| assert!(server.is_there(), "{server:?}"));
        send(name, &self.child.id().to_string());
    }

    fn signal_group(&self, name: &str) {
        send(name, &format!("-{}", self.child.id()));
    }

    fn assert_all_gone(&mut self) {
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "{status}");
        for server in &self.servers {
            eventually(&format!("{server:?} is gone"), || server.is_gone());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(signal: &str, target: &str) {
    let script = format!("kill -s {signal} -- {target}");
    assert!(
        Command::new("/bin/sh")
            .args(["-c", &script])
            .status()
            .unwrap()
            .success(),
        "{script}"
    );
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// True if there is a container of exactly this name, running or not.
fn has_container(name: &str) -> bool {
    let filter = format!("name=^/{name}$");
    let output = Command::new("docker")
        .args(["ps", "--all", "--quiet", "--filter", &filter])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    !output.stdout.is_empty()
}

fn parent_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
