//! Protocol between the benchmark and its worker processes, whatever language they are written in.
//!
//! A worker is started with `--url`, `--prefix`, `--names`, `--process`, `--tasks`, `--batch`,
//! `--share`, `--hold-us` and `--cycles`. It reads one command per line from its standard input and writes one [`Event`] per
//! line, as JSON, to its standard output:
//!
//! | command | what the worker does |
//! | --- | --- |
//! | | connects, then says `ready` |
//! | `start` | each task takes and releases its lock, again and again; with a share, each waits after so many cycles until all of this worker have done theirs |
//! | `measure 2.5` | counts the cycles that end within the next 2.5 s, and goes on with the load |
//! | `stop` | ends after the cycles in progress, or when each task has done its `--cycles`, then says `done` |
//! | end of input | leaves the store as it was, and exits |

use serde::{Deserialize, Serialize};

use crate::plan::Names;

/// Message from a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// Connected, and waiting at the barrier before the window.
    Ready,
    /// The names of a holding measurement are held.
    Holding {
        seconds: f64,
        rss_before_kib: u64,
        rss_kib: u64,
    },
    /// The names have been locked and released.
    Passed {
        first_half_seconds: f64,
        second_half_seconds: f64,
        rss_before_kib: u64,
        rss_kib: u64,
    },
    /// The counts of the window.
    Done(Tally),
    /// The worker gives up.
    Failed { message: String },
}

/// The cycles of one window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Number of cycles that each number below stands for, as their mean.
    pub(crate) batch: u64,
    /// Times from the call of acquire to the lock in hand.
    pub(crate) waits_ns: Vec<u64>,
    /// Times from the call of acquire to the return of release.
    pub(crate) cycles_ns: Vec<u64>,
    /// Of a worker with a hold or a number of cycles: when each acquisition was in hand and when
    /// its release began, in Unix time.
    #[serde(default)]
    pub(crate) grants_ns: Vec<[u64; 2]>,
    #[serde(default)]
    pub(crate) errors: u64,
    #[serde(default)]
    pub(crate) first_error: Option<String>,
}

/// Job of a worker.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Job {
    /// URL of the store.
    #[arg(long)]
    pub(crate) url: String,
    /// Prefix of all names of this measurement.
    #[arg(long)]
    pub(crate) prefix: String,
    /// Names that the tasks lock: each its own, or all the same one.
    #[arg(long, value_enum)]
    pub(crate) names: Names,
    /// Number of this process among the worker processes.
    #[arg(long, default_value_t = 0)]
    pub(crate) process: usize,
    /// Number of tasks that run at the same time.
    #[arg(long)]
    pub(crate) tasks: usize,
    /// Number of cycles to time together.
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u64,
    /// Number of cycles that each task does before it waits for the others; 0 if none waits for
    /// another.
    #[arg(long, default_value_t = 0)]
    pub(crate) share: u64,
    /// Time for which each acquisition is held, in microseconds.
    #[arg(long, default_value_t = 0)]
    pub(crate) hold_us: u64,
    /// Number of cycles that each task does in all, and all of them count; 0 for as many as the
    /// window allows.
    #[arg(long, default_value_t = 0)]
    pub(crate) cycles: u64,
}

impl Job {
    /// The name that the task locks.
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
            ("--hold-us", self.hold_us.to_string()),
            ("--cycles", self.cycles.to_string()),
        ];
        pairs
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}
