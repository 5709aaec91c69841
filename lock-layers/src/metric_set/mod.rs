//! Metrics on the facade of the `metrics` crate.

mod hold;
pub mod metric_names;
mod recorder;
mod waiting;

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, DistributedLock, LockError, LockGuard, LockHolder, LockInfo, LockList,
    LockName, LockWatch, Operation, OwnerId, forward_lock,
};
use tokio::time::Instant;

pub use self::metric_names::describe_metrics;
use self::{hold::Hold, recorder::Recorder, waiting::Waiting};
use crate::{
    Layer,
    observed::observed,
    words::{self, AsGuard},
};

/// Counts and times what locks do, on the facade of the [`metrics`] crate: the application chooses
/// the exporter. Without one every call is next to free.
///
/// | metric | kind, unit | labels besides `backend` | meaning |
/// | --- | --- | --- | --- |
/// | `lock_acquisitions_total` | counter | `operation`, `outcome` | acquires and try-acquires that have ended |
/// | `lock_wait_seconds` | histogram, seconds | `operation`, `outcome` | duration of these calls |
/// | `lock_waiters` | gauge | | acquires under way |
/// | `lock_holders` | gauge | | guards that are held |
/// | `lock_hold_seconds` | histogram, seconds | `end` | time from a grant to the begin of its release, or to the loss |
/// | `lock_release_seconds` | histogram, seconds | `outcome` | duration of releases that somebody waited for |
/// | `lock_handover_seconds` | histogram, seconds | | time from the end of a guard to the next grant to a task of this process that waited then; another process may have held the lock in between |
/// | `lock_losses_total` | counter | `reason` | guards that were lost |
/// | `lock_renewal_margin_seconds` | histogram, seconds | | time that was left when a renewal was acknowledged; its count is that of renewals |
/// | `lock_errors_total` | counter | `operation`, `kind` | errors of all calls, without `timed_out` and `lost` |
///
/// `operation` is that of [`Operation`], such as `try-acquire`. `outcome` of an acquire is
/// `granted`, `busy` (a try-acquire of a lock that is not free), `cancelled` (the future was
/// dropped), or the kind of the error, such as `timed_out` and `unavailable`; that of a release is
/// `released` or the error's kind. `end` is `released` or `lost`; `reason` is `expired`, `removed`,
/// `max_hold` or `shutdown`. Names of locks are no label unless
/// [asked for](Self::with_lock_names). The names are constants in [`metric_names`].
///
/// Of a guard that is [joined](LockGuard::join) from several locks below this layer, each lease
/// counts its own renewals. What happens inside of a backend, such as its reconnections and its
/// reads of a queue, no layer sees.
///
/// Install the exporter first: its descriptions of the metrics come from the first
/// [`layer`](Layer::layer), or from [`describe_metrics`]. A histogram becomes a Prometheus summary
/// unless it has [buckets](metric_names::BUCKETS).
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lock_names: bool,
}

impl Metrics {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Labels everything with the name of its lock, as `lock`; default: off. For a fixed set of
    /// names only: each makes time series of its own, which no exporter forgets.
    #[must_use]
    pub fn with_lock_names(mut self) -> Self {
        self.lock_names = true;
        self
    }
}

impl Layer for Metrics {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        describe_metrics();
        let backend = inner.capabilities().backend.into_owned();
        Arc::new(MetricsLock {
            inner,
            recorder: Recorder::new(backend, self.lock_names),
            waiting: Arc::default(),
        })
    }
}

#[derive(Debug)]
struct MetricsLock {
    inner: Arc<dyn DistributedLock>,
    recorder: Recorder,
    waiting: Arc<Waiting>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for MetricsLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let wait = self.waiting.enter(name, &self.recorder);
        let acquire = self.inner.acquire_named(name, options);
        let outcome = self.measured(name, Operation::Acquire, acquire).await;
        if outcome.is_ok() {
            wait.granted();
        }
        outcome
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let acquire = self.inner.try_acquire_named(name, options);
        self.measured(name, Operation::TryAcquire, acquire).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let outcome = self.inner.inspect_named(name).await;
        self.counted(Some(name), Operation::Inspect, outcome)
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let outcome = self.inner.force_release_named(name, only).await;
        self.counted(Some(name), Operation::ForceRelease, outcome)
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let outcome = self.inner.watch_named(name).await;
        self.counted(Some(name), Operation::Watch, outcome)
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let outcome = self.inner.list(prefix).await;
        self.counted(None, Operation::List, outcome)
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        let outcome = self.inner.shutdown().await;
        self.counted(None, Operation::Shutdown, outcome)
    }

    forward_lock!(inner: capabilities);
}

impl MetricsLock {
    /// Measures an acquire, and observes its guard.
    async fn measured<G: AsGuard>(
        &self,
        name: &LockName,
        operation: Operation,
        acquire: impl Future<Output = Result<G, LockError>> + Send,
    ) -> Result<G, LockError> {
        let mut call = Call {
            recorder: &self.recorder,
            name,
            operation,
            began: Instant::now(),
            outcome: words::CANCELLED,
        };
        let outcome = acquire.await;
        call.outcome = words::outcome(&outcome);
        drop(call);
        let granted = self.counted(Some(name), operation, outcome)?;
        Ok(granted.map_guard(|guard| {
            let hold = Hold::new(name, &self.recorder, &self.waiting);
            observed(guard, hold)
        }))
    }

    fn counted<T>(
        &self,
        name: Option<&LockName>,
        operation: Operation,
        outcome: Result<T, LockError>,
    ) -> Result<T, LockError> {
        outcome.inspect_err(|error| self.recorder.error(name, operation, error))
    }
}

/// An acquire under way; counted when it ends, also by being dropped.
struct Call<'c> {
    recorder: &'c Recorder,
    name: &'c LockName,
    operation: Operation,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let operation = recorder::operation(self.operation);
        let labels = [("operation", operation), ("outcome", self.outcome)];
        let wait = self.began.elapsed();
        self.recorder
            .count(metric_names::ACQUISITIONS, Some(self.name), &labels);
        self.recorder
            .time(metric_names::WAIT, Some(self.name), &labels, wait);
    }
}

#[cfg(test)]
mod tests;
