//! The leader changes, by an operator's act or by a failure: calls go on as soon as there is one
//! again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, EtcdCluster, EtcdOptions};
use lock_core::{DistributedLockExt, LockError};
use lock_etcd::EtcdLock;
use tokio::task::JoinSet;

mod common;
use common::{
    NEVER,
    members::{client_on, operator},
    promptly, until,
};

const MOVES: usize = 10;
/// A client that takes an election for silence waits for 2 s.
const STALL: Duration = Duration::from_millis(1200);

/// Tasks of one client that contend for a few locks, so that its transactions go together, and the
/// longest of their calls.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    longest: Arc<Mutex<Duration>>,
    tasks: JoinSet<Result<(), LockError>>,
}

impl Load {
    fn start(locks: &EtcdLock) -> Self {
        let stop = Arc::default();
        let done = Arc::default();
        let longest = Arc::default();
        let mut load = Self {
            stop,
            done,
            longest,
            tasks: JoinSet::new(),
        };
        for task in 0..16 {
            let locks = locks.clone();
            let stop = Arc::clone(&load.stop);
            let done = Arc::clone(&load.done);
            let longest = Arc::clone(&load.longest);
            load.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    locks
                        .acquire(format!("lock-{}", task % 8))
                        .await?
                        .release()
                        .await?;
                    let mut longest = longest.lock().unwrap();
                    *longest = longest.max(start.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        load
    }

    /// Waits until every task has got on.
    async fn gets_on(&self) {
        let goal = self.done.load(Ordering::Relaxed) + 500;
        until("the load gets on", || async {
            self.done.load(Ordering::Relaxed) >= goal
        })
        .await;
    }

    /// The longest call since the last time.
    fn longest(&self) -> Duration {
        std::mem::take(&mut self.longest.lock().unwrap())
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = promptly("the last cycle", self.tasks.join_next()).await {
            task.unwrap().expect("a call failed");
        }
    }
}

async fn move_leader(cluster: &EtcdCluster, to: usize) {
    let from = cluster.leader().await.unwrap();
    let id = operator(cluster, to)
        .await
        .status()
        .await
        .unwrap()
        .header()
        .unwrap()
        .member_id();
    operator(cluster, from).await.move_leader(id).await.unwrap();
    cluster.leader_other_than(from).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_soon_after_the_leader_was_moved() {
    let cluster = or_skip!(servers::etcd_cluster(EtcdOptions::new(), 3));
    let locks = client_on(&cluster, 0, NEVER).await;
    let load = Load::start(&locks);
    load.gets_on().await;
    load.longest();
    let mut longest = Vec::new();
    for to in (0..3)
        .cycle()
        .skip(cluster.leader().await.unwrap() + 1)
        .take(MOVES)
    {
        move_leader(&cluster, to).await;
        load.gets_on().await;
        longest.push(load.longest());
    }
    load.end().await;
    eprintln!("longest calls: {longest:?}");
    // An election itself may take longer on a busy machine, but not most of them.
    let stalls = longest.iter().filter(|longest| **longest >= STALL).count();
    assert!(stalls <= MOVES / 5, "{stalls} stalls: {longest:?}");
}
