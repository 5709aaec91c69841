//! Many clients that take one lock again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_core::DistributedLock;
use tokio::task::JoinSet;

use super::{name, ttl, until_within};

/// How many clients wait for one lock.
pub(crate) const CROWD: usize = 32;

/// Longer than a pause of a loaded machine; a lease that nobody renews ends within a test.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// For whatever fails to be noticed, and for everybody's turn after it.
const RECOVERY: Duration = Duration::from_secs(60);

/// Clients in tasks, each with a count of what it was granted.
pub(crate) struct Crowd {
    grants: Arc<[AtomicUsize]>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Crowd {
    pub(crate) fn start(clients: Vec<impl DistributedLock>) -> Self {
        let grants: Arc<[AtomicUsize]> = clients.iter().map(|_| AtomicUsize::default()).collect();
        let stop = Arc::new(AtomicBool::default());
        let mut tasks = JoinSet::new();
        for (at, locks) in clients.into_iter().enumerate() {
            let grants = Arc::clone(&grants);
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                while !stop.load(SeqCst) {
                    contend_once(&locks, || grants[at].fetch_add(1, SeqCst)).await;
                }
            });
        }
        Self {
            grants,
            stop,
            tasks,
        }
    }

    /// Waits until every client has been granted the lock twice more.
    pub(crate) async fn goes_on(&self, after: &str) {
        let seen = || self.grants.iter().map(|grants| grants.load(SeqCst));
        let before: Vec<_> = seen().collect();
        until_within(RECOVERY, &format!("everybody's turn {after}"), || async {
            before
                .iter()
                .zip(seen())
                .all(|(before, now)| now >= before + 2)
        })
        .await;
    }

    /// Lets all of them stop, which none must be prevented from.
    pub(crate) async fn rests(self) {
        self.stop.store(true, SeqCst);
        tokio::time::timeout(RECOVERY, self.tasks.join_all())
            .await
            .expect("a client is stranded");
    }
}

/// Takes the lock and releases it; what fails meanwhile may end either.
pub(crate) async fn contend_once<T>(locks: &impl DistributedLock, granted: impl FnOnce() -> T) {
    match locks.acquire_named(&name("a"), ttl(LEASE)).await {
        Ok(guard) => {
            granted();
            tokio::task::yield_now().await;
            drop(guard.release().await);
        }
        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
    }
}
