use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A subject of the measurements.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Our backend, through `Arc<dyn DistributedLock>`.
    Ours,
    /// The same, each task with a client of its own.
    OursApart,
    /// The same through a stack without layers.
    Unlayered,
    /// The same through traces and metrics, to which nobody listens.
    Layered,
    /// The same through traces and metrics, to a log and to Prometheus.
    LayeredListened,
    /// Our backend that is the source of a migration, without one.
    OnSource,
    /// Our backend that is the target of a migration, without one.
    OnTarget,
    /// A migration in the phase source-only.
    MigratingSource,
    /// A migration in the phase dual.
    MigratingDual,
    /// A migration in the phase final.
    MigratingFinal,
    /// The client library that our backend uses, sending the same commands.
    Raw,
    /// Go's `concurrency.Mutex`.
    GoMutex,
    /// redis-py's `Lock`.
    RedisPy,
    /// The Python package python-redis-lock.
    PythonRedisLock,
    /// The Rust crate rslock.
    Rslock,
    /// `tokio::sync::Mutex` behind a keyed map.
    TokioMutex,
    /// The Rust crate lockable.
    Lockable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) enum Scenario {
    /// Each task has a name of its own.
    #[serde(rename = "uncontended")]
    Uncontended,
    /// All tasks of all processes compete for one name.
    #[serde(rename = "contended")]
    Contended,
    /// The same, while others write to other keys of the store.
    #[serde(rename = "contended+writers")]
    ContendedWithWriters,
    /// The same, and each holds the lock for a while.
    #[serde(rename = "contended+hold")]
    ContendedWithHold,
    /// The same, until each has had the lock as often as the others: a lock that prefers some
    /// gains nothing by it.
    #[serde(rename = "contended+equal-shares")]
    EqualShares,
}

/// Names that the tasks lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Names {
    Own,
    Shared,
}

/// Key that identifies a row of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Key {
    pub(crate) scenario: Scenario,
    pub(crate) subject: Subject,
    /// Number of tasks in each process.
    pub(crate) tasks: usize,
    pub(crate) processes: usize,
}

/// Subjects that are compared: each round measures all of them in turn.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) runs: Vec<Key>,
}

impl Scenario {
    pub(crate) fn names(self) -> Names {
        match self {
            Self::Uncontended => Names::Own,
            _ => Names::Shared,
        }
    }
}

/// A hold in which the store is idle.
const HOLD: Duration = Duration::from_millis(5);

/// Each contender's share.
const SHARE: u64 = 20;

impl Scenario {
    /// How long each contender holds the lock.
    pub(crate) fn hold(self) -> Duration {
        match self {
            Self::ContendedWithHold => HOLD,
            _ => Duration::ZERO,
        }
    }

    /// Number of cycles after which a contender ends by itself; 0 if it does not.
    pub(crate) fn cycles(self) -> u64 {
        match self {
            Self::EqualShares => SHARE,
            _ => 0,
        }
    }
}

impl Key {
    pub(crate) fn uncontended(subject: Subject, tasks: usize) -> Self {
        Self {
            scenario: Scenario::Uncontended,
            subject,
            tasks,
            processes: 1,
        }
    }

    /// Contention within one process.
    pub(crate) fn contended(subject: Subject, tasks: usize) -> Self {
        Self {
            scenario: Scenario::Contended,
            subject,
            tasks,
            processes: 1,
        }
    }

    /// Contention between processes, with one task in each.
    pub(crate) fn processes(subject: Subject, processes: usize) -> Self {
        Self {
            scenario: Scenario::Contended,
            subject,
            tasks: 1,
            processes,
        }
    }

    pub(crate) fn with_writers(mut self) -> Self {
        self.scenario = Scenario::ContendedWithWriters;
        self
    }

    pub(crate) fn with_hold(mut self) -> Self {
        self.scenario = Scenario::ContendedWithHold;
        self
    }

    pub(crate) fn with_equal_shares(mut self) -> Self {
        self.scenario = Scenario::EqualShares;
        self
    }

    pub(crate) fn contenders(self) -> usize {
        self.tasks * self.processes
    }
}

impl Group {
    pub(crate) fn new(title: impl Into<String>, runs: impl IntoIterator<Item = Key>) -> Self {
        Self {
            title: title.into(),
            runs: runs.into_iter().collect(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::OursApart => "ours-apart",
            Self::Unlayered => "unlayered",
            Self::Layered => "layered",
            Self::LayeredListened => "layered-listened",
            Self::OnSource => "on-source",
            Self::OnTarget => "on-target",
            Self::MigratingSource => "migrating-source",
            Self::MigratingDual => "migrating-dual",
            Self::MigratingFinal => "migrating-final",
            Self::Raw => "raw",
            Self::GoMutex => "go-mutex",
            Self::RedisPy => "redis-py",
            Self::PythonRedisLock => "python-redis-lock",
            Self::Rslock => "rslock",
            Self::TokioMutex => "tokio-mutex",
            Self::Lockable => "lockable",
        })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uncontended => "uncontended",
            Self::Contended => "contended",
            Self::ContendedWithWriters => "contended+writers",
            Self::ContendedWithHold => "contended+hold",
            Self::EqualShares => "contended+equal-shares",
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scenario,
            subject,
            tasks,
            processes,
        } = self;
        write!(f, "{scenario} {subject}, {}", counted(*tasks, "task"))?;
        if *processes > 1 {
            write!(f, " in each of {processes} processes")
        } else {
            Ok(())
        }
    }
}

pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_one_name_everywhere() {
        for subject in <Subject as clap::ValueEnum>::value_variants() {
            let argument = clap::ValueEnum::to_possible_value(subject).unwrap();
            assert_eq!(argument.get_name(), subject.to_string());
            assert_eq!(
                serde_json::to_string(subject).unwrap(),
                format!("\"{subject}\"")
            );
        }
    }

    #[test]
    fn a_scenario_prints_as_it_is_written() {
        for scenario in [
            Scenario::Uncontended,
            Scenario::Contended,
            Scenario::ContendedWithWriters,
            Scenario::ContendedWithHold,
            Scenario::EqualShares,
        ] {
            assert_eq!(
                serde_json::to_string(&scenario).unwrap(),
                format!("\"{scenario}\"")
            );
        }
    }
}
