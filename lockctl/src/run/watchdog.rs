//! The process that kills the command's group if lockctl does not, because it is dead, stopped or
//! stalled.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use clap::Args;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Reads from standard input how long the group may live, and kills it after that, or when nobody
/// is left to write.
#[derive(Debug, Args)]
pub(crate) struct Watchdog {
    /// Process group to kill.
    group: i32,
}

/// Tells that the group has ended.
const ENDED: u64 = u64::MAX;

/// Message that the group may live for this long, without another one.
pub(super) fn may_live(left: Duration) -> [u8; 8] {
    let left = u64::try_from(left.as_millis()).unwrap_or(ENDED - 1);
    left.min(ENDED - 1).to_le_bytes()
}

/// Message that the group has ended.
pub(super) fn has_ended() -> [u8; 8] {
    ENDED.to_le_bytes()
}

impl Watchdog {
    pub(crate) fn run(self) -> u8 {
        if let Some(why) = self.watch() {
            match killpg(Pid::from_raw(self.group), Signal::SIGKILL) {
                Ok(()) => eprintln!("lockctl: {why}; the command was killed"),
                Err(Errno::ESRCH) => {}
                Err(error) => eprintln!("lockctl: {why}; the command cannot be killed: {error}"),
            }
        }
        0
    }

    /// Waits until the group must be killed, and returns why; none if it has ended.
    fn watch(&self) -> Option<&'static str> {
        // Without a buffer, so that what is there to read is seen by a poll.
        let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() else {
            return Some("standard input cannot be read");
        };
        let mut stdin = File::from(stdin);
        let mut until = None;
        loop {
            if !can_read(&stdin, until) {
                return Some("the lock is at its deadline");
            }
            let mut message = [0; 8];
            if stdin.read_exact(&mut message).is_err() {
                return Some("lockctl was killed");
            }
            match u64::from_le_bytes(message) {
                ENDED => return None,
                left => until = Instant::now().checked_add(Duration::from_millis(left)),
            }
        }
    }
}

/// Waits until there is something to read, and returns false if there is nothing by then.
fn can_read(file: &File, until: Option<Instant>) -> bool {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that the last wait is not followed by a busy millisecond.
        let wait = left.map_or(u128::MAX, |left| left.as_millis() + 1);
        let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut files, u16::try_from(wait).unwrap_or(u16::MAX)) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            _ => return true,
        }
    }
}
