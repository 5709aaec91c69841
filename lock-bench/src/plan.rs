use std::fmt;

use serde::{Deserialize, Serialize};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Our backend, through `Arc<dyn DistributedLock>`.
    Ours,
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
    /// All tasks of all processes want one name.
    #[serde(rename = "contended")]
    Contended,
    /// The same, while others write to other keys of the store.
    #[serde(rename = "contended+writers")]
    ContendedWithWriters,
}

/// Whether each task has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Names {
    Own,
    Shared,
}

/// What identifies a row of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Key {
    pub(crate) scenario: Scenario,
    pub(crate) subject: Subject,
    /// In each process.
    pub(crate) tasks: usize,
    pub(crate) processes: usize,
}

/// What is compared: each round measures all of it in turn.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) runs: Vec<Key>,
}

impl Scenario {
    pub(crate) fn names(self) -> Names {
        match self {
            Self::Uncontended => Names::Own,
            Self::Contended | Self::ContendedWithWriters => Names::Shared,
        }
    }
}

impl Key {
    pub(crate) fn uncontended(subject: Subject, tasks: usize) -> Self {
        Self { scenario: Scenario::Uncontended, subject, tasks, processes: 1 }
    }

    /// One process.
    pub(crate) fn contended(subject: Subject, tasks: usize) -> Self {
        Self { scenario: Scenario::Contended, subject, tasks, processes: 1 }
    }

    /// One task in each process.
    pub(crate) fn processes(subject: Subject, processes: usize) -> Self {
        Self { scenario: Scenario::Contended, subject, tasks: 1, processes }
    }

    pub(crate) fn with_writers(mut self) -> Self {
        self.scenario = Scenario::ContendedWithWriters;
        self
    }

    pub(crate) fn contenders(self) -> usize {
        self.tasks * self.processes
    }
}

impl Group {
    pub(crate) fn new(title: impl Into<String>, runs: impl IntoIterator<Item = Key>) -> Self {
        Self { title: title.into(), runs: runs.into_iter().collect() }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
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
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, subject, tasks, processes } = self;
        write!(f, "{scenario} {subject}, {}", counted(*tasks, "task"))?;
        if *processes > 1 { write!(f, " in each of {processes} processes") } else { Ok(()) }
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
            assert_eq!(serde_json::to_string(subject).unwrap(), format!("\"{subject}\""));
        }
    }

    #[test]
    fn a_scenario_prints_as_it_is_written() {
        for scenario in [Scenario::Uncontended, Scenario::Contended, Scenario::ContendedWithWriters] {
            assert_eq!(serde_json::to_string(&scenario).unwrap(), format!("\"{scenario}\""));
        }
    }
}
