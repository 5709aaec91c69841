use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use lock_core::{
    AcquireOptions, DistributedLock, LockError, LockGuard, LockHolder, LockInfo, LockList,
    LockName, LockWatch, OwnerId, RetryAdvice, backend::ensure_runtime, forward_lock,
};
use tokio::time::Instant;

use crate::Layer;

/// Repeats calls that failed, after a pause that grows, with jitter.
///
/// Repeated is only what [may succeed later](RetryAdvice::Later) and does no harm when it is made
/// twice: acquires and try-acquires (one whose outcome is
/// [unknown](LockError::is_indeterminate) never holds silently), inspect, watch and list, and a
/// forced release that certainly removed nothing. A timeout of the wait is no failure. Releases and
/// renewals are repeated by the backends, until the guard's deadline; a shutdown is made once.
///
/// All attempts together keep to the [timeout](AcquireOptions::with_timeout) of the acquire: each
/// gets what is left of it. No attempt begins later than [a while](Self::with_time_limit) after the
/// call.
///
/// An acquire outlasts a short outage by itself, for up to a TTL. So this layer helps where a store
/// refuses at once, because it is starting, full, or asks to slow down.
#[derive(Clone, Debug)]
pub struct Retry {
    retries: usize,
    min_pause: Duration,
    max_pause: Duration,
    time_limit: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries: 3,
            min_pause: Duration::from_millis(50),
            max_pause: Duration::from_secs(2),
            time_limit: Duration::from_secs(10),
        }
    }
}

impl Retry {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the most attempts after the first; default: 3.
    #[must_use]
    pub fn with_retries(mut self, retries: usize) -> Self {
        self.retries = retries;
        self
    }

    /// Sets the first pause and the longest; default: 50 ms and 2 s. Each is twice the one before,
    /// plus up to as much again by chance.
    #[must_use]
    pub fn with_pauses(mut self, first: Duration, longest: Duration) -> Self {
        self.min_pause = first;
        self.max_pause = longest.max(first);
        self
    }

    /// Sets the time after which no further attempt begins; default: 10 s.
    #[must_use]
    pub fn with_time_limit(mut self, time_limit: Duration) -> Self {
        self.time_limit = time_limit;
        self
    }

    fn schedule(&self, timeout: Option<Duration>) -> Schedule {
        let pauses = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(self.min_pause)
            .with_max_delay(self.max_pause)
            .with_max_times(self.retries)
            .build();
        let now = Instant::now();
        Schedule {
            pauses,
            last_begin: now + self.time_limit,
            deadline: timeout.and_then(|timeout| now.checked_add(timeout)),
        }
    }
}

impl Layer for Retry {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(RetryLock {
            inner,
            retry: self.clone(),
        })
    }
}

/// Attempts of one call.
#[derive(Debug)]
struct Schedule {
    pauses: ExponentialBackoff,
    /// Instant after which no attempt begins.
    last_begin: Instant,
    /// Instant at which the caller's wait is over.
    deadline: Option<Instant>,
}

impl Schedule {
    /// Pause before the next attempt; `None` if there is to be none.
    fn next(&mut self, error: &LockError, now: Instant) -> Option<Duration> {
        if error.retry() != RetryAdvice::Later {
            return None;
        }
        let pause = self.pauses.next()?;
        let begin = now + pause;
        let in_time = self.deadline.is_none_or(|deadline| begin < deadline);
        (begin <= self.last_begin && in_time).then_some(pause)
    }

    /// Options of the next attempt.
    fn options(&self, options: &AcquireOptions, now: Instant) -> AcquireOptions {
        match self.deadline {
            // Never zero, which is refused.
            Some(deadline) if options.timeout() != Some(Duration::ZERO) => {
                let left = deadline.saturating_duration_since(now);
                options
                    .clone()
                    .with_timeout(left.max(Duration::from_millis(1)))
            }
            _ => options.clone(),
        }
    }

