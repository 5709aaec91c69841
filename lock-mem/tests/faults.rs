//! Each fault that a store can be put into, as an application sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LockName, LossReason};
use lock_mem::MemStore;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(3);

fn name() -> LockName {
    "n".parse().unwrap()
}

fn options() -> AcquireOptions {
    AcquireOptions::new().with_ttl(TTL)
}

#[tokio::test(start_paused = true)]
async fn a_frozen_store_loses_the_guard_at_its_deadline_and_keeps_waiters_waiting() {
    let store = MemStore::new();
    let guard = store
        .client()
        .acquire_with(&name(), options())
        .await
        .unwrap();
    let locks = store.client();
    let start = Instant::now();
    let waiter = tokio::spawn(async move { locks.acquire("n").await });
    store.freeze();
    assert_eq!(guard.lost().await, LossReason::Expired);
    assert!(start.elapsed() <= TTL, "{:?}", start.elapsed());
    // An outage is tolerated for the waiter's TTL, which is the default.
    tokio::time::sleep(TTL * 5).await;
    assert!(
        !waiter.is_finished(),
        "granted by a store that does not answer"
    );
    store.thaw();
    assert!(waiter.await.unwrap().unwrap().token() > guard.token());
}

#[tokio::test(start_paused = true)]
async fn a_short_freeze_costs_nothing() {
    let store = MemStore::new();
    let guard = store
        .client()
        .acquire_with(&name(), options())
        .await
        .unwrap();
    for _ in 0..10 {
        store.freeze();
        tokio::time::sleep(TTL / 2).await;
        store.thaw();
        tokio::time::sleep(TTL / 2).await;
        assert_eq!(guard.state(), GuardState::Held);
    }
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_to_a_frozen_store_fail_in_bounded_time() {
    let store = MemStore::new();
    let locks = store.client();
    let guard = locks.acquire_with(&name(), options()).await.unwrap();
    store.freeze();
    let error = locks.acquire_timeout("other", TTL).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "nobody holds it: {error}"
    );
    assert_eq!(
        locks.try_acquire("other").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        locks.inspect(&name()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        locks.force_release(&name()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    store.thaw();
    assert_eq!(store.entries("other"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_on_a_frozen_store_is_indeterminate_and_leaves_no_task() {
    let store = MemStore::new();
    let locks = store.client();
    let guard = locks.acquire_with(&name(), options()).await.unwrap();
    store.freeze();
    let start = Instant::now();
    let error = guard.release().await.unwrap_err();
    assert!(
        error.is_indeterminate() && error.kind() == ErrorKind::Unavailable,
        "{error}"
    );
    assert!(start.elapsed() <= TTL);
    tokio::time::timeout(TTL * 3, async {
        while locks.residue() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guard_dropped_while_frozen_is_released_by_the_thaw() {
    let store = MemStore::new();
    let locks = store.client();
    drop(locks.acquire("a").await.unwrap());
    let guard = locks.acquire("n").await.unwrap();
    store.freeze();
    drop(guard);
    tokio::task::yield_now().await;
    assert_eq!(store.entries("n"), 1);
    store.thaw();
    let start = Instant::now();
    locks.acquire("n").await.unwrap().release().await.unwrap();
    assert!(
        start.elapsed() < Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn eviction_expiry_and_force_release_are_told_at_once_and_grant_the_next() {
    let store = MemStore::new();
    let holder = store.client();
    let next = store.client();
    for (reason, fault) in [
        (LossReason::Removed, 0),
        (LossReason::Expired, 1),
        (LossReason::Removed, 2),
    ] {
        let guard = holder.acquire("n").await.unwrap();
        let lost = guard.lost();
        let start = Instant::now();
        let taken = match fault {
            0 => store.evict("n"),
            1 => store.expire("n"),
            _ => !next.force_release(&name()).await.unwrap().is_empty(),
        };
        assert!(taken);
        let successor = next.acquire("n").await.unwrap();
        assert_eq!((lost.await, start.elapsed()), (reason, Duration::ZERO));
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
        assert_eq!(successor.state(), GuardState::Held);
        successor.release().await.unwrap();
    }
    assert!(
        !store.evict("n")
            && !store.expire("n")
            && next.force_release(&name()).await.unwrap().is_empty()
    );
    assert!(!store.evict(""), "not a name, so nobody holds it");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_evicted_before_it_saw_its_grant_does_not_lose_the_next_one() {
    let store = MemStore::new();
    let locks = store.client();
    let operator = store.client();
    let _holder = store.client().acquire("n").await.unwrap();
    let waiter = tokio::spawn(async move { locks.acquire("n").await });
    while store.entries("n") < 2 {
        tokio::task::yield_now().await;
    }
    assert!(
        store.evict("n"),
        "the waiter is granted, but has not looked yet"
    );
    // The answer to the operator comes when the waiter has queued again and been granted once more.
    store.delay_replies(TTL);
    assert!(!operator.force_release(&name()).await.unwrap().is_empty());
    store.delay_replies(Duration::ZERO);
    let guard = waiter.await.unwrap().unwrap();
    assert_eq!(guard.state(), GuardState::Held);
    guard.release().await.unwrap();
    assert_eq!(store.names(), 0);
}

#[tokio::test(start_paused = true)]
async fn failed_requests_have_no_effect_and_renewals_and_releases_are_retried() {
    let store = MemStore::new();
    let locks = store.client();
    store.fail_next(2, ErrorKind::Unavailable);
    assert_eq!(
        locks.try_acquire("n").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    locks
        .acquire("n")
        .await
        .expect("it waits until the trouble is over")
        .release()
        .await
        .unwrap();
    store.fail_next(1, ErrorKind::PermissionDenied);
    assert_eq!(
        locks.acquire("n").await.unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    store.fail_next(u32::MAX, ErrorKind::Unavailable);
    let error = locks.acquire_timeout("n", TTL).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable
            && error.to_string().contains("on request of the test"),
        "{error}"
    );
    store.fail_next(0, ErrorKind::Unavailable);
    assert_eq!(store.names(), 0);

    let guard = locks.acquire_with(&name(), options()).await.unwrap();
    store.fail_next(2, ErrorKind::Unavailable);
    tokio::time::sleep(TTL * 3).await;
    assert_eq!(guard.state(), GuardState::Held);
    store.fail_next(2, ErrorKind::Unavailable);
    guard.release().await.unwrap();
    assert_eq!(store.names(), 0);
}

#[tokio::test(start_paused = true)]
async fn renewals_that_keep_failing_lose_the_guard() {
    let store = MemStore::new();
    let guard = store
        .client()
        .acquire_with(&name(), options())
        .await
        .unwrap();
    store.fail_next(u32::MAX, ErrorKind::Unavailable);
    assert_eq!(guard.lost().await, LossReason::Expired);
}

#[tokio::test(start_paused = true)]
async fn late_replies_do_not_prolong_a_guard() {
    let store = MemStore::new();
    let delay = TTL / 2;
    store.delay_replies(delay);
    let start = Instant::now();
    let guard = store
        .client()
        .acquire_with(&name(), options().without_renewal())
        .await
        .unwrap();
    assert!(start.elapsed() >= delay);
    assert!(guard.remaining() <= TTL - delay, "{:?}", guard.remaining());
    assert_eq!(guard.lost().await, LossReason::Expired);
    assert!(start.elapsed() <= TTL);
    store.delay_replies(Duration::ZERO);
    store
        .client()
        .acquire("n")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn late_replies_delay_the_renewal_of_many_guards_as_that_of_one() {
    let store = MemStore::new();
    let locks = store.client();
    let mut guards = Vec::new();
    for number in 0..300 {
        guards.push(
            locks
                .acquire_with(format!("n{number}"), options())
                .await
                .unwrap(),
        );
    }
    store.delay_replies(TTL / 30);
    tokio::time::sleep(TTL * 4).await;
    assert!(guards.iter().all(|guard| guard.state() == GuardState::Held));
}

#[tokio::test(start_paused = true)]
async fn evicted_waiters_queue_again() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let locks = store.client();
    let waiter = tokio::spawn(async move { locks.acquire("n").await });
    for _ in 0..3 {
        while store.entries("n") < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.evict_waiters("n"), 1);
    }
    guard.release().await.unwrap();
    waiter.await.unwrap().unwrap().release().await.unwrap();
}
