use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    Result,
    fleet::Program,
    holding,
    measure::Settings,
    output, passing,
    protocol::{Event, Job},
    subjects::{self, WorkerKind},
    suites::Suite,
    worker,
};

/// Measures our locks side by side with others, in one run on one machine.
#[derive(Debug, Parser)]
#[command(name = "lock-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures against etcd's raw client, and Go's Mutex.
    #[cfg(feature = "etcd")]
    Etcd(Options),
    /// Measures layers on Redis: none, an empty stack, traces and metrics.
    #[cfg(feature = "layers")]
    Layers(Options),
    /// Measures in memory, against tokio's Mutex behind a keyed map, and the crate lockable.
    #[cfg(feature = "mem")]
    Mem(Options),
    /// Measures the phases of a migration from Redis to etcd against both alone.
    #[cfg(feature = "migrate")]
    Migrate(Options),
    /// Measures against Redis's raw client, redis-py, python-redis-lock and rslock.
    #[cfg(feature = "redis")]
    Redis(Options),
    /// Serves one measurement: the benchmark starts this itself.
    #[command(hide = true)]
    Worker {
        #[arg(long, value_enum)]
        kind: WorkerKind,
        #[command(flatten)]
        job: Job,
    },
    /// Holds many names: the benchmark starts this itself.
    #[command(hide = true)]
    Hold(NamesJob),
    /// Locks many names once: the benchmark starts this itself.
    #[command(hide = true)]
    Pass(NamesJob),
}

/// Job of a worker that deals with many names.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamesJob {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) prefix: String,
    #[arg(long)]
    pub(crate) names: usize,
}

/// Choice of the measurements, and the place for the results.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Length of each measured window.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Number of times that everything is measured; medians are reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// One round of short windows: shows that the benchmark works, not how fast anything is.
    #[arg(long)]
    quick: bool,
    /// Measure only what has this text in its name, such as "64 tasks" or "held".
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Directory for the results.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// Also shows the results in this page, with the plots in a directory beside it. Only for a
    /// complete run.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md", conflicts_with_all = ["only", "quick"])]
    pub(crate) docs: Option<PathBuf>,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give a number of seconds from 0.05 to 600".to_owned()),
    }
}

impl Options {
    pub(crate) fn settings(&self) -> Settings {
        if self.quick {
            return Settings {
                rounds: 1,
                window: Duration::from_millis(300),
            };
        }
        let rounds = usize::try_from(self.rounds).unwrap_or(usize::MAX);
        Settings {
            rounds,
            window: Duration::from_secs_f64(self.seconds),
        }
    }

    pub(crate) fn selects(&self, title: &str) -> bool {
        self.only.as_deref().is_none_or(|text| title.contains(text))
    }
}

pub(crate) async fn run() -> Result<()> {
    match Cli::parse().command {
        #[cfg(feature = "etcd")]
        Command::Etcd(options) => {
            bench(crate::suites::etcd::suite(&options).await?, &options).await
        }
        Command::Worker { kind, job } => report_failure(subjects::serve(kind, job).await),
        #[cfg(feature = "mem")]
        Command::Mem(options) => bench(crate::suites::mem::suite()?, &options).await,
        #[cfg(feature = "layers")]
        Command::Layers(options) => bench(crate::suites::layers::suite().await?, &options).await,
        #[cfg(feature = "migrate")]
        Command::Migrate(options) => bench(crate::suites::migrate::suite().await?, &options).await,
        #[cfg(feature = "redis")]
        Command::Redis(options) => {
            bench(crate::suites::redis::suite(&options).await?, &options).await
        }
        Command::Pass(job) => report_failure(passing::serve(job).await),
        Command::Hold(job) => report_failure(holding::serve(job).await),
    }
}

async fn bench(suite: Suite, options: &Options) -> Result<()> {
    for message in &suite.left_out {
        eprintln!("left out: {message}");
    }
    let results = suite.run(options).await?;
    output::write(&suite, &results, options).await
}

/// Reports a failure as an event, because the benchmark reads what a worker says, not how it exits.
fn report_failure(outcome: Result<()>) -> Result<()> {
    outcome.or_else(|error| {
        let message = error.to_string();
        worker::say(&Event::Failed { message }).map_err(|_| error)
    })
}

/// This program as a worker.
pub(crate) fn own_program(command: &str) -> Result<Program> {
    Ok(Program {
        path: std::env::current_exe()?,
        arguments: vec![command.to_owned()],
        environment: Vec::new(),
    })
}

pub(crate) fn own_worker(kind: WorkerKind) -> Result<Program> {
    let mut program = own_program("worker")?;
    let name = kind
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    program.arguments.extend(["--kind".to_owned(), name]);
    Ok(program)
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
