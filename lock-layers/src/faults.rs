use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Acquisition, AcquisitionStatus, DistributedLock, ErrorKind, FencingToken,
    GuardState, LockError, LockGuard, LockHolder, LockInfo, LockList, LockName, LockWatch,
    LossReason, Operation, OwnerId, backend::locked, forward_lock,
};

use crate::{Layer, end_status::EndStatus};

/// Faults on demand, for the tests of an application: over any backend, so that the test that runs
/// in memory also runs on the real store.
///
/// Clones are handles of the same faults. Without a fault the layer passes everything on.
///
/// ```
/// use lock_core::{DistributedLockExt, ErrorKind};
/// use lock_layers::{Faults, Stack};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let faults = Faults::new();
/// let locks = Stack::new().with(faults.clone()).over(Arc::new(lock_mem::MemLock::new()));
///
/// let guard = locks.acquire("orders/42").await?;
/// assert_eq!(faults.lose("orders/42"), 1);
/// assert!(guard.is_lost());
///
/// faults.fail_next(1, ErrorKind::Unavailable);
/// assert!(locks.acquire("orders/42").await.is_err());
/// assert!(locks.acquire("orders/42").await.is_ok());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    guards: Vec<Weak<Breakable>>,
    failures: VecDeque<ErrorKind>,
    release_failures: usize,
    delay: Duration,
}

#[allow(
    clippy::must_use_candidate,
    reason = "a test loses guards for the effect of it"
)]
impl Faults {
    /// No fault.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the guards of this name lost now, as if their entry had been removed from the store,
    /// and returns how many. The lock becomes free.
    pub fn lose(&self, name: &str) -> usize {
        self.lose_where(|guard| guard.status.name().as_str() == name)
    }

    /// Makes all guards lost now, and returns how many.
    pub fn lose_all(&self) -> usize {
        self.lose_where(|_| true)
    }

    /// Lets the next `calls` fail with this kind of error: of any method but `capabilities` and
    /// `shutdown`, and before the store is asked. Adds to what is to fail already.
    pub fn fail_next(&self, calls: usize, kind: ErrorKind) {
        let failures = std::iter::repeat_n(kind, calls);
        locked(&self.0).failures.extend(failures);
    }

    /// Lets the next `releases` end with [`ErrorKind::Unavailable`], as if the answer was lost: they
    /// take effect in the background.
    pub fn fail_releases(&self, releases: usize) {
        locked(&self.0).release_failures += releases;
    }

    /// Delays every call by this much from now on, before the store is asked; zero for no delay. A
    /// call that is cancelled meanwhile never reaches the store. Does not delay renewals.
    pub fn delay(&self, by: Duration) {
        locked(&self.0).delay = by;
    }

    fn lose_where(&self, is_meant: impl Fn(&Breakable) -> bool) -> usize {
        let guards = locked(&self.0).guards.clone();
        let meant = guards.iter().filter_map(Weak::upgrade);
        meant
            .filter(|guard| is_meant(guard) && guard.lose())
            .count()
    }

    /// What precedes a call.
    async fn before(&self, operation: Operation, name: Option<&LockName>) -> Result<(), LockError> {
        let delay = locked(&self.0).delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match locked(&self.0).failures.pop_front() {
            Some(kind) => Err(injected(kind, operation, name)),
            None => Ok(()),
        }
    }

    fn fails_release(&self) -> bool {
        let mut state = locked(&self.0);
        let fails = state.release_failures > 0;
        state.release_failures -= usize::from(fails);
        fails
    }

    fn breakable(&self, guard: LockGuard) -> LockGuard {
        let inner = guard.into_acquisition();
        let breakable = Arc::new(Breakable {
            status: EndStatus::new(inner.view()),
            inner,
            faults: self.clone(),
        });
        let mut state = locked(&self.0);
        if state.guards.len() == state.guards.capacity() {
            state.guards.retain(|guard| guard.strong_count() > 0);
        }
        state.guards.push(Arc::downgrade(&breakable));
        drop(state);
        LockGuard::new(breakable)
    }
}

fn injected(kind: ErrorKind, operation: Operation, name: Option<&LockName>) -> LockError {
    let error = LockError::new(kind, "a fault that was asked for").during(operation);
    match name {
        Some(name) => error.of(name),
        None => error,
    }
}

impl Layer for Faults {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(FaultsLock {
            inner,
            faults: self.clone(),
        })
    }
}

