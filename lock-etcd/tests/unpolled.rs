//! Callers that keep the future of an acquisition and do not poll it: in a `select!` whose other
//! branch takes long, or in a struct.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{pin::Pin, time::Duration};

use futures_util::future::join_all;
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockError,
    LockGuard,
};
use lock_etcd::EtcdLock;

mod common;
use common::{NEVER, Operator, Waiter, client, name, own, promptly, until};

/// Of those who do not poll.
const TTL: Duration = Duration::from_secs(2);

type Acquiring = Pin<Box<dyn Future<Output = Result<Option<LockGuard>, LockError>> + Send>>;

fn acquiring(locks: &EtcdLock, lock: &str, options: AcquireOptions) -> Acquiring {
    let locks = locks.clone();
    let lock = name(lock);
    Box::pin(async move {
        locks
            .acquire_with(&lock, options.with_ttl(TTL))
            .await
            .map(Some)
    })
}

fn trying(locks: &EtcdLock, lock: &str, options: AcquireOptions) -> Acquiring {
    let locks = locks.clone();
    let lock = name(lock);
    Box::pin(async move { locks.try_acquire_with(&lock, options.with_ttl(TTL)).await })
}

/// A guard that is held in the store, too.
async fn is_held(guard: &LockGuard, operator: &Operator) {
    let entries = operator.entries(guard.name().as_str()).await;
    assert!(
        entries[0]
            .key
            .ends_with(guard.owner().as_str().split('@').next().unwrap()),
        "{entries:?}"
    );
    assert_eq!(guard.state(), GuardState::Held);
}

#[tokio::test]
async fn a_waiter_that_is_not_polled_blocks_neither_its_own_client_nor_others() {
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    for next in [client(&server).await, locks.clone()] {
        let guard = holder.acquire("a").await.unwrap();
        let mut acquire = acquiring(&locks, "a", AcquireOptions::new());
        tokio::select! {
            _ = &mut acquire => panic!("the lock is held"),
            () = operator.until_entries("a", 2) => {}
        }
        let waiter = Waiter::start(&next, "a");
        operator.until_entries("a", 3).await;
        guard.release().await.unwrap();
        // The long branch.
        let guard = waiter.granted().await;
        operator.until_entries("a", 1).await;
        let late = tokio::spawn(acquire);
        operator.until_entries("a", 2).await;
        guard.release().await.unwrap();
        let guard = promptly("the late caller", late)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        is_held(&guard, &operator).await;
        guard.release().await.unwrap();
    }
}

/// Wherever it was left: while its entry is made, between the grant and the guard, or in a request
/// of its own lease's.
#[tokio::test]
async fn an_acquire_that_is_left_after_any_of_its_steps_blocks_nobody() {
    const STEPS: usize = 8;
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let locks = &locks;
    let kinds = [
        AcquireOptions::new(),
        AcquireOptions::new().without_renewal(),
    ];
    let cases = (0..STEPS).flat_map(|steps| {
        kinds.iter().enumerate().flat_map(move |(at, options)| {
            let names = [format!("acquire-{at}-{steps}"), format!("try-{at}-{steps}")];
            let futures = [
                acquiring(locks, &names[0], options.clone()),
                trying(locks, &names[1], options.clone()),
            ];
            names
                .into_iter()
                .zip(futures)
                .map(move |(name, future)| (name, steps, future))
        })
    });
    join_all(cases.map(|(lock, steps, future)| left_after(steps, lock, future, &other, &operator)))
        .await;
}

async fn left_after(
    steps: usize,
    lock: String,
    mut acquire: Acquiring,
    other: &EtcdLock,
    operator: &Operator,
) {
    for _ in 0..=steps {
        // One look; the answer to what it sends has come before the next.
        if let Ok(guard) = tokio::time::timeout(Duration::ZERO, &mut acquire).await {
            return guard.unwrap().unwrap().release().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let guard = promptly(&lock, other.acquire(lock.as_str())).await.unwrap();
    operator.until_entries(&lock, 1).await;
    guard.release().await.unwrap();
    let guard = promptly("the late caller", acquire).await.unwrap().unwrap();
    is_held(&guard, operator).await;
    guard.release().await.unwrap();
}

/// On another runtime than the client's the requests are tasks, which end without their caller.
#[tokio::test]
async fn what_was_granted_on_the_clients_runtime_and_not_fetched_is_given_up() {
    let server = or_skip!(own());
    let home = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let endpoint = server.endpoint().to_owned();
    let connect = async move {
        EtcdLock::builder([endpoint])
            .with_ttl(NEVER)
            .connect()
            .await
            .unwrap()
    };
    let locks = home.spawn(connect).await.unwrap();
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let mut acquire = acquiring(&locks, "a", AcquireOptions::new().without_renewal());
    for _ in 0..2 {
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut acquire)
                .await
                .is_err()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let guard = promptly("the lock", other.acquire("a")).await.unwrap();
    guard.release().await.unwrap();
    let guard = promptly("the late caller", acquire).await.unwrap().unwrap();
    is_held(&guard, &operator).await;
    guard.release().await.unwrap();
    locks.shutdown().await.unwrap();
    until("no lease of the client's", || async {
        operator.leases().await == 1
    })
    .await;
    home.shutdown_background();
}

/// Until the next request of the same client is answered.
#[tokio::test]
async fn an_answer_that_is_not_looked_at_is_no_outage_for_others() {
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let a = name("a");
    let waiter = locks.clone();
    let _guard = holder.acquire(&a).await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire_timeout("a", TTL).await });
    operator.until_entries("a", 2).await;
    // A read is answered while the new watch has told nothing.
    tokio::time::sleep(TTL / 5).await;
    let mut unpolled = Box::pin(locks.inspect(&a));
    assert!(futures_util::poll!(&mut unpolled).is_pending());
    let error = promptly("the end of its wait", waiting)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

/// A caller that polls keeps its place for many TTLs.
#[tokio::test]
async fn a_waiter_that_is_polled_keeps_its_place() {
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    let waiter = Waiter::start_with(&locks, "a", AcquireOptions::new().with_ttl(TTL));
    operator.until_entries("a", 2).await;
    let before = operator.entries("a").await;
    assert!(tokio::time::timeout(TTL * 3, guard.lost()).await.is_err());
    assert_eq!(operator.entries("a").await, before);
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
}
