//! Locks of other programs on the same keys: the real `etcdctl`, Go's reference mutex, the server's
//! own Lock RPC.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{Client, LockOptions};
use lock_conformance::servers::{Server, tools};
use lock_core::DistributedLockExt;
use lock_etcd::EtcdLock;
use tokio::task::JoinHandle;

mod common;
use common::{
    NEVER, Operator, Waiter, client, name, own,
    peers::{Etcdctl, GoMutex, go_mutex},
    promptly,
};

#[tokio::test]
async fn etcdctl_waits_for_us_and_our_release_lets_it_in() {
    let server = or_skip!(own());
    let etcdctl = or_skip!(tools::etcdctl());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let mut theirs = Etcdctl::start(&etcdctl, &server, "a", NEVER).await;
    operator.until_entries("a", 2).await;
    assert!(!theirs.has_reported() && !guard.is_lost());
    assert_eq!(
        locks.inspect(&name("a")).await.unwrap().unwrap().waiters,
        Some(1)
    );
    let ours = guard.token().unwrap().as_u64();
    guard.release().await.unwrap();
    assert!(theirs.locked().await > ours);
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    theirs.unlock().await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .expect("etcdctl has unlocked")
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn we_wait_for_etcdctl_until_its_command_ends() {
    let server = or_skip!(own());
    let etcdctl = or_skip!(tools::etcdctl());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let mut theirs = Etcdctl::start(&etcdctl, &server, "a", NEVER).await;
    let token = theirs.locked().await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let holder = operator.entries("a").await.remove(0);
    let info = locks.inspect(&name("a")).await.unwrap().unwrap();
    assert_eq!(
        (
            format!("a/{}", info.holder().owner),
            &info.holder().metadata
        ),
        (format!("{}@{}", holder.key, holder.created), &None)
    );
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    assert!(waiter.is_pending());
    theirs.unlock().await;
    let guard = waiter.granted().await;
    assert!(guard.token().unwrap().as_u64() > token);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn we_get_the_lock_of_a_killed_etcdctl_when_its_lease_ends() {
    let server = or_skip!(own());
    let etcdctl = or_skip!(tools::etcdctl());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let mut theirs = Etcdctl::start(&etcdctl, &server, "a", Duration::from_secs(2)).await;
    theirs.locked().await;
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    let holder = operator.entries("a").await.remove(0);
    theirs.kill().await;
    let guard = waiter.granted().await;
    let entries = operator.entries("a").await;
    assert!(
        entries.len() == 1 && entries[0].lease != holder.lease,
        "{entries:?}"
    );
    guard.release().await.unwrap();
}

#[tokio::test]
async fn the_lock_rpc_and_we_exclude_each_other() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let theirs = tokio::spawn(lock_by_rpc(operator.0.clone(), "a"));
    operator.until_entries("a", 2).await;
    assert!(!theirs.is_finished());
    guard.release().await.unwrap();
    let key = promptly("the Lock RPC", theirs).await.unwrap();
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    assert!(waiter.is_pending());
    operator.0.lock_client().unlock(key).await.unwrap();
    waiter.granted().await.release().await.unwrap();
}

async fn lock_by_rpc(client: Client, name: &str) -> Vec<u8> {
    let lease = client
        .lease_client()
        .grant(NEVER.as_secs() as i64, None)
        .await
        .unwrap()
        .id();
    client
        .lock_client()
        .lock(name, Some(LockOptions::new().with_lease(lease)))
        .await
        .unwrap()
        .key()
        .to_vec()
}

#[tokio::test]
async fn gos_mutex_and_we_exclude_each_other() {
    let server = or_skip!(own());
    let go = or_skip!(go_mutex());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let mut theirs = GoMutex::start(&go, &server, "a");
    theirs.tell("lock").await;
    operator.until_entries("a", 2).await;
    assert!(!theirs.has_answered());
    let first = guard.token().unwrap().as_u64();
    guard.release().await.unwrap();
    let second = theirs.locked().await;
    assert!(second > first);
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    assert!(waiter.is_pending());
    theirs.unlock().await;
    let guard = waiter.granted().await;
    assert!(guard.token().unwrap().as_u64() > second);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn mixed_waiters_are_served_in_the_order_of_their_arrival() {
    let server = or_skip!(own());
    let go = or_skip!(go_mutex());
    let etcdctl = or_skip!(tools::etcdctl());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    let arrivals = [
        "ours",
        "go",
        "rpc",
        "ours of another client",
        "etcdctl",
        "ours again",
        "rpc again",
    ];
    for (position, who) in arrivals.into_iter().enumerate() {
        let served = Served {
            order: Arc::clone(&order),
            who,
        };
        tasks.push(match who {
            "go" => tokio::spawn(served.go(GoMutex::start(&go, &server, "a"))),
            "etcdctl" => {
                tokio::spawn(served.etcdctl(Etcdctl::start(&etcdctl, &server, "a", NEVER).await))
            }
            "ours of another client" => tokio::spawn(served.ours(other.clone())),
            who if who.starts_with("rpc") => tokio::spawn(served.rpc(operator.0.clone())),
            _ => tokio::spawn(served.ours(locks.clone())),
        });
        operator.until_entries("a", position + 2).await;
    }
    assert!(order.lock().unwrap().is_empty());
    guard.release().await.unwrap();
    finished(tasks).await;
    assert_eq!(*order.lock().unwrap(), arrivals);
}

async fn finished(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.await.unwrap();
    }
}

/// One participant that notes when it is served.
struct Served {
    order: Arc<Mutex<Vec<&'static str>>>,
    who: &'static str,
}

impl Served {
    fn now(&self) {
        self.order.lock().unwrap().push(self.who);
    }

    async fn ours(self, locks: EtcdLock) {
        let guard = promptly("our turn", locks.acquire("a")).await.unwrap();
        self.now();
        guard.release().await.unwrap();
    }

    async fn go(self, mut theirs: GoMutex) {
        theirs.tell("lock").await;
        theirs.locked().await;
        self.now();
        theirs.unlock().await;
    }

    async fn etcdctl(self, mut theirs: Etcdctl) {
        theirs.locked().await;
        self.now();
        theirs.unlock().await;
    }

    async fn rpc(self, client: Client) {
        let key = promptly("the turn of the Lock RPC", lock_by_rpc(client.clone(), "a")).await;
        self.now();
        client.lock_client().unlock(key).await.unwrap();
    }
}

/// Holders and their tokens in the order of the holds, written down while holding.
type History = Arc<Mutex<Vec<(u64, &'static str)>>>;

/// Every client's own kind of token: ours is the revision at which the lock was seen to be owned,
/// Go's and etcdctl's that of the answer that ended the wait. Both lie within the hold, so that
/// they order the holds whoever reports them.
#[tokio::test]
async fn tokens_grow_over_holders_of_every_kind() {
    let server = or_skip!(own());
    let go = or_skip!(go_mutex());
    let etcdctl = or_skip!(tools::etcdctl());
    let history = History::default();
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let locks = client(&server).await;
        tasks.extend(
            (0..2).map(|_| tokio::spawn(cycles_of_ours(locks.clone(), Arc::clone(&history)))),
        );
        tasks.push(tokio::spawn(cycles_of_go(
            GoMutex::start(&go, &server, "a"),
            Arc::clone(&history),
        )));
    }
    cycles_of_etcdctl(&etcdctl, &server, &history).await;
    finished(tasks).await;
    let history = history.lock().unwrap();
    assert_eq!(history.len(), 4 * CYCLES + 2 * CYCLES + CYCLES_OF_ETCDCTL);
    for pair in history.windows(2) {
        assert!(pair[0].0 < pair[1].0, "{pair:?} in {history:?}");
    }
    let hand_overs = history
        .windows(2)
        .filter(|pair| (pair[0].1 == "ours") != (pair[1].1 == "ours"))
        .count();
    assert!(
        hand_overs >= CYCLES,
        "hardly mixed: {hand_overs} in {history:?}"
    );
}

const CYCLES: usize = 12;
const CYCLES_OF_ETCDCTL: usize = 4;

async fn cycles_of_ours(locks: EtcdLock, history: History) {
    for _ in 0..CYCLES {
        let guard = promptly("our turn", locks.acquire("a")).await.unwrap();
        history
            .lock()
            .unwrap()
            .push((guard.token().unwrap().as_u64(), "ours"));
        guard.release().await.unwrap();
    }
}

async fn cycles_of_go(mut theirs: GoMutex, history: History) {
    for _ in 0..CYCLES {
        theirs.tell("lock").await;
        let token = theirs.locked().await;
        history.lock().unwrap().push((token, "go"));
        theirs.unlock().await;
    }
}

async fn cycles_of_etcdctl(etcdctl: &Path, server: &Server, history: &History) {
    for _ in 0..CYCLES_OF_ETCDCTL {
        let mut theirs = Etcdctl::start(etcdctl, server, "a", NEVER).await;
        let token = theirs.locked().await;
        history.lock().unwrap().push((token, "etcdctl"));
        theirs.unlock().await;
    }
}
