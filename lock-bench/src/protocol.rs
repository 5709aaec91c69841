//! How the benchmark talks to its worker processes, whatever language they are written in.
//!
//! A worker is started with `--url`, `--prefix`, `--names`, `--process`, `--tasks`, `--batch` and `--share`. It reads one command
//! per line from its standard input and writes one [`Event`] per line, as JSON, to its standard output:
//!
//! | command | what the worker does |
//! | --- | --- |
//! | | connects, then says `ready` |
//! | `start` | each task takes and releases its lock, again and again; with a share, each waits after so many cycles until all of this worker have done theirs |
//! | `measure 2.5` | counts the cycles that end within the next 2.5 s, and goes on with the load |
//! | `stop` | ends after the cycles in progress, then says `done` |
//! | end of input | leaves the store as it was, and exits |

use serde::{Deserialize, Serialize};

use crate::plan::Names;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// Connected; the barrier before the window.
    Ready,
    /// The names of a holding measurement are held.
    Holding { seconds: f64, rss_before_kib: u64, rss_kib: u64 },
    /// The names have been locked and released.
    Passed { first_half_seconds: f64, second_half_seconds: f64, rss_before_kib: u64, rss_kib: u64 },
    /// What was counted in the window.
    Done(Tally),
    /// The worker gives up.
    Failed { message: String },
}

/// The cycles of one window.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// How many cycles each number below stands for: their mean.
    pub(crate) batch: u64,
    /// From the call of acquire to the lock in hand.
    pub(crate) waits_ns: Vec<u64>,
    /// From the call of acquire to the return of release.
    pub(crate) cycles_ns: Vec<u64>,
    #[serde(default)]
    pub(crate) errors: u64,
    #[serde(default)]
    pub(crate) first_error: Option<String>,
}

/// What a worker is to do.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Job {
    /// Where the store is.
    #[arg(long)]
    pub(crate) url: String,
    /// What all names of this measurement begin with.
    #[arg(long)]
    pub(crate) prefix: String,
    /// Whether each task has a name of its own.
    #[arg(long, value_enum)]
    pub(crate) names: Names,
    /// Which of the processes this is.
    #[arg(long, default_value_t = 0)]
    pub(crate) process: usize,
    /// How many tasks run at the same time.
    #[arg(long)]
    pub(crate) tasks: usize,
    /// How many cycles to time together.
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u64,
    /// How many cycles each task does before it waits for the others; 0 if none waits for another.
    #[arg(long, default_value_t = 0)]
    pub(crate) share: u64,
}

impl Job {
    /// What the task locks.
    pub(crate) fn name(&self, task: usize) -> String {
        match self.names {
            Names::Own => format!("{}-{}-{task}", self.prefix, self.process),
            Names::Shared => format!("{}-one", self.prefix),
        }
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let names = match self.names {
            Names::Own => "own",
            Names::Shared => "shared",
        };
        let pairs = [
            ("--url", self.url.clone()),
            ("--prefix", self.prefix.clone()),
            ("--names", names.to_owned()),
            ("--process", self.process.to_string()),
            ("--tasks", self.tasks.to_string()),
            ("--batch", self.batch.to_string()),
            ("--share", self.share.to_string()),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}
