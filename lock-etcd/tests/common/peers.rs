//! Other programs that lock in etcd.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use futures_util::FutureExt;
use lock_conformance::servers::{Server, Skip};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::promptly;

/// `etcdctl lock NAME COMMAND`, whose command reports to the test and runs until it is told to end.
pub(crate) struct Etcdctl {
    program: Child,
    reports: TcpListener,
    command: Option<BufReader<TcpStream>>,
}

/// Tells the token that etcdctl publishes, and waits for a line.
const COMMAND: &str =
    r#"exec 3<>"/dev/tcp/127.0.0.1/$0" && echo "$ETCD_LOCK_REV" >&3 && read -r -u 3"#;

impl Etcdctl {
    pub(crate) async fn start(etcdctl: &Path, server: &Server, name: &str, ttl: Duration) -> Self {
        let reports = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = reports.local_addr().unwrap().port().to_string();
        let mut command = Command::new(etcdctl);
        command
            .arg(format!("--endpoints={}", server.endpoint()))
            .args(["lock", &format!("--ttl={}", ttl.as_secs()), name]);
        command.args(["--", "bash", "-c", COMMAND, &port]);
        let program = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            program,
            reports,
            command: None,
        }
    }

    /// True once it has reported that it holds the lock.
    pub(crate) fn has_reported(&mut self) -> bool {
        if self.command.is_none() {
            self.command = self
                .reports
                .accept()
                .now_or_never()
                .map(|accepted| BufReader::new(accepted.unwrap().0));
        }
        self.command.is_some()
    }

    /// Waits until it holds the lock, and returns the token that it reports.
    pub(crate) async fn locked(&mut self) -> u64 {
        if !self.has_reported() {
            let (command, _) = promptly("etcdctl's lock", self.reports.accept())
                .await
                .unwrap();
            self.command = Some(BufReader::new(command));
        }
        let mut line = String::new();
        let command = self.command.as_mut().unwrap();
        promptly("etcdctl's report", command.read_line(&mut line))
            .await
            .unwrap();
        line.trim().parse().unwrap()
    }

    /// Lets the command end, and etcdctl unlock.
    pub(crate) async fn unlock(mut self) {
        self.command
            .take()
            .unwrap()
            .get_mut()
            .write_all(b"\n")
            .await
            .unwrap();
        let status = promptly("etcdctl's end", self.program.wait())
            .await
            .unwrap();
        assert!(status.success(), "etcdctl: {status}");
    }

    /// Kills etcdctl, which leaves its lock to its lease.
    pub(crate) async fn kill(mut self) {
        self.program.kill().await.unwrap();
    }
}

/// A mutex of Go's `clientv3/concurrency`.
pub(crate) struct GoMutex {
    _program: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl GoMutex {
    pub(crate) fn start(program: &Path, server: &Server, name: &str) -> Self {
        let mut command = Command::new(program);
        command
            .args([server.endpoint(), name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut program = command.spawn().unwrap();
        let input = program.stdin.take().unwrap();
        let output = program.stdout.take().unwrap();
        Self {
            _program: program,
            input,
            output: BufReader::new(output).lines(),
        }
    }

    pub(crate) async fn tell(&mut self, command: &str) {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
    }

    /// The next line, if there is one already.
    pub(crate) fn has_answered(&mut self) -> bool {
        self.output.next_line().now_or_never().is_some()
    }

    async fn answer(&mut self) -> String {
        promptly("Go's answer", self.output.next_line())
            .await
            .unwrap()
            .expect("the Go program ended")
    }

    /// Waits until it holds the lock after `lock`, and returns the token that the mutex reports.
    pub(crate) async fn locked(&mut self) -> u64 {
        let answer = self.answer().await;
        answer
            .strip_prefix("locked ")
            .unwrap_or_else(|| panic!("Go answered {answer}"))
            .parse()
            .unwrap()
    }

    pub(crate) async fn unlock(&mut self) {
        self.tell("unlock").await;
        assert_eq!(self.answer().await, "unlocked");
    }
}

/// Directory into which Debian's golang-etcd-server-dev puts Go's packages.
const GO_PATH: &str = "/usr/share/gocode";

/// Set to the reason where the Go program cannot be built, such as on Debian 13: excuses the tests
/// that need it.
const WITHOUT_GO: &str = "LOCK_TEST_WITHOUT_GO";

/// The Go program, built from `tests/go-mutex`.
pub(crate) fn go_mutex() -> Result<PathBuf, Skip> {
    if let Some(reason) = std::env::var(WITHOUT_GO)
        .ok()
        .filter(|reason| !reason.is_empty())
    {
        return Err(Skip::excused(format!("{WITHOUT_GO} is set: {reason}")));
    }
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build_go_mutex).clone().map_err(Skip::new)
}

fn build_go_mutex() -> Result<PathBuf, String> {
    let path = std::env::var("LOCK_TEST_GOPATH").unwrap_or_else(|_| GO_PATH.to_owned());
    let advice = "install Debian's golang-go and golang-etcd-server-dev, or set LOCK_TEST_GOPATH to a GOPATH with etcd's packages, or LOCK_TEST_WITHOUT_GO to a reason";
    if !Path::new(&path)
        .join("src/go.etcd.io/etcd/clientv3/concurrency")
        .is_dir()
    {
        return Err(format!(
            "there are no Go packages of etcd in {path}; {advice}"
        ));
    }
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // Tests that run at the same time, in processes of their own, may all build it; the last one's
    // takes the place.
    let fresh = target.join(format!("go-mutex-{}", std::process::id()));
    let program = target.join("go-mutex");
    let build = std::process::Command::new("go")
        .args(["build", "-o"])
        .args([fresh.as_path(), Path::new("main.go")])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/go-mutex"))
        .envs([("GO111MODULE", "off"), ("GOFLAGS", "")])
        .env("GOPATH", path)
        .env("GOCACHE", target.join("go-build"))
        .output()
        .map_err(|error| format!("cannot run go: {error}; {advice}"))?;
    assert!(
        build.status.success(),
        "the Go program does not build:\n{}",
        String::from_utf8_lossy(&build.stderr)
    );
    std::fs::rename(fresh, &program).unwrap();
    Ok(program)
}
