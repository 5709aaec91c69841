//! Command line for operators of distributed locks.

mod migrate;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use polylock::{ErrorKind, LockError};

/// Operates distributed locks.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  a store failed; look at the status before you try again
    2  the command line or the URL is wrong
    3  refused, and nothing was changed; the message says what to do
    4  the change was made, but not all members were seen to follow it within the limit
  130  interrupted; a change that had been made stands";

#[derive(Debug, Subcommand)]
enum Command {
    /// Move a running fleet from one store to another
    #[command(subcommand, after_help = EXIT_CODES)]
    Migrate(migrate::Migrate),
}

/// The way in which a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// All is as it was asked for.
    Settled,
    /// The change was made, and not all members were seen to follow it.
    Behind,
    Interrupted,
}

fn main() -> ExitCode {
    let Command::Migrate(command) = Cli::parse().command;
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
    let done = runtime.block_on(until_interrupted(command));
    // A name that is being looked up must not delay the end.
    runtime.shutdown_background();
    match done {
        Ok(Done::Settled) => ExitCode::SUCCESS,
        Ok(Done::Behind) => ExitCode::from(4),
        Ok(Done::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("lockctl: {error}");
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn until_interrupted(command: migrate::Migrate) -> Result<Done, LockError> {
    tokio::select! {
        done = command.run() => done,
        Ok(()) = tokio::signal::ctrl_c() => {
            eprintln!("lockctl: interrupted; a change that has been made stands, and members go on to follow it: see `lockctl migrate status`");
            Ok(Done::Interrupted)
        }
    }
}

fn exit_code(error: &LockError) -> u8 {
    match error.kind() {
        _ if error.is_indeterminate() => 1,
        ErrorKind::InvalidName | ErrorKind::InvalidUrl | ErrorKind::UnknownScheme => 2,
        // The coordinator's records are of another version, or tokens have not passed others yet.
        ErrorKind::InvalidConfig | ErrorKind::Protocol | ErrorKind::TimedOut => 3,
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
