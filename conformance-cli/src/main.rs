//! Command line of the conformance suite.

mod junit;
mod list;
mod page;
mod report;
mod run;
mod store;
mod terminal;
mod write;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

/// Proves a distributed lock, or finds what is wrong with it.
#[derive(Debug, Parser)]
#[command(name = "lock-conformance", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  every claim is proven, or nothing is claimed and no case failed
    1  a case has found a violation
    2  a claim is unproven: a case that it needs was not checked
    3  the store could not be reached, the report not written, or the command line is wrong";

/// Exit code for what is wrong around the run.
const ENVIRONMENT: u8 = 3;

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the suite on the store behind a URL
    #[command(after_help = EXIT_CODES)]
    Run(run::Run),
    /// List the cases
    List(list::List),
    /// Make the page and the XML of a report that a test of a backend has written
    Render(Render),
}

/// Options of `render`.
#[derive(Debug, clap::Args)]
struct Render {
    /// Report, as `--report` of a test target of the suite writes it
    report: PathBuf,
    /// Directory to write into; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

fn main() -> ExitCode {
    // A case in another process may have started this one.
    if let Some(code) = store::serve_child() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match cli.command {
        Command::Run(command) => command.run(),
        Command::List(command) => {
            command.run();
            Ok(ExitCode::SUCCESS)
        }
        Command::Render(Render { report, to }) => {
            write::render(&report, &to).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|message| {
        eprintln!("lock-conformance: {message}");
        ExitCode::from(ENVIRONMENT)
    })
}

/// Prints what clap has to say. Its own code for a wrong command line is that of unproven claims.
fn usage(error: &clap::Error) -> ExitCode {
    let is_asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    // Nothing can be done about a closed terminal.
    let _ = error.print();
    match is_asked_for {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(ENVIRONMENT),
    }
}
