//! What belongs to a program on a system: completions, manual pages, refusals.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{self, ExitCode},
};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::Cli;

/// The shell.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell that completes
    shell: Shell,
}

impl Completions {
    pub(crate) fn print(&self) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "lockctl", &mut script);
        report(io::stdout().write_all(&script))
    }
}

/// Where the pages go.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Directory for the pages of lockctl and of all its commands; without it, lockctl's is printed
    directory: Option<PathBuf>,
}

impl Man {
    pub(crate) fn print(&self) -> ExitCode {
        report(match &self.directory {
            Some(directory) => clap_mangen::generate_to(Cli::command(), directory),
            None => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()),
        })
    }
}

fn report(written: io::Result<()>) -> ExitCode {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("lockctl: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Says what is wrong with the command line, or prints the help that it asks for, and exits.
pub(crate) fn refuse(error: &clap::Error) -> ! {
    // The code of `run` and `try` must not be taken for one of the command's.
    let runs = std::env::args().nth(1);
    let runs = matches!(runs.as_deref(), Some("run" | "try"));
    if error.use_stderr() && runs {
        let _ = error.print();
        process::exit(64);
    }
    error.exit()
}
