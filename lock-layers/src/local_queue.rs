use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, LockError, LockGuard, LockInfo,
    LockList, LockName, LockWatch, Operation, backend::locked, forward_lock,
};
use tokio::time::Instant;

use crate::{
    Layer,
    attempts::{Attempts, Turns, Wait},
};

/// Lets one waiter for each name reach the store; the others of this process queue here, first come
/// first served.
///
/// For many tasks that want the same lock: the store has one entry of this process to watch instead
/// of thousands. The backends of this workspace carry many waiters by themselves; see the
/// benchmarks before you add it. When a waiter is granted the next one goes to the store at once,
/// and waits there for the guard of the first: so a lock changes hands as fast as without the
/// layer.
///
/// Time spent here counts against the [timeout](AcquireOptions::with_timeout). A waiter that is not
/// polled for the TTL that it asks for, 30 s by default, gives up its place and queues again when it
/// is polled. A try-acquire does not queue.
///
/// How many wait is told no more ([`queue_length`](Capabilities::queue_length)): the store knows one
/// waiter of each process.
///
/// A wait that ends here is [`TimedOut`](ErrorKind::TimedOut), or
/// [`Unavailable`](ErrorKind::Unavailable) if the last of those before it to ask the store got that
/// for an answer during the wait: of an outage that none of them has reported yet this waiter knows
/// nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalQueue;

impl LocalQueue {
    /// The layer.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Layer for LocalQueue {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(LocalQueueLock {
            inner,
            attempts: Attempts::default(),
            turns: Arc::default(),
            outage: Arc::default(),
        })
    }
}

#[derive(Debug)]
struct LocalQueueLock {
    inner: Arc<dyn DistributedLock>,
    attempts: Attempts,
    turns: Arc<Turns>,
    outage: Outage,
}

/// Last answer of the store, if it was that it cannot be reached.
type Outage = Arc<Mutex<Option<(Instant, LockError)>>>;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for LocalQueueLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let began = Instant::now();
        let wait = Wait::new(&self.inner, name, options.clone());
        let attempt = || {
            let wait = wait.clone();
            let turns = Arc::clone(&self.turns);
            let outage = Arc::clone(&self.outage);
            async move {
                let Some(_turn) = turns.take(&wait).await? else {
                    return Err(over(&wait, &outage, began));
                };
                let outcome = wait.acquire().await;
                note(&outage, outcome.as_ref().err());
                outcome
            }
        };
        self.attempts.run(&options, attempt).await
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.queue_length = false;
        capabilities
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let info = self.inner.inspect_named(name).await?;
        Ok(info.map(uncounted))
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let watch = self.inner.watch_named(name).await?;
        let infos = watch.map(|info| Ok(info?.map(uncounted)));
        Ok(LockWatch::new(infos))
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let list = self.inner.list(prefix).await?;
        Ok(LockList::new(list.map(|info| info.map(uncounted))))
    }

    forward_lock!(inner: try_acquire_named, force_release_named, shutdown);
}

/// The store knows one waiter of each process.
fn uncounted(mut info: LockInfo) -> LockInfo {
    info.waiters = None;
    info
}

fn note(outage: &Outage, error: Option<&LockError>) {
    let unavailable = error.filter(|error| error.kind() == ErrorKind::Unavailable);
    *locked(outage) = unavailable.map(|error| (Instant::now(), error.clone()));
}

/// The error of a wait that has ended before its turn.
fn over(wait: &Wait, outage: &Outage, began: Instant) -> LockError {
    let waited = wait.timeout();
    let failure = locked(outage).clone();
    let error = match failure.filter(|(at, _)| *at >= began) {
        Some((_, failure)) => {
            let message = format!("the store did not answer within {waited:?}");
            LockError::new(ErrorKind::Unavailable, message).caused_by(failure)
        }
        None => LockError::new(
            ErrorKind::TimedOut,
            format!("not free within {waited:?}; others of this process wait before"),
        ),
    };
    wait.context(error, Operation::Acquire)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lock_core::DistributedLockExt;
    use lock_mem::MemStore;

    use super::*;

    fn locks() -> (MemStore, Arc<LocalQueueLock>) {
        let store = MemStore::new();
        let locks = LocalQueueLock {
            inner: Arc::new(store.client()),
            attempts: Attempts::default(),
            turns: Arc::default(),
            outage: Arc::default(),
        };
        (store, Arc::new(locks))
    }

    #[tokio::test(start_paused = true)]
    async fn one_waiter_reaches_the_store_and_all_are_granted_in_order() {
        let (store, locks) = locks();
        let name = LockName::new("a").unwrap();
        let guard = locks.acquire("a").await.unwrap();
        let granted = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..20 {
            let locks = Arc::clone(&locks);
            let granted = Arc::clone(&granted);
            tasks.push(tokio::spawn(async move {
                let guard = locks.acquire("a").await.unwrap();
                locked(&granted).push(number);
                tokio::time::sleep(Duration::from_secs(1)).await;
                guard.release().await.unwrap();
            }));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(store.entries(&name), 2, "the holder and one waiter");
        guard.release().await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*locked(&granted), (0..20).collect::<Vec<_>>());
        assert_eq!((store.entries(&name), locks.turns.names()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_not_polled_strands_nobody() {
        let (_, locks) = locks();
        let guard = locks.acquire("a").await.unwrap();
        let ttl = Duration::from_secs(4);
        let options = AcquireOptions::new().with_ttl(ttl);
        let mut unpolled = Box::pin(locks.acquire_with("a", options));
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut unpolled)
                .await
                .is_err()
        );
        let next = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.acquire("a").await }
        });
        guard.release().await.unwrap();
        let next = tokio::time::timeout(ttl * 3, next).await;
        let next = next.expect("the next is granted").unwrap().unwrap();
        next.release().await.unwrap();
        drop(unpolled.await.unwrap());
        assert_eq!(locks.turns.names(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_the_queue_counts() {
        let (_, locks) = locks();
        let _guard = locks.acquire("a").await.unwrap();
        let waiter = tokio::spawn({
            let locks = Arc::clone(&locks);
            async move { locks.acquire("a").await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        let limit = Duration::from_secs(3);
        let error = locks.acquire_timeout("a", limit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), limit);
        let options = AcquireOptions::new().with_timeout(Duration::ZERO);
        let error = locks.acquire_with("a", options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        waiter.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_all_waiters() {
        let (_, locks) = locks();
        let _guard = locks.acquire("a").await.unwrap();
        let waiters: Vec<_> = (0..5)
            .map(|_| {
                let locks = Arc::clone(&locks);
                tokio::spawn(async move { locks.acquire("a").await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        locks.shutdown().await.unwrap();
        for waiter in waiters {
            let error = waiter.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Shutdown);
        }
        assert_eq!(locks.turns.names(), 0);
    }
}
