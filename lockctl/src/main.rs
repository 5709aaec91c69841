//! Command line for distributed locks.

mod bench;
mod doctor;
mod look;
mod migrate;
mod output;
#[cfg(unix)]
mod run;
mod shell;
#[cfg(unix)]
mod signals;
mod store;
mod verify;

use std::{future::Future, process::ExitCode};

use clap::{Parser, Subcommand};
use polylock::{ErrorKind, LockError};

/// Runs programs under distributed locks, shows who holds what, and moves fleets between stores.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes (those of `run` and `try` are in their own help):
    0  done
    1  a store failed; look at the status before you try again
    2  the command line or the URL is wrong
    3  refused, and nothing was changed; the message says what to do
    4  the change was made, but not all members were seen to follow it within the limit
    5  something is not as it should be; the findings say what
  130  interrupted; a change that had been made stands";

/// Names of the processes that lockctl starts beside the command.
#[cfg(unix)]
const LAUNCH: &str = "internal-launch";
#[cfg(unix)]
const WATCHDOG: &str = "internal-watchdog";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command while holding a lock; waits for the lock
    #[cfg(unix)]
    #[command(after_help = run::EXIT_CODES)]
    Run(run::Run),
    /// Take a lock if it is free, and run a command; without a command only see whether it can be had
    #[cfg(unix)]
    #[command(after_help = run::EXIT_CODES)]
    Try(run::Try),
    /// Show who holds a lock, and how many wait
    Status(look::Status),
    /// Show the locks that somebody holds
    List(look::List),
    /// Tell who holds a lock, now and whenever that changes
    Watch(look::Watch),
    /// Take a lock away from a holder, and from no other
    Release(look::Release),
    /// Look for all that may be wrong with a store, its settings, and what this user may do
    Doctor(doctor::Doctor),
    /// Measure this store from here, for a few seconds
    Bench(bench::Bench),
    /// Move a running fleet from one store to another
    #[command(subcommand, after_help = EXIT_CODES)]
    Migrate(migrate::Migrate),
    /// Print the completions for a shell
    Completions(shell::Completions),
    /// Print the manual page, or write all of them to a directory
    Man(shell::Man),
    #[cfg(unix)]
    #[command(name = LAUNCH, hide = true)]
    Launch(run::Launch),
    #[cfg(unix)]
    #[command(name = WATCHDOG, hide = true)]
    Watchdog(run::Watchdog),
}

/// The way in which a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// All is as it was asked for.
    Settled,
    /// Something is wrong, as a report has said.
    Failed,
    /// Nothing was changed, as a message has said.
    Refused,
    /// The change was made, and not all members were seen to follow it.
    Behind,
    /// A verification has found something.
    Found,
    Interrupted,
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| shell::refuse(&error));
    match cli.command {
        #[cfg(unix)]
        Command::Launch(launch) => ExitCode::from(launch.run()),
        #[cfg(unix)]
        Command::Watchdog(watchdog) => ExitCode::from(watchdog.run()),
        Command::Completions(completions) => completions.print(),
        Command::Man(man) => man.print(),
        command => run_command(command),
    }
}

fn run_command(command: Command) -> ExitCode {
    // The main thread does everything: a command that runs under a lock is killed when the thread
    // ends that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lockctl: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(command.run());
    // A name that is being looked up must not delay the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Command {
    /// Returns the exit code.
    async fn run(self) -> u8 {
        const CHANGE: &str = "; a change that has been made stands";
        const MIGRATION: &str = "; a change that has been made stands, and members go on to follow it: see `lockctl migrate status`";
        match self {
            #[cfg(unix)]
            Self::Run(run) => run.run().await,
            #[cfg(unix)]
            Self::Try(run) => run.run().await,
            Self::Status(status) => until_interrupted(status.run(), "").await,
            Self::List(list) => until_interrupted(list.run(), "").await,
            Self::Watch(watch) => until_interrupted(watch.run(), "").await,
            Self::Release(release) => until_interrupted(release.run(), CHANGE).await,
            Self::Doctor(doctor) => until_interrupted(doctor.run(), "").await,
            Self::Bench(bench) => until_interrupted(bench.run(), "").await,
            Self::Migrate(migrate) => until_interrupted(migrate.run(), MIGRATION).await,
            _ => unreachable!("the others need no runtime, and have been run"),
        }
    }
}

async fn until_interrupted(
    command: impl Future<Output = Result<Done, LockError>>,
    note: &str,
) -> u8 {
    let done = tokio::select! {
        done = command => done,
        Ok(()) = tokio::signal::ctrl_c() => {
            eprintln!("lockctl: interrupted{note}");
            Ok(Done::Interrupted)
        }
    };
    match done {
        Ok(Done::Settled) => 0,
        Ok(Done::Failed) => 1,
        Ok(Done::Refused) => 3,
        Ok(Done::Behind) => 4,
        Ok(Done::Found) => 5,
        Ok(Done::Interrupted) => 130,
        Err(error) => {
            eprintln!("lockctl: {error}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &LockError) -> u8 {
    match error.kind() {
        _ if error.is_indeterminate() => 1,
        ErrorKind::InvalidName | ErrorKind::InvalidUrl | ErrorKind::UnknownScheme => 2,
        // The coordinator's records are of another version, or tokens have not passed others yet.
        ErrorKind::InvalidConfig
        | ErrorKind::Protocol
        | ErrorKind::TimedOut
        | ErrorKind::Unsupported => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
