//! The servers that are measured against, as the benchmark looks at them from beside.

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(feature = "mem")]
pub(crate) mod process;
#[cfg(feature = "redis")]
pub(crate) mod redis;

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::Result;

/// A store that serves one run of the benchmark.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// Where the workers find it.
    fn url(&self) -> &str;

    /// Name and version, for the report.
    async fn version(&self) -> Result<String>;

    /// How many requests it has received so far by its own account; `None` if it keeps none.
    async fn requests(&self) -> Result<Option<Requests>>;

    /// Back to the same state before each measurement.
    async fn tidy(&self) -> Result<()>;

    /// How many leases there are, where the store has leases.
    async fn leases(&self) -> Result<Option<u64>>;
}

/// What a store has received.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    /// Calls; a stream is one, however much is said on it.
    pub(crate) calls: Counts,
    /// Reads from its sockets, where it counts them: what comes together is read together.
    pub(crate) reads: Option<f64>,
    /// Messages: a plain call is one, and so is each request on a stream.
    pub(crate) messages: Counts,
}

/// How many there were of each kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts(pub(crate) BTreeMap<String, f64>);

impl Requests {
    pub(crate) fn since(&self, before: &Self) -> Self {
        let reads = self.reads.zip(before.reads).map(|(now, before)| now - before);
        Self { reads, calls: self.calls.since(&before.calls), messages: self.messages.since(&before.messages) }
    }

    /// Without those of this kind.
    pub(crate) fn without(mut self, kind: &str) -> Self {
        self.calls.0.remove(kind);
        self.messages.0.remove(kind);
        self
    }
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        let earlier = |kind: &String| before.0.get(kind).copied().unwrap_or_default();
        Self(self.0.iter().map(|(kind, now)| (kind.clone(), now - earlier(kind))).collect())
    }

    /// How many there were of all kinds.
    pub(crate) fn sum(&self) -> f64 {
        self.0.values().sum()
    }

    /// How many there were of one kind.
    pub(crate) fn of(&self, kind: &str) -> f64 {
        self.0.get(kind).copied().unwrap_or_default()
    }

    pub(crate) fn divided_by(&self, divisor: f64) -> Self {
        Self(self.0.iter().map(|(kind, count)| (kind.clone(), count / divisor)).collect())
    }
}
