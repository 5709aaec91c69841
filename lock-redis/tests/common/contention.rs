//! Tasks that take one lock again and again, and must not meet under it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use lock_core::{DistributedLock, DistributedLockExt};

/// Data that each holder leaves for the next one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contention(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inside: AtomicUsize,
    last_token: AtomicU64,
    counter: AtomicU64,
    resting: AtomicUsize,
}

impl Contention {
    /// Number of times that the lock was held.
    pub(crate) fn count(&self) -> u64 {
        self.0.counter.load(SeqCst)
    }

    /// Number that have ended, or wait for nothing but the answer to a release.
    pub(crate) fn resting(&self) -> usize {
        self.0.resting.load(SeqCst)
    }

    /// Takes the lock so many times.
    pub(crate) async fn contend(self, locks: impl DistributedLock, times: usize) {
        let Shared {
            inside,
            last_token,
            counter,
            resting,
        } = &*self.0;
        for left in (0..times).rev() {
            let guard = locks.acquire("a").await.unwrap();
            assert_eq!(inside.fetch_add(1, SeqCst), 0, "two inside");
            let token = guard.token().unwrap().as_u64();
            assert!(last_token.swap(token, SeqCst) < token, "a token went back");
            let seen = counter.load(SeqCst);
            tokio::task::yield_now().await;
            counter.store(seen + 1, SeqCst);
            inside.fetch_sub(1, SeqCst);
            resting.fetch_add(1, SeqCst);
            guard.release().await.unwrap();
            if left > 0 {
                resting.fetch_sub(1, SeqCst);
            }
        }
    }
}
