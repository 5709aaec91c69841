use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Acquisition, AcquisitionStatus, DistributedLock, ErrorKind, FencingToken,
    GuardState, LockError, LockGuard, LockName, Operation, backend::locked, forward_lock,
};

use crate::{
    attempts::{Attempts, Turns, Wait},
    end_status::EndStatus,
};

/// An owner of locks that may acquire again what it holds: an explicit handle, never a thread or a
/// task.
///
/// Acquiring a lock that this owner holds counts, and returns at once, with a guard of the same
/// acquisition: the same owner id, token and lease. The store's lock is released with the last of
/// these guards, in whichever order they are released; when it is lost all of them are. Another
/// owner, and whoever uses the lock below, waits.
///
/// ```
/// use lock_core::DistributedLockExt;
/// use lock_layers::ReentrantOwner;
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let locks = Arc::new(lock_mem::MemLock::new());
/// let me = ReentrantOwner::new(locks.clone());
///
/// let outer = me.acquire("orders/42").await?;
/// let inner = me.acquire("orders/42").await?;
/// assert_eq!(outer.token(), inner.token());
/// outer.release().await?;
/// assert!(locks.try_acquire("orders/42").await?.is_none());
/// inner.release().await?;
/// assert!(locks.try_acquire("orders/42").await?.is_some());
/// # Ok(())
/// # }
/// ```
///
/// Clones are the same owner. **Tasks that share an owner do not exclude each other**: give the
/// handle to those who act as one, such as the functions that serve one request.
///
/// Options of a nested acquire are checked, and have no other effect: the TTL, the maximum hold and
/// the metadata are those of the first. Two acquires of one owner at the same time become one
/// acquisition. Over other layers; not part of a [`Stack`](crate::Stack), whose lock many share.
#[derive(Clone, Debug)]
pub struct ReentrantOwner(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    inner: Arc<dyn DistributedLock>,
    attempts: Attempts,
    /// Acquires of one name that this owner makes at the same time go one after the other.
    turns: Arc<Turns>,
    held: Arc<Held>,
}

/// Acquisitions of one owner, with the guards that each has.
#[derive(Debug, Default)]
struct Held(Mutex<HashMap<LockName, Shared>>);

#[derive(Debug)]
struct Shared {
    acquisition: Arc<dyn Acquisition>,
    guards: usize,
}

impl ReentrantOwner {
    /// A new owner, who holds nothing.
    #[must_use]
    pub fn new(locks: Arc<dyn DistributedLock>) -> Self {
        Self(Arc::new(Owner {
            inner: locks,
            attempts: Attempts::default(),
            turns: Arc::default(),
            held: Arc::default(),
        }))
    }

    fn inner(&self) -> &dyn DistributedLock {
        &*self.0.inner
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for ReentrantOwner {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let wait = Wait::new(&self.0.inner, name, options.clone());
        let attempt = || {
            let wait = wait.clone();
            let turns = Arc::clone(&self.0.turns);
            let held = Arc::clone(&self.0.held);
            async move {
                if let Some(guard) = held.again(&wait, Operation::Acquire)? {
                    return Ok(guard);
                }
                let turn = turns.take(&wait).await?;
                if let Some(guard) = held.again(&wait, Operation::Acquire)? {
                    return Ok(guard);
                }
                if turn.is_none() {
                    return Err(over(&wait));
                }
                Ok(held.first(&wait.name, wait.acquire().await?))
            }
        };
        self.0.attempts.run(&options, attempt).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let wait = Wait::new(&self.0.inner, name, options.clone());
        if let Some(guard) = self.0.held.again(&wait, Operation::TryAcquire)? {
            return Ok(Some(guard));
        }
        // Somebody with this handle is acquiring it, so it is not free.
        let Some(_turn) = Arc::clone(&self.0.turns).try_take(name.clone()) else {
            return Ok(None);
        };
        let guard = self.0.inner.try_acquire_named(name, options).await?;
        Ok(guard.map(|guard| self.0.held.first(name, guard)))
    }

    forward_lock!(inner(): capabilities, inspect_named, force_release_named, watch_named, list, shutdown);
}

fn over(wait: &Wait) -> LockError {
    let waited = wait.timeout();
    let message = format!("not free within {waited:?}; this owner waits for it already");
    let error = LockError::new(ErrorKind::TimedOut, message);
    wait.context(error, Operation::Acquire)
}

impl Held {
    /// Another guard of an acquisition that is held.
    fn again(
        self: &Arc<Self>,
        wait: &Wait,
        operation: Operation,
    ) -> Result<Option<LockGuard>, LockError> {
        let mut held = locked(&self.0);
        let is_held =
            |shared: &&mut Shared| shared.acquisition.status().state() == GuardState::Held;
        let Some(shared) = held.get_mut(&wait.name).filter(is_held) else {
            return Ok(None);
        };
        wait.check(operation)?;
        shared.guards += 1;
        let acquisition = Arc::clone(&shared.acquisition);
        Ok(Some(self.guard(acquisition)))
    }

    /// The first guard of an acquisition. One that was there before is lost, and is released by its
    /// own guards.
    fn first(self: &Arc<Self>, name: &LockName, guard: LockGuard) -> LockGuard {
        let acquisition = guard.into_acquisition();
        let shared = Shared {
            acquisition: Arc::clone(&acquisition),
            guards: 1,
        };
        let before = locked(&self.0).insert(name.clone(), shared);
        drop(before);
        self.guard(acquisition)
    }

