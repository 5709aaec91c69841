//! `lockctl run` and `lockctl try`: a command that runs while a lock is held.

mod ending;
mod group;
mod launch;
mod watchdog;

use std::{
    ffi::OsString,
    process::{self, ExitStatus},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use nix::unistd::gethostname;
use polylock::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, LockError, LockGuard,
};

pub(crate) use launch::Launch;
pub(crate) use watchdog::Watchdog;

use crate::{
    signals::{Signals, exit_code_of},
    store::{self, Store},
};
use group::Group;

/// Exit codes that do not come from the command, from `sysexits.h` and the shell.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const LOST: u8 = 75;
const NO_PERMISSION: u8 = 77;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
    those of the command; 128 + N if signal N ended it, or lockctl while it waited
    1  the lock was not free in time; another code with -E
   64  the command line, the name or the URL is wrong
   69  the store failed, and the command was not run
   75  the lock was lost, and the command was ended
   77  the store refused the credentials, or what they may do is not enough
  126  the command cannot be executed
  127  the command was not found

The command has LOCK_NAME, LOCK_TOKEN and LOCK_OWNER in its environment, and a process group of its own. SIGTERM, SIGINT
and SIGHUP are passed on to the group. What is left of the group when the command has ended is ended too, before the lock
is released: first by SIGTERM, after the grace by SIGKILL. So is the whole group if the lock is lost, so early that it is gone
at the lock's deadline; a lock that an operator takes away leaves it the grace. If lockctl itself is killed or stopped,
a second process of it kills the group.";

/// Runs a command while holding a lock, waiting for it
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Do not wait for the lock
    #[arg(short = 'n', long, conflicts_with = "wait")]
    no_wait: bool,
    /// Longest wait for the lock; without it there is no bound
    #[arg(short, long, value_name = "DURATION", value_parser = store::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    held: Held,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Takes a lock if it is free, and runs a command, or gives it back at once without one
#[derive(Debug, Args)]
pub(crate) struct Try {
    #[command(flatten)]
    held: Held,
    /// Command and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What to hold, and how.
#[derive(Debug, Args)]
struct Held {
    /// Name of the lock
    name: String,
    #[command(flatten)]
    store: Store,
    /// Exit code if the lock is not free in time
    #[arg(
        short = 'E',
        long,
        value_name = "CODE",
        default_value_t = 1,
        env = "LOCK_CONFLICT_EXIT_CODE"
    )]
    conflict_exit_code: u8,
    /// Time that the store keeps the lock without hearing from lockctl; default: that of the URL, or 30s
    #[arg(long, value_name = "DURATION", value_parser = store::duration)]
    ttl: Option<Duration>,
    /// Longest hold, after which the command is ended
    #[arg(long, value_name = "DURATION", value_parser = store::duration)]
    max_hold: Option<Duration>,
    /// Time between SIGTERM and SIGKILL; never more than a third of the TTL
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Note for whoever inspects the lock; default: host and process id
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// How long to wait for a lock.
#[derive(Clone, Copy, Debug)]
enum Wait {
    No,
    AtMost(Duration),
    Ever,
}

impl Run {
    pub(crate) async fn run(self) -> u8 {
        let wait = match self.wait {
            _ if self.no_wait => Wait::No,
            Some(limit) => Wait::AtMost(limit),
            None => Wait::Ever,
        };
        self.held.run(wait, &self.command).await
    }
}

impl Try {
    pub(crate) async fn run(self) -> u8 {
        self.held.run(Wait::No, &self.command).await
    }
}

impl Held {
    /// Returns the exit code.
    async fn run(&self, wait: Wait, command: &[OsString]) -> u8 {
        let done = match Signals::new() {
            Ok(mut signals) => self.run_until(wait, command, &mut signals).await,
            Err(error) => Err(
                LockError::new(ErrorKind::Unavailable, "signals cannot be received")
                    .caused_by(error),
            ),
        };
        done.unwrap_or_else(|error| {
            eprintln!("lockctl: {error}");
            exit_code(&error)
        })
    }

    async fn run_until(
        &self,
        wait: Wait,
        command: &[OsString],
        signals: &mut Signals,
    ) -> Result<u8, LockError> {
        let acquired = tokio::select! {
            acquired = self.acquire(wait) => acquired?,
            signal = signals.next() => return Ok(exit_code_of(signal)),
        };
        let (locks, guard) = acquired;
        let code = match guard {
            Some(guard) => self.hold(guard, command, signals).await,
            None => {
                eprintln!("lockctl: `{}` is held by somebody else", self.name);
                Ok(self.conflict_exit_code)
            }
        };
        // What cannot be given back ends by itself, with its lease.
        let _ = locks.shutdown().await;
        code
    }

    async fn acquire(
        &self,
        wait: Wait,
    ) -> Result<(Arc<dyn DistributedLock>, Option<LockGuard>), LockError> {
        let locks = self.store.connect().await?;
        let options = self.options(&*locks);
        let name = self.name.as_str();
        let guard = match wait {
            Wait::No => locks.try_acquire_with(name, options).await?,
            Wait::Ever => Some(locks.acquire_with(name, options).await?),
            Wait::AtMost(limit) => {
                let acquired = locks.acquire_with(name, options.with_timeout(limit)).await;
                match acquired {
                    Err(error) if error.kind() == ErrorKind::TimedOut => None,
                    acquired => Some(acquired?),
                }
            }
        };
        Ok((locks, guard))
    }

    fn options(&self, locks: &dyn DistributedLock) -> AcquireOptions {
        let mut options = AcquireOptions::new();
        if let Some(ttl) = self.ttl {
            options = options.with_ttl(ttl);
        }
        if let Some(most) = self.max_hold {
            options = options.with_max_hold(most);
        }
        match &self.note {
            Some(note) => options.with_metadata(note),
            None if locks.capabilities().metadata => options.with_metadata(default_note()),
            None => options,
        }
    }

    async fn hold(
        &self,
        guard: LockGuard,
        command: &[OsString],
        signals: &mut Signals,
    ) -> Result<u8, LockError> {
        if command.is_empty() {
            return guard.release().await.map(|()| 0);
        }
        let grace = self.grace.min(guard.remaining() / 3);
        let code = match Group::start(command, &guard, grace) {
            Ok(group) => group.run(&guard, signals).await.map(status_code),
            Err(error) => Err(error),
        };
        let code = code.unwrap_or_else(|error| {
            eprintln!("lockctl: cannot run {}: {error}", command[0].display());
            CANNOT_EXECUTE
        });
        match guard.release().await {
            Err(error) if error.kind() == ErrorKind::Lost => {
                eprintln!("lockctl: the command was ended: {error}");
                return Ok(LOST);
            }
            Err(error) => eprintln!("lockctl: the lock ends with its lease: {error}"),
            Ok(()) => {}
        }
        Ok(code)
    }
}

fn default_note() -> String {
    let host = gethostname().unwrap_or_default();
    format!("lockctl on {}, pid {}", host.display(), process::id())
}

fn status_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => exit_code_of(signal.unwrap_or_default()),
    }
}

fn exit_code(error: &LockError) -> u8 {
    match error.kind() {
        ErrorKind::InvalidName
        | ErrorKind::InvalidOptions
        | ErrorKind::InvalidUrl
        | ErrorKind::InvalidConfig
        | ErrorKind::UnknownScheme
        | ErrorKind::Unsupported => USAGE,
        ErrorKind::PermissionDenied => NO_PERMISSION,
        ErrorKind::Lost => LOST,
        _ => UNAVAILABLE,
    }
}
