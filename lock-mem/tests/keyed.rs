//! As a keyed lock inside one process: without a runtime, with many names, with many threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, Registry,
};
use lock_mem::{MemConnector, MemLock, MemStore};

#[test]
fn release_and_drop_are_synchronous_and_need_no_runtime() {
    let locks = MemLock::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (dropped, released) = runtime.block_on(async {
        (
            locks.acquire("a").await.unwrap(),
            locks.acquire("b").await.unwrap(),
        )
    });
    drop(runtime);
    assert_eq!(released.state(), GuardState::Held);
    drop(dropped);
    assert_eq!(locks.store().names(), 1);
    drop(released);
    assert_eq!((locks.store().names(), locks.residue()), (0, 0));
}

#[test]
fn a_client_outlives_the_runtime_that_used_it_first() {
    let locks = MemLock::new();
    let ttl = Duration::from_secs(3);
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let first = runtime();
    let second = runtime();
    let acquire = async |name: &str| {
        let options = AcquireOptions::new().with_ttl(ttl);
        locks.acquire_with(name, options).await.unwrap()
    };
    let moved = first.block_on(acquire("a"));
    let guard = second.block_on(acquire("b"));
    drop(first);
    second.block_on(async { tokio::time::sleep(ttl * 4).await });
    assert_eq!(
        (moved.state(), guard.state()),
        (GuardState::Held, GuardState::Held)
    );
}

#[test]
fn a_shutdown_waits_for_no_runtime_that_nobody_polls() {
    let locks = MemLock::new();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let unpolled = runtime();
    let polled = runtime();
    let options = AcquireOptions::new().with_max_hold(Duration::from_secs(3600));
    let guard = unpolled.block_on(async { locks.acquire_with("a", options).await.unwrap() });
    polled.block_on(async {
        let begin = tokio::time::Instant::now();
        locks.shutdown().await.unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO);
    });
    assert!(guard.is_lost());
    drop(guard);
    assert_eq!((locks.store().names(), locks.residue()), (0, 0));
}

#[tokio::test]
async fn a_release_does_its_work_before_it_first_waits() {
    let locks = MemLock::new();
    let guard = locks.acquire("a").await.unwrap();
    let mut release = Box::pin(guard.release());
    let done = Future::poll(release.as_mut(), &mut Context::from_waker(Waker::noop()));
    assert!(done.is_ready());
}

#[tokio::test]
async fn a_name_that_is_idle_leaves_nothing() {
    let locks = MemLock::new();
    let mut last = None;
    for round in 0..3 {
        let mut guards = Vec::new();
        for number in 0..10_000 {
            guards.push(locks.acquire(format!("user/{number}")).await.unwrap());
        }
        assert_eq!(locks.store().names(), 10_000);
        assert!(
            guards.first().unwrap().token() > last,
            "round {round}: tokens start over"
        );
        last = guards.last().unwrap().token();
        drop(guards);
        assert_eq!((locks.store().names(), locks.residue()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_counter_that_is_not_atomic_comes_out_exact() {
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 100;
    let store = MemStore::new();
    let counter = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let locks = store.client();
        let counter = Arc::clone(&counter);
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let guard = locks.acquire("counter").await.unwrap();
                let seen = counter.load(Ordering::Relaxed);
                tokio::task::yield_now().await;
                counter.store(seen + 1, Ordering::Relaxed);
                guard.release().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(
        (counter.load(Ordering::Relaxed), store.names()),
        (TASKS * ROUNDS, 0)
    );
}

#[tokio::test]
async fn urls_name_a_store_or_get_their_own() {
    let registry = Registry::new().with(MemConnector);
    let connect = |url: &'static str| registry.connect(url);
    let one = connect("mem://keyed-test").await.unwrap();
    let other = connect("mem://keyed-test?ttl=5s").await.unwrap();
    let guard = other.acquire("n").await.unwrap();
    assert!(guard.remaining() <= Duration::from_secs(5));
    assert!(one.try_acquire("n").await.unwrap().is_none());
    assert!(
        connect("mem://keyed-test-2")
            .await
            .unwrap()
            .try_acquire("n")
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        connect("mem://")
            .await
            .unwrap()
            .try_acquire("n")
            .await
            .unwrap()
            .is_some()
    );
    for url in [
        "mem://a,b",
        "mem://a:1",
        "mem://a/b",
        "mem:///a",
        "mem://?ttl=0s",
        "mem://?ttl=x",
        "mem://?tls=1",
    ] {
        assert_eq!(
            connect(url).await.unwrap_err().kind(),
            ErrorKind::InvalidUrl,
            "{url}"
        );
    }
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    for ttl in [Duration::ZERO, Duration::from_millis(9), Duration::MAX] {
        let error = MemLock::builder().with_ttl(ttl).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{ttl:?}");
    }
    let locks = MemLock::builder()
        .with_ttl(Duration::from_millis(10))
        .build()
        .unwrap();
    let guard = locks
        .acquire_with("n", AcquireOptions::new().with_ttl(Duration::from_secs(60)))
        .await
        .unwrap();
    assert!(guard.remaining() > Duration::from_secs(30));
}
