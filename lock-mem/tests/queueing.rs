//! Waiting, order, expiry and cancellation, under paused time: instants are exact to tokio's
//! millisecond.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockName,
    LossReason,
};
use lock_mem::{MemLock, MemStore};
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(2);

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn name(text: &str) -> LockName {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn waiters_are_granted_in_order_with_growing_tokens() {
    let store = MemStore::new();
    let first = store.client().acquire("n").await.unwrap();
    let mut last = first.token();
    let mut waiting = Vec::new();
    for at in 0..8_u64 {
        let locks = store.client();
        waiting.push(tokio::spawn(async move { locks.acquire("n").await }));
        while store.entries("n") < 2 + at as usize {
            tokio::task::yield_now().await;
        }
    }
    first.release().await.unwrap();
    for task in waiting {
        let guard = task.await.unwrap().unwrap();
        assert!(guard.token() > last);
        last = guard.token();
        guard.release().await.unwrap();
    }
    assert_eq!(store.names(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_next_waiter_is_granted_at_the_expiry_of_an_unrenewed_lock() {
    let store = MemStore::new();
    let start = Instant::now();
    let stuck = store
        .client()
        .acquire_with(
            &name("n"),
            AcquireOptions::new().with_ttl(TTL).without_renewal(),
        )
        .await
        .unwrap();
    let next = store.client().acquire("n").await.unwrap();
    assert!(
        (TTL..=TTL + TICK).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(stuck.state(), GuardState::Lost(LossReason::Expired));
    assert_eq!(stuck.release().await.unwrap_err().kind(), ErrorKind::Lost);
    next.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_try_and_an_inspection_see_the_expiry_too() {
    let locks = MemLock::new();
    let options = AcquireOptions::new()
        .with_ttl(TTL)
        .with_metadata("me")
        .without_renewal();
    let guard = locks.acquire_with(&name("n"), options).await.unwrap();
    let info = locks.inspect(&name("n")).await.unwrap().unwrap();
    assert_eq!(
        (
            &info.holder().owner,
            info.holder().token,
            info.holder().metadata.as_deref()
        ),
        (guard.owner(), guard.token(), Some("me"))
    );
    assert_eq!(
        (info.holder().expires_in, info.waiters),
        (Some(TTL), Some(0))
    );
    tokio::time::advance(TTL - TICK).await;
    assert!(locks.try_acquire("n").await.unwrap().is_none());
    tokio::time::advance(TICK).await;
    assert_eq!(locks.inspect(&name("n")).await.unwrap(), None);
    assert!(locks.try_acquire("n").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn renewal_keeps_a_waiter_out_until_the_release() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let error = store
        .client()
        .acquire_timeout("n", TTL * 10)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), guard.state()),
        (ErrorKind::TimedOut, GuardState::Held)
    );
    assert_eq!(store.entries("n"), 1);
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_dropped_at_any_point_leaves_nothing_and_delays_nobody() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let one = store.client();
    let other = store.client();
    let mut quits = Box::pin(one.acquire("n"));
    let mut stays = Box::pin(other.acquire("n"));
    assert!(poll_once(&mut quits).is_pending() && poll_once(&mut stays).is_pending());
    guard.release().await.unwrap();
    // `quits` has been granted the lock and does not know it yet.
    assert!(poll_once(&mut stays).is_pending());
    drop(quits);
    let Poll::Ready(Ok(guard)) = poll_once(&mut stays) else {
        panic!("the grant was not passed on")
    };
    assert_eq!((store.entries("n"), one.residue()), (1, 0));
    drop(guard);
    assert_eq!((store.names(), other.residue()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_granted_waiter_that_nobody_polls_delays_the_rest_by_its_ttl_only() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let locks = store.client();
    let mut stuck = pin!(locks.acquire("n"));
    assert!(poll_once(&mut stuck).is_pending());
    let start = Instant::now();
    drop(guard);
    let next = store
        .client()
        .acquire_timeout("n", TTL + TICK)
        .await
        .unwrap();
    assert!(start.elapsed() <= TTL + TICK);
    // Once it is polled again it queues anew, and does not get what has expired meanwhile.
    assert!(poll_once(&mut stuck).is_pending());
    let token = next.token();
    drop(next);
    assert!(stuck.await.unwrap().token() > token);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_evicted_before_its_waiter_saw_it_is_no_guard() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let locks = store.client();
    let mut waits = Box::pin(locks.acquire("n"));
    assert!(poll_once(&mut waits).is_pending());
    drop(guard);
    assert!(store.evict("n"), "it has been granted to the waiter");
    let Poll::Ready(Ok(guard)) = poll_once(&mut waits) else {
        panic!("free, and the waiter was not granted")
    };
    assert_eq!((guard.state(), store.entries("n")), (GuardState::Held, 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_waiter_gets_its_whole_ttl() {
    let store = MemStore::new();
    let guard = store.client().acquire("n").await.unwrap();
    let locks = store.client();
    let mut late = pin!(locks.acquire("n"));
    assert!(poll_once(&mut late).is_pending());
    drop(guard);
    tokio::time::advance(TTL - TICK).await;
    let guard = late.await.unwrap();
    assert!(guard.remaining() > TTL / 2, "{:?}", guard.remaining());
}

#[tokio::test(start_paused = true)]
async fn shutdown_fails_waiters_and_loses_guards_of_this_client_only() {
    let store = MemStore::new();
    let closes = store.client();
    let stays = store.client();
    let mine = closes.acquire("mine").await.unwrap();
    let other = stays.acquire("other").await.unwrap();
    let mut waits = Box::pin(closes.acquire("other"));
    assert!(poll_once(&mut waits).is_pending());
    closes.shutdown().await.unwrap();
    assert_eq!(waits.await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(
        (mine.state(), other.state()),
        (GuardState::Lost(LossReason::Shutdown), GuardState::Held)
    );
    assert_eq!((store.entries("mine"), store.entries("other")), (0, 1));
    assert_eq!(
        closes.try_acquire("free").await.unwrap_err().kind(),
        ErrorKind::Shutdown
    );
    closes.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_maximum_hold_hands_over_although_the_holder_lives() {
    let store = MemStore::new();
    let options = AcquireOptions::new().with_ttl(TTL).with_max_hold(TTL * 2);
    let stuck = store
        .client()
        .acquire_with(&name("n"), options)
        .await
        .unwrap();
    let start = Instant::now();
    let _next = store.client().acquire("n").await.unwrap();
    assert!(
        (TTL * 2..=TTL * 3 + TICK).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(stuck.state(), GuardState::Lost(LossReason::MaxHold));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_has_not_looked_yet_has_its_token() {
    let locks = MemLock::new();
    let first = locks.acquire("n").await.unwrap();
    let mut waiter = Box::pin(locks.acquire("n"));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    let token = first.token();
    first.release().await.unwrap();
    let told = locks.inspect("n").await.unwrap().unwrap().holder().token;
    assert!(told > token, "{told:?} after {token:?}");
    assert_eq!(waiter.await.unwrap().token(), told);
}
