//! The process that becomes the command.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt, parent_id},
    process::Command,
};

use clap::Args;
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::{getpgrp, tcsetpgrp},
};

use super::{CANNOT_EXECUTE, NOT_FOUND};

/// Ties this process to the life of lockctl, and turns it into the command.
#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// Process id of lockctl.
    #[arg(long)]
    parent: u32,
    /// Takes the terminal over.
    #[arg(long)]
    foreground: bool,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Launch {
    /// Returns the exit code if the command cannot be run.
    pub(crate) fn run(self) -> u8 {
        let error = match self.prepare() {
            Ok(()) => Command::new(&self.command[0])
                .args(&self.command[1..])
                .exec(),
            Err(error) => error,
        };
        eprintln!("lockctl: cannot run {}: {error}", self.command[0].display());
        match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => CANNOT_EXECUTE,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if parent_id() != self.parent {
            return Err(io::Error::other("lockctl has ended"));
        }
        if self.foreground {
            take_terminal()?;
        }
        Ok(())
    }
}

/// Makes this process's group the one that the terminal of standard input talks to.
pub(super) fn take_terminal() -> io::Result<()> {
    // Else the terminal stops a group in the background that does this.
    let stop = SigSet::from(Signal::SIGTTOU);
    stop.thread_block()?;
    let taken = tcsetpgrp(io::stdin(), getpgrp());
    stop.thread_unblock()?;
    Ok(taken?)
}
