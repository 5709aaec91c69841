//! Endpoints that do not serve: a dead one of several fails no call, and none at all is a clear
//! error in time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_conformance::servers::{FakeServer, TcpProxy, Trouble};
use lock_core::{DistributedLockExt, ErrorKind, LockGuard, Operation, RetryAdvice};
use lock_etcd::EtcdLock;
use tokio::runtime::Runtime;

mod common;
use common::{
    NEVER, Operator, Waiter, address, behind,
    dead::{DeadPort, FullPort},
    own, promptly, works,
};

const CYCLES: usize = 1000;

#[tokio::test]
async fn a_dead_endpoint_fails_no_call() {
    let server = or_skip!(own());
    let dead = DeadPort::new();
    let locks = EtcdLock::builder([dead.endpoint(), server.endpoint().to_owned()])
        .with_ttl(NEVER)
        .connect()
        .await
        .unwrap();
    for cycle in 0..CYCLES {
        let guard = locks
            .acquire("a")
            .await
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
        guard
            .release()
            .await
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_fails_no_call() {
    let server = or_skip!(own());
    let one = TcpProxy::start(address(&server)).await.unwrap();
    let two = TcpProxy::start(address(&server)).await.unwrap();
    let endpoints = [one.address().to_string(), two.address().to_string()];
    let locks = EtcdLock::builder(endpoints)
        .with_ttl(NEVER)
        .connect()
        .await
        .unwrap();
    for cycle in 0..CYCLES / 2 {
        // Each of them dies in turn, between two requests and during them.
        match cycle % 100 {
            20 => one.set(Trouble::Refuse),
            40 => one.set(Trouble::None),
            60 => two.set(Trouble::Refuse),
            80 => two.set(Trouble::None),
            _ => {}
        }
        let guard = locks
            .acquire("a")
            .await
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
        guard
            .release()
            .await
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
    }
}

#[test]
fn a_member_first_used_from_a_runtime_that_has_ended_serves_on() {
    let server = or_skip!(own());
    let home = Runtime::new().unwrap();
    let short = Runtime::new().unwrap();
    let (proxies, locks) = home.block_on(async {
        let proxies = [
            TcpProxy::start(address(&server)).await.unwrap(),
            TcpProxy::start(address(&server)).await.unwrap(),
        ];
        let locks = EtcdLock::builder(proxies.each_ref().map(|proxy| proxy.address().to_string()))
            .with_ttl(NEVER)
            .connect();
        let locks = locks.await.unwrap();
        (proxies, locks)
    });
    let works_without_each = || async {
        for proxy in &proxies {
            proxy.set(Trouble::Refuse);
            works(&locks).await;
            proxy.set(Trouble::None);
        }
    };
    // One of them, drawn at random, is connected already; the other one is now.
    short.block_on(works_without_each());
    drop(short);
    home.block_on(works_without_each());
}

/// However much is under way. A connection that is closed as soon as it is there costs a server
/// most.
#[tokio::test]
async fn a_port_that_closes_every_connection_is_asked_seldom() {
    const MANY: usize = 300;
    const LONG: Duration = Duration::from_secs(4);
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let held = acquire_all(&locks, "held", MANY).await;
    let kept = acquire_all(&locks, "kept", MANY).await;
    let waiters: Vec<_> = (0..MANY)
        .map(|lock| Waiter::start(&locks, &format!("kept-{lock}")))
        .collect();
    let operator = Operator::of(&server).await;
    operator
        .until_entries(&format!("kept-{}", MANY - 1), 2)
        .await;
    proxy.set(Trouble::Refuse);
    let before = proxy.accepted();
    let start = Instant::now();
    drop(held);
    let tries = (0..MANY).map(|lock| {
        let locks = locks.clone();
        tokio::spawn(async move {
            while start.elapsed() < LONG {
                drop(locks.try_acquire(&format!("tried-{lock}")).await);
            }
        })
    });
    let tries: Vec<_> = tries.collect();
    tokio::time::sleep_until((start + LONG).into()).await;
    let a_second = (proxy.accepted() - before) as f64 / start.elapsed().as_secs_f64();
    assert!(
        (1.0..12.0).contains(&a_second),
        "{a_second:.1} connections a second"
    );
    proxy.set(Trouble::None);
    works(&locks).await;
    drop(kept);
    for waiter in waiters {
        waiter.granted().await.release().await.unwrap();
    }
    for task in tries {
        promptly("its end", task).await.unwrap();
    }
}

async fn acquire_all(locks: &EtcdLock, name: &str, count: usize) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for lock in 0..count {
        guards.push(locks.acquire(&format!("{name}-{lock}")).await.unwrap());
    }
    guards
}

#[tokio::test]
async fn connects_in_whatever_order_the_endpoints_are() {
    let server = or_skip!(own());
    let dead = DeadPort::new();
    let full = FullPort::new().await;
    let silent = FakeServer::silent().await.unwrap();
    let live = server.endpoint().to_owned();
    let others = [
        dead.endpoint(),
        full.endpoint(),
        silent.address().to_string(),
    ];
    let mut attempts = tokio::task::JoinSet::new();
    for other in &others {
        // The first one to be tried is drawn at random.
        for endpoints in [[other.clone(), live.clone()], [live.clone(), other.clone()]]
            .into_iter()
            .cycle()
            .take(8)
        {
            attempts.spawn(async move {
                let locks = EtcdLock::builder(endpoints.clone()).connect().await;
                works(&locks.unwrap_or_else(|error| panic!("{endpoints:?}: {error}"))).await;
            });
        }
    }
    let with_two_dead = [others[0].clone(), DeadPort::new().endpoint(), live];
    attempts.spawn(async move {
        works(&EtcdLock::builder(with_two_dead).connect().await.unwrap()).await;
    });
    while let Some(attempt) = promptly("all connections", attempts.join_next()).await {
        attempt.unwrap();
    }
}

#[tokio::test]
async fn no_endpoint_at_all_is_a_clear_error_in_time() {
    let dead = DeadPort::new();
    let full = FullPort::new().await;
    let silent = FakeServer::silent().await.unwrap();
    let garbage = FakeServer::garbage().await.unwrap();
    let all = [
        dead.endpoint(),
        full.endpoint(),
        silent.address().to_string(),
        garbage.address().to_string(),
    ];
    let alone = all.iter().map(|endpoint| vec![endpoint.clone()]);
    let mut attempts = tokio::task::JoinSet::new();
    for endpoints in alone.chain([all.to_vec(), vec![all[0].clone(), all[2].clone()]]) {
        attempts.spawn(fails_in_time(endpoints));
    }
    while let Some(attempt) = promptly("all errors", attempts.join_next()).await {
        attempt.unwrap();
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time that a loaded machine adds.
const MARGIN: Duration = Duration::from_secs(2);

async fn fails_in_time(endpoints: Vec<String>) {
    let start = Instant::now();
    let error = EtcdLock::builder(endpoints.clone())
        .with_connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .unwrap_err();
    let took = start.elapsed();
    assert!(took < CONNECT_TIMEOUT + MARGIN, "{endpoints:?}: {took:?}");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{endpoints:?}: {error}"
    );
    assert_eq!(
        (error.operation(), error.backend()),
        (Some(Operation::Connect), Some("etcd"))
    );
    let message = error.to_string();
    assert!(
        endpoints
            .iter()
            .all(|endpoint| message.contains(endpoint.as_str())),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}
