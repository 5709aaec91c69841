//! The servers that are measured, as the benchmark sees them from outside.

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(feature = "migrate")]
pub(crate) mod migrate;
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
    /// URL at which the workers find the store.
    fn url(&self) -> &str;

    /// Name and version, for the report.
    async fn version(&self) -> Result<String>;

    /// Counts the requests received so far, by the store's own account; `None` if it keeps none.
    async fn requests(&self) -> Result<Option<Requests>>;

    /// Restores the same state before each measurement.
    async fn tidy(&self) -> Result<()>;

    /// Number of leases, where the store has leases.
    async fn leases(&self) -> Result<Option<u64>>;
}

/// Requests that a store has received.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    /// Calls; a stream counts as one, however many requests it carries.
    pub(crate) calls: Counts,
    /// Reads from its sockets, where the store counts them: requests that arrive together are read
    /// together.
    pub(crate) reads: Option<f64>,
    /// Seconds of the server's CPU, where the store counts them.
    pub(crate) cpu_s: Option<f64>,
    /// Messages: a plain call counts as one, and so does each request on a stream.
    pub(crate) messages: Counts,
}

/// Number of each kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts(pub(crate) BTreeMap<String, f64>);

impl Requests {
    pub(crate) fn since(&self, before: &Self) -> Self {
        let since = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        Self {
            reads: since(self.reads, before.reads),
            cpu_s: since(self.cpu_s, before.cpu_s),
            calls: self.calls.since(&before.calls),
            messages: self.messages.since(&before.messages),
        }
    }

    /// Leaves out those of this kind.
    pub(crate) fn without(mut self, kind: &str) -> Self {
        self.calls.0.remove(kind);
        self.messages.0.remove(kind);
        self
    }
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        let earlier = |kind: &String| before.0.get(kind).copied().unwrap_or_default();
        Self(
            self.0
                .iter()
                .map(|(kind, now)| (kind.clone(), now - earlier(kind)))
                .collect(),
        )
    }

    /// Number of all kinds together.
    pub(crate) fn sum(&self) -> f64 {
        self.0.values().sum()
    }

    /// Number of one kind.
    pub(crate) fn of(&self, kind: &str) -> f64 {
        self.0.get(kind).copied().unwrap_or_default()
    }

    pub(crate) fn divided_by(&self, divisor: f64) -> Self {
        Self(
            self.0
                .iter()
                .map(|(kind, count)| (kind.clone(), count / divisor))
                .collect(),
        )
    }
}