#[derive(Debug)]
struct FaultsLock {
    inner: Arc<dyn DistributedLock>,
    faults: Faults,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for FaultsLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        self.faults.before(Operation::Acquire, Some(name)).await?;
        let guard = self.inner.acquire_named(name, options).await?;
        Ok(self.faults.breakable(guard))
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        self.faults
            .before(Operation::TryAcquire, Some(name))
            .await?;
        let guard = self.inner.try_acquire_named(name, options).await?;
        Ok(guard.map(|guard| self.faults.breakable(guard)))
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        self.faults.before(Operation::Inspect, Some(name)).await?;
        self.inner.inspect_named(name).await
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let operation = Operation::ForceRelease;
        self.faults.before(operation, Some(name)).await?;
        self.inner.force_release_named(name, only).await
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        self.faults.before(Operation::Watch, Some(name)).await?;
        self.inner.watch_named(name).await
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        self.faults.before(Operation::List, None).await?;
        self.inner.list(prefix).await
    }

    forward_lock!(inner: capabilities, shutdown);
}

/// An acquisition that can be made lost.
#[derive(Debug)]
struct Breakable {
    inner: Arc<dyn Acquisition>,
    status: Arc<EndStatus>,
    faults: Faults,
}

impl Breakable {
    fn lose(&self) -> bool {
        if self.status.state() != GuardState::Held {
            return false;
        }
        let lost = GuardState::Lost(LossReason::Removed);
        let end = self.status.finish(lost);
        Arc::clone(&self.inner).release_in_background();
        end == lost
    }

    /// The outcome of a release that does not reach the store.
    fn fault(&self) -> Option<LockError> {
        if let Some(loss) = self.status.loss() {
            return Some(loss);
        }
        if !self.faults.fails_release() {
            return None;
        }
        Arc::clone(&self.inner).release_in_background();
        let name = self.status.name();
        let error = injected(ErrorKind::Unavailable, Operation::Release, Some(name));
        Some(error.indeterminate())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Breakable {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        match self.fault() {
            Some(error) => Some(Err(error)),
            None => self.inner.release_now(),
        }
    }

    async fn release(&self) -> Result<(), LockError> {
        self.inner.release().await
    }

    fn release_in_background(self: Arc<Self>) {
        Arc::clone(&self.inner).release_in_background();
    }

    async fn extend(&self) -> Result<(), LockError> {
        match self.status.loss() {
            Some(loss) => Err(loss),
            None => self.inner.extend().await,
        }
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        match self.status.loss() {
            Some(loss) => Err(loss),
            None => self.inner.raise_token(at_least).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use lock_core::DistributedLockExt;
    use lock_mem::MemLock;
    use tokio::time::Instant;

    use super::*;

    fn locks() -> (Faults, Arc<dyn DistributedLock>) {
        let faults = Faults::new();
        let locks = faults.layer(Arc::new(MemLock::new()));
        (faults, locks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_is_lost_and_the_lock_is_free() {
        let (faults, locks) = locks();
        let guard = locks.acquire("a").await.unwrap();
        let other = locks.acquire("b").await.unwrap();
        let lost = tokio::spawn(guard.lost());
        let view = guard.view();
        tokio::task::yield_now().await;
        assert_eq!(faults.lose("a"), 1);
        assert_eq!(faults.lose("a"), 0);
        assert_eq!(lost.await.unwrap(), LossReason::Removed);
        assert!(view.is_lost() && view.remaining().is_zero() && other.is_held());
        let next = locks.acquire("a").await.unwrap();
        for error in [guard.extend().await, guard.release().await] {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Lost);
        }
        assert!(next.is_held());
        assert_eq!(faults.lose_all(), 2);
        assert!(next.is_lost() && other.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_fail_and_are_delayed_as_asked() {
        let (faults, locks) = locks();
        faults.fail_next(2, ErrorKind::Unavailable);
        let error = locks.acquire("a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(locks.list("").await.is_err());
        faults.delay(Duration::from_secs(3));
        let start = Instant::now();
        let guard = locks.acquire("a").await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        faults.fail_releases(1);
        let error = guard.release().await.unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.is_indeterminate());
        locks.acquire("a").await.unwrap().release().await.unwrap();
    }

    #[tokio::test]
    async fn guards_that_are_gone_take_no_memory() {
        let (faults, locks) = locks();
        for _ in 0..1000 {
            drop(locks.acquire("a").await.unwrap());
        }
        assert!(locked(&faults.0).guards.len() < 10);
    }
}
