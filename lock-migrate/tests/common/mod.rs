//! Load on a fleet whose stores are a real Redis and a real etcd.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};
use lock_core::{AcquireOptions, DistributedLockExt, LockGuard};
use lock_migrate::MigratingLock;
use tokio::task::JoinHandle;

pub(crate) const NAMES: [&str; 3] = ["orders/1", "orders/2", "invoices"];
pub(crate) const MEMBERS: usize = 4;
/// Half a second of Redis's tokens, so that the way back does not take long.
pub(crate) const HEAD_ROOM: u64 = 500_000;

/// A Redis and an etcd of the test's own; none where there are no servers.
pub(crate) fn start_servers() -> Option<(Server, Server)> {
    let redis = servers::redis(RedisOptions::new().own());
    let etcd = servers::etcd(EtcdOptions::new().own());
    redis.ok().zip(etcd.ok())
}

/// What the locks protect: it refuses whoever is not alone, or comes with an old token.
#[derive(Debug, Default)]
pub(crate) struct Resource {
    is_used: AtomicBool,
    last: AtomicU64,
    uses: AtomicU64,
}

impl Resource {
    pub(crate) async fn work(&self, guard: &LockGuard) {
        let name = guard.name();
        let is_alone = !self.is_used.swap(true, Ordering::SeqCst);
        assert!(is_alone, "{name} has two holders");
        let token = guard.token().unwrap().as_u64();
        let last = self.last.swap(token, Ordering::SeqCst);
        assert!(last < token, "{name}: {token} comes after {last}");
        tokio::task::yield_now().await;
        self.uses.fetch_add(1, Ordering::SeqCst);
        assert!(self.is_used.swap(false, Ordering::SeqCst));
    }

    pub(crate) fn last_token(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }
}

/// The resources of all names, and the failures of those who work on them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) resources: Arc<[Resource; NAMES.len()]>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Works on resources at random until it is told to stop.
    pub(crate) fn worker(&self, locks: &MigratingLock, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
        let load = self.clone();
        let locks = locks.clone();
        let stop = Arc::clone(stop);
        tokio::spawn(async move {
            let options = AcquireOptions::new()
                .with_ttl(Duration::from_secs(5))
                .with_timeout(Duration::from_secs(60));
            while !stop.load(Ordering::SeqCst) {
                let at = rand::random::<u64>() as usize % NAMES.len();
                match locks.acquire_with(NAMES[at], options.clone()).await {
                    Ok(guard) => {
                        load.resources[at].work(&guard).await;
                        // One that is lost on the way back is told so.
                        drop(guard.release().await);
                    }
                    Err(error) => load.failures.lock().unwrap().push(error.to_string()),
                }
            }
        })
    }

    /// Waits until every name has been locked some more, while all workers run.
    pub(crate) async fn goes_on(&self, limit: Duration, all_run: impl Fn() -> bool) {
        for resource in &*self.resources {
            let goal = resource.uses.load(Ordering::SeqCst) + 5;
            let reached = async {
                while resource.uses.load(Ordering::SeqCst) < goal {
                    assert!(all_run());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let in_time = tokio::time::timeout(limit, reached).await;
            let failures = self.failures.lock().unwrap();
            assert!(in_time.is_ok(), "nothing goes on: {failures:?}");
        }
    }

    pub(crate) fn expect_no_failures(&self) {
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
    }
}
