//! A current-thread runtime that does nothing outside `block_on`: its guards are lost, unless the
//! client has a thread of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]
#![cfg(unix)]

#[cfg(any(feature = "etcd", feature = "redis"))]
mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use polylock::{DistributedLock, DistributedLockExt, LockGuard};
use tokio::runtime::{Builder, Runtime};

/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(2);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn held_on(runtime: &Runtime, url: &str) -> (impl DistributedLock + use<>, LockGuard) {
    runtime.block_on(async {
        let locks = polylock::connect(url).await.unwrap();
        let guard = locks.acquire("held").await.unwrap();
        (locks, guard)
    })
}

/// Time for which the guard is held while nobody polls the runtime; a few TTLs at most.
fn held_for(guard: &LockGuard) -> Duration {
    let start = Instant::now();
    while guard.is_held() && start.elapsed() < TTL * 3 {
        thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

fn only_a_thread_renews_where_nothing_runs(url: &str) {
    let runtime = runtime();
    let parameters = format!("ttl={}s", TTL.as_secs());
    let (_locks, guard) = held_on(&runtime, &format!("{url}?{parameters}"));
    assert!(held_for(&guard) <= TTL * 2);
    drop(guard);
    drop(runtime);
    let runtime = self::runtime();
    let (locks, guard) = held_on(
        &runtime,
        &format!("{url}?{parameters}&background_thread=true"),
    );
    assert!(held_for(&guard) >= TTL * 3);
    // Nor does it need the runtime that it was made on.
    drop(runtime);
    assert!(held_for(&guard) >= TTL * 3);
    self::runtime().block_on(async {
        guard.release().await.unwrap();
        locks
            .acquire("another")
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        locks.shutdown().await.unwrap();
    });
}

#[cfg(feature = "mem")]
#[test]
fn in_memory() {
    only_a_thread_renews_where_nothing_runs("mem://background");
}

#[cfg(feature = "etcd")]
#[test]
fn in_etcd() {
    if let Some(server) = common::Server::etcd() {
        only_a_thread_renews_where_nothing_runs(server.url());
    }
}

#[cfg(feature = "redis")]
#[test]
fn in_redis() {
    if let Some(server) = common::Server::redis() {
        only_a_thread_renews_where_nothing_runs(server.url());
    }
}
