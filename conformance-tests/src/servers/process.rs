use std::{
    env,
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    poll::poll,
    ports::Ports,
    process_state::{ProcessState, process_state},
    service::{Service, Site},
    supervisor::Supervisor,
};

pub(super) const START_LIMIT: Duration = Duration::from_secs(60);
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 5;
const LOG_TAIL_LINES: usize = 30;

/// A server that runs as a process of this machine, in a directory of its own.
#[derive(Debug)]
pub(super) struct Process {
    service: Box<dyn Service>,
    ports: Ports,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    supervisor: Supervisor,
    /// The server that was started last, which may have ended since then; `None` after a kill.
    pid: Option<u32>,
}

impl Process {
    /// Starts a server on free ports and returns when it serves requests.
    pub(super) fn start_new(service: Box<dyn Service>, program: &Path) -> io::Result<Self> {
        let mut service = service;
        for _ in 1..ATTEMPTS {
            let process = Self::prepare(service, program)?;
            match process.start() {
                Err(error) if is_bind_failure(&error) => service = process.service,
                outcome => return outcome.and_then(|()| process.set_up()),
            }
        }
        let process = Self::prepare(service, program)?;
        process.start()?;
        process.set_up()
    }

    /// Port for clients.
    pub(super) fn port(&self) -> u16 {
        self.ports.client.number()
    }

    /// Address for clients of a service that answers without TLS.
    pub(super) fn client_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }

    /// Address for the other members of a cluster.
    pub(super) fn peer_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.peer.number()).into()
    }

    /// The end of the server's log, as an error that says what happened.
    pub(super) fn complaint(&self, what: &str) -> io::Error {
        self.failure(&self.state(), what)
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.state().supervisor.directory().to_owned()
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.state().pid
    }

    /// Starts the server on its ports and data, after killing it if it runs, and does not wait for
    /// it. For this start only it has the arguments `more`.
    pub(super) fn launch(&self, more: &[&str]) -> io::Result<u32> {
        let mut state = self.state();
        let pid = state.supervisor.start(more)?;
        state.pid = Some(pid);
        Ok(pid)
    }

    /// As [`launch`](Self::launch), and returns when it serves requests.
    pub(super) fn start(&self) -> io::Result<()> {
        let pid = self.launch(&[])?;
        let state = self.state();
        let is_ready = || self.service.is_ready(self.plain_address());
        let ended = poll(START_LIMIT, || match process_state(pid) {
            ProcessState::Ended => Some(true),
            _ => is_ready().then_some(false),
        });
        match ended {
            Some(false) => Ok(()),
            Some(true) => Err(self.failure(&state, "ended instead of serving")),
            None => Err(self.failure(&state, "did not get ready in time")),
        }
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        let mut state = self.state();
        state.pid = None;
        state.supervisor.kill()
    }

    /// Sends SIGSTOP; returns when no thread of the server runs any more.
    pub(super) fn freeze(&self) -> io::Result<()> {
        self.signal("STOP", |state| state == ProcessState::Stopped)
    }

    /// Sends SIGCONT.
    pub(super) fn thaw(&self) -> io::Result<()> {
        self.signal("CONT", |state| state != ProcessState::Stopped)
    }

    /// Reserves ports and makes the directory of a server that is to be started.
    pub(super) fn prepare(service: Box<dyn Service>, program: &Path) -> io::Result<Self> {
        let ports = Ports::reserve()?;
        let directory = env::temp_dir().join(new_name(service.about().name));
        let site = Site {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: &ports,
            data: &directory,
        };
        let mut command = with_environment(service.environment());
        command.push(OsString::from(program));
        command.extend(service.arguments(&site).into_iter().map(OsString::from));
        let supervisor = Supervisor::spawn(&directory, &command)?;
        Ok(Self {
            service,
            ports,
            state: Mutex::new(State {
                supervisor,
                pid: None,
            }),
        })
    }

    fn set_up(self) -> io::Result<Self> {
        self.service.set_up(self.plain_address())?;
        Ok(self)
    }

    /// Address at which this harness asks the server, without TLS.
    pub(super) fn plain_address(&self) -> SocketAddr {
        let port = if self.service.certificates().is_some() {
            &self.ports.plain
        } else {
            &self.ports.client
        };
        (Ipv4Addr::LOCALHOST, port.number()).into()
    }

    fn signal(&self, name: &str, is_done: impl Fn(ProcessState) -> bool) -> io::Result<()> {
        let mut state = self.state();
        let stopped = || io::Error::other("the server does not run");
        let pid = state.pid.ok_or_else(stopped)?;
        state.supervisor.signal(name)?;
        match poll(FREEZE_LIMIT, || {
            Some(process_state(pid)).filter(|&now| is_done(now) || now == ProcessState::Ended)
        }) {
            Some(ProcessState::Ended) => Err(stopped()),
            Some(_) => Ok(()),
            None => Err(io::Error::other(format!(
                "SIG{name} did not take effect in {FREEZE_LIMIT:?}"
            ))),
        }
    }

    fn failure(&self, state: &State, what: &str) -> io::Error {
        let log = tail(&fs::read(state.supervisor.directory().join("log")).unwrap_or_default());
        io::Error::other(format!(
            "the {} server {what}; the end of its log:\n{log}",
            self.service.about().name
        ))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command-line prefix that sets variables; empty if there are none.
fn with_environment(variables: Vec<(String, String)>) -> Vec<OsString> {
    let program = (!variables.is_empty()).then(|| OsString::from("env"));
    program
        .into_iter()
        .chain(
            variables
                .into_iter()
                .map(|(name, value)| format!("{name}={value}").into()),
        )
        .collect()
}

/// True if another process took the port between our check and the server's start.
fn is_bind_failure(error: &io::Error) -> bool {
    error
        .to_string()
        .to_lowercase()
        .contains("address already in use")
}

/// Makes a name that no other server has, for a directory or a container; `kind` says what it is
/// for.
pub(super) fn new_name(kind: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let moment = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    format!("lock-test-{kind}-{}-{count}-{moment}", process::id())
}

/// The last lines of a log.
pub(super) fn tail(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