    /// Waits until the next attempt.
    ///
    /// # Errors
    ///
    /// The error, if there is to be none.
    async fn pause(&mut self, error: LockError) -> Result<(), LockError> {
        if ensure_runtime().is_err() {
            return Err(error);
        }
        match self.next(&error, Instant::now()) {
            Some(pause) => {
                tracing::debug!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(error),
        }
    }
}

#[derive(Debug)]
struct RetryLock {
    inner: Arc<dyn DistributedLock>,
    retry: Retry,
}

/// Runs a call again and again, until it succeeds or its schedule is over.
macro_rules! retried {
    ($schedule:ident, $call:expr) => {
        loop {
            match $call.await {
                Ok(answer) => return Ok(answer),
                Err(error) => $schedule.pause(error).await?,
            }
        }
    };
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for RetryLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let mut schedule = self.retry.schedule(options.timeout());
        retried!(schedule, {
            let options = schedule.options(&options, Instant::now());
            self.inner.acquire_named(name, options)
        })
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let mut schedule = self.retry.schedule(None);
        retried!(schedule, {
            self.inner.try_acquire_named(name, options.clone())
        })
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let mut schedule = self.retry.schedule(None);
        retried!(schedule, self.inner.inspect_named(name))
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let mut schedule = self.retry.schedule(None);
        loop {
            match self.inner.force_release_named(name, only).await {
                // A second one would not tell whom the first has removed, or remove the next.
                Err(error) if !error.is_indeterminate() => schedule.pause(error).await?,
                answer => return answer,
            }
        }
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let mut schedule = self.retry.schedule(None);
        retried!(schedule, self.inner.watch_named(name))
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let mut schedule = self.retry.schedule(None);
        retried!(schedule, self.inner.list(prefix))
    }

    forward_lock!(inner: capabilities, shutdown);
}

#[cfg(test)]
mod tests {
    use lock_core::{DistributedLockExt, ErrorKind};
    use lock_mem::MemLock;

    use super::*;
    use crate::Faults;

    fn failure(kind: ErrorKind) -> LockError {
        LockError::new(kind, "failed")
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_succeed_later_is_repeated() {
        for kind in [
            ErrorKind::TimedOut,
            ErrorKind::Shutdown,
            ErrorKind::InvalidOptions,
        ] {
            let mut schedule = Retry::new().schedule(None);
            assert_eq!(
                schedule.next(&failure(kind), Instant::now()),
                None,
                "{kind:?}"
            );
        }
        for kind in [ErrorKind::Unavailable, ErrorKind::Exhausted] {
            let mut schedule = Retry::new().with_retries(2).schedule(None);
            let pauses: Vec<_> =
                std::iter::from_fn(|| schedule.next(&failure(kind), Instant::now())).collect();
            assert_eq!(pauses.len(), 2, "{pauses:?}");
            assert!(pauses[0] >= Duration::from_millis(50) && pauses[1] >= pauses[0] / 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_keep_to_the_time_of_the_caller() {
        let busy = failure(ErrorKind::Exhausted);
        let asked = Duration::from_secs(1);
        let mut schedule = Retry::new().schedule(Some(asked));
        let start = Instant::now();
        assert_eq!(schedule.next(&busy, start + asked), None, "no time is left");
        let options = AcquireOptions::new().with_timeout(asked);
        let options = schedule.options(&options, start + Duration::from_millis(400));
        assert_eq!(options.timeout(), Some(Duration::from_millis(600)));
        let mut schedule = Retry::new().schedule(None);
        assert_eq!(schedule.next(&busy, start + Duration::from_secs(11)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_outlasted() {
        let faults = Faults::new();
        let store = faults.layer(Arc::new(MemLock::new()));
        let locks = Retry::new().layer(store);
        faults.fail_next(3, ErrorKind::Exhausted);
        let guard = locks.acquire("a").await.unwrap();
        faults.fail_next(4, ErrorKind::Exhausted);
        let error = locks.try_acquire("b").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        faults.fail_next(1, ErrorKind::PermissionDenied);
        assert!(locks.inspect("a").await.is_err());
        assert!(locks.inspect("a").await.unwrap().is_some());
        faults.fail_next(2, ErrorKind::Unavailable);
        assert_eq!(locks.force_release("a").await.unwrap().len(), 1);
        drop(guard);
    }
}
