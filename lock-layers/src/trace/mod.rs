//! Spans and events.

mod hold;
mod process;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, DistributedLock, FencingToken, LockError, LockGuard, LockHolder, LockInfo,
    LockList, LockName, LockWatch, Operation, OwnerId, forward_lock,
};
use tracing::{Instrument, Level, Span, field::Empty, level_filters::LevelFilter};

use self::hold::Hold;
pub use self::process::process_metadata;
use crate::{Layer, observed::observed, words};

/// Reports what locks do as spans and events on [`tracing`], for a log or, through
/// `tracing-opentelemetry`, for a tracing system.
///
/// | span (`INFO`) | lasts | attributes besides `lock.name` and `lock.backend` |
/// | --- | --- | --- |
/// | `lock.acquire` | the call, with its wait in the queue | `lock.operation` (`acquire`, `try-acquire`), `lock.mode`, `lock.timeout_s`, `lock.outcome`; if granted `lock.owner`, `lock.token` |
/// | `lock.hold` | from the grant to the release or loss; follows from `lock.acquire`, and is a child of the span that was current then | `lock.owner`, `lock.token`, `lock.outcome` (`released`, `lost`), `lock.loss.reason`, `lock.renewals` |
/// | `lock.release` | the call; follows from `lock.hold`. A guard that is dropped has none | `lock.owner`, `lock.outcome` (`released`, or the error's kind) |
/// | `lock.call` | any other call | `lock.operation`, `lock.outcome` (`ok`, or the error's kind) |
///
/// `lock.outcome` of an acquire is `granted`, `busy` (a try-acquire of a lock that is not free),
/// `cancelled` (the future was dropped), or the kind of the error, such as `timed_out` and
/// `unavailable`. After an error `error.type` is its kind, and `otel.status_code` is `ERROR` unless
/// it is `timed_out`. `lock.loss.reason` is `expired`, `removed`, `max_hold` or `shutdown`.
///
/// | event | level | in span |
/// | --- | --- | --- |
/// | `lock queued`: not granted yet after [a while](Self::with_queued_after) | `DEBUG` | `lock.acquire` |
/// | `lock granted` | `DEBUG` | `lock.acquire` |
/// | `lock not acquired`, with the error | `DEBUG` | `lock.acquire` |
/// | `lease renewed`, with `margin`: how long before the deadline | `TRACE` | `lock.hold` |
/// | `lease renewed late`: with less than a third of the time left that it had at first | `WARN` | `lock.hold` |
/// | `lock released` | `DEBUG` | `lock.release` |
/// | `lock released late`: it had been lost before | `DEBUG` | `lock.release` |
/// | `lock not released`, with the error | `WARN` | `lock.release` |
/// | `lock taken away by force`, with the owners | `WARN` | `lock.call` |
///
/// A lost lock, a background release that failed, and the first renewal that fails are warnings of
/// the backends already, with or without this layer: it adds none. A loss ends the `lock.hold` span
/// when the client notices it, whether or not anybody looks at the guard.
#[derive(Clone, Debug)]
pub struct Trace {
    queued_after: Duration,
    process_metadata: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            queued_after: Duration::from_millis(100),
            process_metadata: false,
        }
    }
}

impl Trace {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time after which an acquire that has not been granted counts as queued; default:
    /// 100 ms. No layer sees whether a request that is under way waits for the store or for the
    /// lock.
    #[must_use]
    pub fn with_queued_after(mut self, queued_after: Duration) -> Self {
        self.queued_after = queued_after;
        self
    }

    /// Gives acquisitions that have no metadata of their own the text of [`process_metadata`], so
    /// that whoever inspects a lock sees which process holds it; default: off, because everybody
    /// who can read the store can read it. No effect on a backend without
    /// [`metadata`](lock_core::Capabilities::metadata).
    #[must_use]
    pub fn with_process_metadata(mut self) -> Self {
        self.process_metadata = true;
        self
    }
}

impl Layer for Trace {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        let capabilities = inner.capabilities();
        let metadata = self.process_metadata && capabilities.metadata;
        Arc::new(TraceLock {
            inner,
            backend: capabilities.backend.into(),
            queued_after: self.queued_after,
            metadata: metadata.then(process_metadata),
        })
    }
}