    fn guard(self: &Arc<Self>, inner: Arc<dyn Acquisition>) -> LockGuard {
        LockGuard::new(Arc::new(Counted {
            status: EndStatus::new(inner.view()),
            inner,
            held: Arc::clone(self),
            stage: AtomicU8::new(COUNTED),
        }))
    }

    /// Takes away one guard; true if it was the last one.
    fn leave(&self, acquisition: &Arc<dyn Acquisition>) -> bool {
        let mut held = locked(&self.0);
        let name = acquisition.status().name();
        let Some(shared) = held.get_mut(name) else {
            return true;
        };
        if !Arc::ptr_eq(&shared.acquisition, acquisition) {
            // That of a loss, to which nobody comes any more: each of its guards may release it.
            return true;
        }
        shared.guards -= 1;
        let is_last = shared.guards == 0;
        let gone = is_last.then(|| held.remove(name));
        drop(held);
        drop(gone);
        is_last
    }
}

/// One guard of an acquisition that may have several.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Acquisition>,
    status: Arc<EndStatus>,
    held: Arc<Held>,
    stage: AtomicU8,
}

/// It counts as a guard.
const COUNTED: u8 = 0;
/// It does not, and others do.
const LEFT: u8 = 1;
/// It was the last one: it releases the lock.
const LAST: u8 = 2;

impl Counted {
    /// Gives up the guard's count; true if this guard is the one that releases the lock.
    fn leave(&self) -> bool {
        let leaving =
            self.stage
                .compare_exchange(COUNTED, LEFT, Ordering::AcqRel, Ordering::Acquire);
        match leaving {
            Ok(_) => {
                let is_last = self.held.leave(&self.inner);
                if is_last {
                    self.stage.store(LAST, Ordering::Release);
                }
                is_last
            }
            Err(stage) => stage == LAST,
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Counted {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        if self.leave() {
            return self.inner.release_now();
        }
        self.status.finish(GuardState::Released);
        Some(self.status.loss().map_or(Ok(()), Err))
    }

    async fn release(&self) -> Result<(), LockError> {
        self.inner.release().await
    }

    fn release_in_background(self: Arc<Self>) {
        if self.leave() {
            Arc::clone(&self.inner).release_in_background();
        } else {
            self.status.finish(GuardState::Released);
        }
    }

    async fn extend(&self) -> Result<(), LockError> {
        self.inner.extend().await
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        self.inner.raise_token(at_least).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lock_core::DistributedLockExt;
    use lock_mem::MemStore;

    use super::*;

    fn owner() -> (MemStore, ReentrantOwner) {
        let store = MemStore::new();
        let owner = ReentrantOwner::new(Arc::new(store.client()));
        (store, owner)
    }

    impl ReentrantOwner {
        fn residue(&self) -> usize {
            locked(&self.0.held.0).len() + self.0.turns.names()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_release_frees() {
        let (store, owner) = owner();
        let other = ReentrantOwner::new(Arc::new(store.client()));
        let name = LockName::new("a").unwrap();
        let guards = [
            owner.acquire("a").await.unwrap(),
            owner.clone().acquire("a").await.unwrap(),
            owner.try_acquire("a").await.unwrap().unwrap(),
        ];
        assert_eq!(store.entries(&name), 1);
        let [first, second, third] = guards;
        assert_eq!(
            (first.owner(), first.token()),
            (third.owner(), third.token())
        );
        let view = first.view();
        first.release().await.unwrap();
        assert_eq!(view.state(), GuardState::Released);
        assert_eq!(view.ended().await, GuardState::Released);
        drop(third);
        assert!(second.is_held());
        assert!(other.try_acquire("a").await.unwrap().is_none());
        second.release().await.unwrap();
        assert!(other.try_acquire("a").await.unwrap().is_some());
        assert_eq!(owner.residue(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_inner_guard_is_lost_with_the_outer() {
        let (store, owner) = owner();
        let outer = owner.acquire("a").await.unwrap();
        let inner = owner.acquire("a").await.unwrap();
        store.evict(outer.name());
        assert!(outer.is_lost() && inner.is_lost());
        let again = owner.acquire("a").await.unwrap();
        assert!(again.token() > outer.token());
        let nested = owner.acquire("a").await.unwrap();
        assert_eq!(again.token(), nested.token());
        for lost in [outer, inner] {
            assert_eq!(lost.release().await.unwrap_err().kind(), ErrorKind::Lost);
        }
        again.release().await.unwrap();
        assert!(nested.is_held());
        nested.release().await.unwrap();
        assert_eq!(owner.residue(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn two_acquires_at_once_become_one_acquisition() {
        let (store, owner) = owner();
        let other = store.client();
        let held = other.acquire("a").await.unwrap();
        let acquire = || {
            let owner = owner.clone();
            tokio::spawn(async move { owner.acquire("a").await })
        };
        let both = [acquire(), acquire()];
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.entries(held.name()), 2, "the holder and one waiter");
        assert!(owner.try_acquire("a").await.unwrap().is_none());
        let limit = Duration::from_secs(1);
        let error = owner.acquire_timeout("a", limit).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        held.release().await.unwrap();
        let [first, second] = both;
        let first = first.await.unwrap().unwrap();
        let second = second.await.unwrap().unwrap();
        assert_eq!(first.token(), second.token());
        drop((first, second));
        assert_eq!(owner.residue(), 0);
    }
}
