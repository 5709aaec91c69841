use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, AcquisitionObserver, DistributedLock, ErrorKind, GuardState, LockError,
    LockGuard, LockName, Operation, backend::locked, forward_lock,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Span;

use crate::{
    Layer,
    attempts::{Attempts, Wait},
    observed::{GuardObserver, observed},
};

/// Limits how many acquisitions of one client wait or are held at a time, so that one part of an
/// application cannot use up the store.
///
/// An acquire takes a permit before it goes to the store, and the guard keeps it until it ends, by
/// a release, a drop or a loss. Who finds none waits, first come first served, and its
/// [timeout](AcquireOptions::with_timeout) counts. When that is up, the error is
/// [`Exhausted`](ErrorKind::Exhausted): the lock may be free. A try-acquire that finds no permit
/// fails so at once. A waiter that is not polled for the TTL that it asks for, 30 s by default,
/// gives up its permit and begins anew when it is polled.
///
/// A task that takes a second lock while it holds one needs two permits: with as many such tasks as
/// permits each waits for the others. Choose a limit well above that.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit {
    permits: usize,
}

impl ConcurrencyLimit {
    /// A limit of `permits` for each lock that the layer wraps; at least one, at most
    /// [`Semaphore::MAX_PERMITS`].
    #[must_use]
    pub fn new(permits: usize) -> Self {
        Self {
            permits: permits.clamp(1, Semaphore::MAX_PERMITS),
        }
    }
}

impl Layer for ConcurrencyLimit {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(ConcurrencyLimitLock {
            inner,
            attempts: Attempts::default(),
            permits: Arc::new(Semaphore::new(self.permits)),
            limit: self.permits,
        })
    }
}

#[derive(Debug)]
struct ConcurrencyLimitLock {
    inner: Arc<dyn DistributedLock>,
    attempts: Attempts,
    permits: Arc<Semaphore>,
    limit: usize,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for ConcurrencyLimitLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let wait = Wait::new(&self.inner, name, options.clone());
        let attempt = || {
            let wait = wait.clone();
            let permits = Arc::clone(&self.permits);
            async move {
                let Some(permit) = wait.permit(&permits).await? else {
                    return Ok::<_, LockError>(None);
                };
                Ok(Some(limited(wait.acquire().await?, permit)))
            }
        };
        match self.attempts.run(&options, attempt).await? {
            Some(guard) => Ok(guard),
            None => Err(self.exhausted(name, Operation::Acquire)),
        }
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Err(self.exhausted(name, Operation::TryAcquire));
        };
        let guard = self.inner.try_acquire_named(name, options).await?;
        Ok(guard.map(|guard| limited(guard, permit)))
    }

    forward_lock!(inner: capabilities, inspect_named, force_release_named, watch_named, list, shutdown);
}

impl ConcurrencyLimitLock {
    fn exhausted(&self, name: &LockName, operation: Operation) -> LockError {
        let message = format!(
            "{} acquisitions of this client wait or are held, which is its limit; try later, or raise it",
            self.limit
        );
        LockError::new(ErrorKind::Exhausted, message)
            .during(operation)
            .on(self.inner.capabilities().backend)
            .of(name)
    }
}

fn limited(guard: LockGuard, permit: OwnedSemaphorePermit) -> LockGuard {
    observed(guard, Permit(Mutex::new(Some(permit))))
}

/// Permit of a guard.
#[derive(Debug)]
struct Permit(Mutex<Option<OwnedSemaphorePermit>>);

impl AcquisitionObserver for Permit {
    fn renewed(&self, _: Duration) {}

    fn ended(&self, _: GuardState) {
        let permit = locked(&self.0).take();
        drop(permit);
    }
}

impl GuardObserver for Permit {
    fn release_begins(&self) -> Span {
        Span::none()
    }

    fn release_ends(&self, _: &Result<(), LockError>) {}
}

#[cfg(test)]
mod tests {
    use lock_core::DistributedLockExt;
    use lock_mem::MemStore;
    use tokio::time::Instant;

    use super::*;

    fn locks(permits: usize) -> (MemStore, Arc<dyn DistributedLock>) {
        let store = MemStore::new();
        let locks = ConcurrencyLimit::new(permits).layer(Arc::new(store.client()));
        (store, locks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_lasts_as_long_as_its_guard() {
        let (store, locks) = locks(2);
        let first = locks.acquire("a").await.unwrap();
        let second = locks.acquire("b").await.unwrap();
        let error = locks.try_acquire("c").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let start = Instant::now();
        let limit = Duration::from_secs(3);
        let error = locks.acquire_timeout("c", limit).await.unwrap_err();
        assert_eq!(
            (error.kind(), start.elapsed()),
            (ErrorKind::Exhausted, limit)
        );
        drop(first);
        let third = locks.try_acquire("c").await.unwrap().unwrap();
        store.evict(second.name());
        assert!(second.is_lost());
        let fourth = locks.acquire("d").await.unwrap();
        assert!(locks.try_acquire("e").await.is_err());
        third.release().await.unwrap();
        fourth.release().await.unwrap();
        assert!(second.release().await.is_err());
        assert!(locks.try_acquire("e").await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_lock_and_a_cancelled_wait_keep_no_permit() {
        let (store, locks) = locks(1);
        let other = store.client();
        let held = other.acquire("a").await.unwrap();
        assert!(locks.try_acquire("a").await.unwrap().is_none());
        let wait = locks.acquire("a");
        assert!(
            tokio::time::timeout(Duration::from_secs(1), wait)
                .await
                .is_err()
        );
        let guard = locks.try_acquire("b").await.unwrap().unwrap();
        guard.release().await.unwrap();
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_not_polled_strands_nobody() {
        let (_, locks) = locks(1);
        let guard = locks.acquire("a").await.unwrap();
        let ttl = Duration::from_secs(4);
        let options = AcquireOptions::new().with_ttl(ttl);
        let mut unpolled = Box::pin(locks.acquire_with("b", options));
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut unpolled)
                .await
                .is_err()
        );
        guard.release().await.unwrap();
        let next = tokio::time::timeout(ttl * 3, locks.acquire("c")).await;
        let next = next.expect("the next has the permit").unwrap();
        next.release().await.unwrap();
        drop(unpolled.await.unwrap());
    }
}