#[derive(Debug)]
struct TraceLock {
    inner: Arc<dyn DistributedLock>,
    backend: Arc<str>,
    queued_after: Duration,
    metadata: Option<&'static str>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for TraceLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let options = self.with_metadata(options);
        if is_off() {
            return self.inner.acquire_named(name, options).await;
        }
        let span = self.acquire_span(name, Operation::Acquire, &options);
        let acquire = self.inner.acquire_named(name, options);
        self.traced(name, span, self.noting_queue(acquire)).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let options = self.with_metadata(options);
        if is_off() {
            return self.inner.try_acquire_named(name, options).await;
        }
        let span = self.acquire_span(name, Operation::TryAcquire, &options);
        let acquire = self.inner.try_acquire_named(name, options);
        self.traced(name, span, acquire).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let inspect = self.inner.inspect_named(name);
        self.call(Operation::Inspect, name.as_str(), inspect).await
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let release = async {
            let removed = self.inner.force_release_named(name, only).await?;
            for LockHolder { owner, token, .. } in &removed {
                tracing::warn!(%owner, token = token.map(FencingToken::as_u64), "lock taken away by force");
            }
            Ok(removed)
        };
        self.call(Operation::ForceRelease, name.as_str(), release)
            .await
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let watch = self.inner.watch_named(name);
        self.call(Operation::Watch, name.as_str(), watch).await
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        self.call(Operation::List, prefix, self.inner.list(prefix))
            .await
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.call(Operation::Shutdown, "", self.inner.shutdown())
            .await
    }

    forward_lock!(inner: capabilities);
}

/// True if nobody listens to spans or warnings.
fn is_off() -> bool {
    LevelFilter::current() < LevelFilter::WARN
}

impl TraceLock {
    fn with_metadata(&self, options: AcquireOptions) -> AcquireOptions {
        match self.metadata {
            Some(metadata) if options.metadata().is_none() => options.with_metadata(metadata),
            _ => options,
        }
    }

    fn acquire_span(
        &self,
        name: &LockName,
        operation: Operation,
        options: &AcquireOptions,
    ) -> Span {
        tracing::info_span!(
            "lock.acquire",
            otel.kind = "client",
            lock.name = name.as_str(),
            lock.backend = &*self.backend,
            lock.operation = %operation,
            lock.mode = words::mode(options.mode()),
            lock.timeout_s = options.timeout().map(|timeout| timeout.as_secs_f64()),
            lock.outcome = Empty,
            lock.owner = Empty,
            lock.token = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
        )
    }

    /// Runs an acquire in its span, and observes the guard.
    async fn traced<G: words::AsGuard>(
        &self,
        name: &LockName,
        span: Span,
        acquire: impl Future<Output = Result<G, LockError>> + Send,
    ) -> Result<G, LockError> {
        let mut unanswered = CancelNote(Some(span.clone()));
        let outcome = acquire.instrument(span.clone()).await;
        unanswered.0 = None;
        span.record("lock.outcome", words::outcome(&outcome));
        let granted = match outcome {
            Ok(granted) => granted,
            Err(error) => {
                note_error(&span, &error);
                tracing::debug!(parent: &span, %error, "lock not acquired");
                return Err(error);
            }
        };
        Ok(granted.map_guard(|guard| {
            span.record("lock.owner", guard.owner().as_str());
            span.record("lock.token", guard.token().map(FencingToken::as_u64));
            tracing::debug!(parent: &span, "lock granted");
            let hold = Hold::new(name, &self.backend, &guard, &span);
            observed(guard, hold)
        }))
    }

    /// Says so if the lock is not granted soon.
    async fn noting_queue(
        &self,
        acquire: impl Future<Output = Result<LockGuard, LockError>> + Send,
    ) -> Result<LockGuard, LockError> {
        let mut acquire = pin!(acquire);
        if !tracing::enabled!(Level::DEBUG) {
            return acquire.await;
        }
        // Without a runtime there is no timer, and the answer is an error at once.
        let first = poll_fn(|context| Poll::Ready(acquire.as_mut().poll(context))).await;
        if let Poll::Ready(outcome) = first {
            return outcome;
        }
        match tokio::time::timeout(self.queued_after, &mut acquire).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::debug!(waited = ?self.queued_after, "lock queued");
                acquire.await
            }
        }
    }

    /// Runs another call in a span.
    async fn call<T>(
        &self,
        operation: Operation,
        name: &str,
        call: impl Future<Output = Result<T, LockError>> + Send,
    ) -> Result<T, LockError> {
        let span = tracing::info_span!(
            "lock.call",
            otel.kind = "client",
            lock.name = name,
            lock.backend = &*self.backend,
            lock.operation = %operation,
            lock.outcome = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
        );
        let mut unanswered = CancelNote(Some(span.clone()));
        let outcome = call.instrument(span.clone()).await;
        unanswered.0 = None;
        match &outcome {
            Ok(_) => {
                span.record("lock.outcome", "ok");
            }
            Err(error) => {
                span.record("lock.outcome", words::kind(error.kind()));
                note_error(&span, error);
            }
        }
        outcome
    }
}

fn note_error(span: &Span, error: &LockError) {
    span.record("error.type", words::kind(error.kind()));
    if error.kind() != lock_core::ErrorKind::TimedOut {
        span.record("otel.status_code", "ERROR");
    }
}

/// Notes in a span that its future was dropped.
struct CancelNote(Option<Span>);

impl Drop for CancelNote {
    fn drop(&mut self) {
        if let Some(span) = &self.0 {
            span.record("lock.outcome", words::CANCELLED);
        }
    }
}

#[cfg(test)]
mod tests;
