//! The command's process group, and its end with the lock.

use std::{
    env,
    ffi::OsString,
    future, io,
    io::IsTerminal,
    path::PathBuf,
    process::{self, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgrp, tcgetpgrp},
};
use polylock::{GuardState, LockGuard, LossReason};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{
    ending::{Ending, Step},
    launch::take_terminal,
    watchdog,
};
use crate::signals::Signals;

/// A command that runs in a process group of its own.
#[derive(Debug)]
pub(super) struct Group {
    leader: Child,
    id: Pid,
    watchdog: Option<Child>,
    ending: Ending,
    grace: Duration,
    started: Instant,
    /// The group has the terminal.
    is_foreground: bool,
}

/// Longest pause between two looks at the lock.
const LOOK: Duration = Duration::from_millis(500);
/// Pause between two looks at a group that is to end.
const END_LOOK: Duration = Duration::from_millis(20);
/// Time that the kernel has for a group that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);

impl Group {
    /// Starts the command.
    pub(super) fn start(
        command: &[OsString],
        guard: &LockGuard,
        grace: Duration,
    ) -> io::Result<Self> {
        let is_foreground = has_terminal();
        // Whatever the leader leaves behind becomes a child of this process, which can then wait
        // for it.
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut launch = this_program();
        launch
            .arg(crate::LAUNCH)
            .arg(format!("--parent={}", process::id()))
            .args(is_foreground.then_some("--foreground"))
            .arg("--")
            .args(command)
            .env("LOCK_NAME", guard.name().as_str())
            .env("LOCK_OWNER", guard.owner().as_str())
            .env_remove("LOCK_TOKEN")
            .envs(guard.token().map(|token| ("LOCK_TOKEN", token.to_string())))
            .process_group(0);
        let leader = launch.spawn()?;
        let id = leader.id().and_then(|id| i32::try_from(id).ok());
        let id = id.ok_or_else(|| io::Error::other("the process has no id"))?;
        Ok(Self {
            leader,
            id: Pid::from_raw(id),
            watchdog: None,
            ending: Ending::new(grace),
            grace,
            started: Instant::now(),
            is_foreground,
        })
    }

    /// Waits for the end of the command and of all that it has left in its group, passes signals on
    /// to it, and ends it with its lock.
    pub(super) async fn run(
        mut self,
        guard: &LockGuard,
        signals: &mut Signals,
    ) -> io::Result<ExitStatus> {
        let status = self.until_leader_ends(guard, signals).await;
        self.end_rest(guard).await;
        self.tell_watchdog(watchdog::has_ended()).await;
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait().await;
        }
        if self.is_foreground {
            let _ = take_terminal();
        }
        status
    }

    async fn until_leader_ends(
        &mut self,
        guard: &LockGuard,
        signals: &mut Signals,
    ) -> io::Result<ExitStatus> {
        loop {
            self.look_at_lock(guard).await;
            self.resume();
            let pause = (guard.remaining() / 10).clamp(END_LOOK, LOOK);
            tokio::select! {
                status = self.leader.wait() => return status,
                signal = signals.next() => self.pass_on(signal),
                () = ended(guard) => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn pass_on(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            self.send(signal);
        }
    }

    /// Does what the lock demands.
    async fn look_at_lock(&mut self, guard: &LockGuard) {
        let now = self.started.elapsed();
        let (state, remaining) = (guard.state(), guard.remaining());
        match self.ending.step(now, state, remaining) {
            Step::Nothing => {}
            Step::Terminate => {
                eprintln!("lockctl: ending the command: the lock is {}", why(state));
                self.send(Signal::SIGTERM);
                // A stopped process hears nothing before it goes on.
                self.send(Signal::SIGCONT);
            }
            Step::Kill => self.send(Signal::SIGKILL),
        }
        let left = self.ending.limit(now, remaining);
        self.tell_watchdog(watchdog::may_live(left)).await;
    }

    /// Ends what the leader has left in its group: it would run on without the lock.
    async fn end_rest(&mut self, guard: &LockGuard) {
        if self.is_gone() {
            return;
        }
        eprintln!("lockctl: ending what the command has left behind");
        self.send(Signal::SIGTERM);
        let asked = Instant::now();
        while !self.is_gone() && asked.elapsed() < self.grace + KILL_LIMIT {
            self.look_at_lock(guard).await;
            if asked.elapsed() >= self.grace {
                self.send(Signal::SIGKILL);
            }
            sleep(END_LOOK).await;
        }
    }

    /// Returns true if the group has no process any more, after its leader has ended.
    fn is_gone(&self) -> bool {
        let any = Pid::from_raw(-self.id.as_raw());
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(any, Some(WaitPidFlag::WNOHANG))
        {}
        killpg(self.id, None) == Err(Errno::ESRCH)
    }

    fn send(&self, signal: Signal) {
        match killpg(self.id, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => eprintln!("lockctl: cannot send {signal} to the command: {error}"),
        }
    }

    /// Lets a command go on that the terminal has stopped: nobody else could tell it to, and the
    /// lock is held on.
    fn resume(&self) {
        #[cfg(target_os = "linux")]
        {
            use nix::sys::wait::{Id, waitid};
            let stopped = waitid(
                Id::Pid(self.id),
                WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG,
            );
            if let Ok(WaitStatus::Stopped(_, Signal::SIGTSTP)) = stopped
                && self.is_foreground
            {
                eprintln!("lockctl: a command that holds a lock cannot be stopped from here");
                self.send(Signal::SIGCONT);
            }
        }
    }

    /// Tells the watchdog; a new one if there is none any more.
    async fn tell_watchdog(&mut self, message: [u8; 8]) {
        let has_ended = match &mut self.watchdog {
            Some(watchdog) => !matches!(watchdog.try_wait(), Ok(None)),
            None => true,
        };
        if has_ended {
            match start_watchdog(self.id) {
                Ok(watchdog) => self.watchdog = Some(watchdog),
                Err(error) => {
                    return eprintln!("lockctl: cannot start a watchdog: {error}");
                }
            }
        }
        if let Some(stdin) = self.watchdog.as_mut().and_then(|it| it.stdin.as_mut()) {
            // One that is stopped must not stop this process.
            let _ = timeout(END_LOOK, stdin.write_all(&message)).await;
        }
    }
}

/// Completes when the lock has just been lost, and not again.
async fn ended(guard: &LockGuard) {
    match guard.is_held() {
        true => drop(guard.ended().await),
        false => future::pending().await,
    }
}

fn why(state: GuardState) -> String {
    match state {
        GuardState::Lost(LossReason::Removed) => "taken away".to_owned(),
        GuardState::Held => "about to end, and could not be renewed".to_owned(),
        state => state.to_string(),
    }
}

fn start_watchdog(group: Pid) -> io::Result<Child> {
    this_program()
        .arg(crate::WATCHDOG)
        .arg(group.as_raw().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Signals of the terminal are not for it.
        .process_group(0)
        .spawn()
}

/// This program, even if its file has been replaced meanwhile.
fn this_program() -> Command {
    let path = match cfg!(target_os = "linux") {
        true => Ok(PathBuf::from("/proc/self/exe")),
        false => env::current_exe(),
    };
    let mut command = Command::new(path.unwrap_or_else(|_| "lockctl".into()));
    command.arg0("lockctl");
    command
}

/// Returns true if this process's group is the one that the terminal of standard input talks to.
fn has_terminal() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal() && tcgetpgrp(&stdin) == Ok(getpgrp())
}
