//! Unit tests of an application that locks: in memory, under paused time, with faults.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use lock_examples::billing::{Billed, Ledger, bill};
use polylock::{
    DistributedLock, DistributedLockExt, ErrorKind,
    layers::{Faults, Stack},
};
use tokio::time::{Instant, sleep};

/// A store of its own for each test, and what makes its locks fail.
async fn locks() -> (Arc<dyn DistributedLock>, Faults) {
    let faults = Faults::new();
    let store = polylock::connect("mem://").await.unwrap();
    (Stack::new().with(faults.clone()).over(store), faults)
}

// Twenty seconds of the payment pass in no time, and so do all timeouts.
#[tokio::test(start_paused = true)]
async fn an_order_is_billed_once() {
    let (locks, _) = locks().await;
    let ledger = Arc::new(Ledger::default());
    let began = Instant::now();
    let bills = [(); 2].map(|()| bill(&*locks, &ledger, 42));
    let [first, second] = bills;
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.unwrap(), Billed::Charged);
    assert_eq!(second.unwrap(), Billed::Busy, "it does not wait so long");
    assert_eq!(bill(&*locks, &ledger, 42).await.unwrap(), Billed::Already);
    assert_eq!(ledger.charges(42), 1);
    assert_eq!(began.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_in_the_middle_charges_nothing() {
    let (locks, faults) = locks().await;
    let ledger = Arc::new(Ledger::default());
    let lose = async {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(faults.lose("orders/42"), 1);
    };
    let (billed, ()) = tokio::join!(bill(&*locks, &ledger, 42), lose);
    assert_eq!(billed.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(ledger.charges(42), 0);
    // The next attempt has a new lock.
    assert_eq!(bill(&*locks, &ledger, 42).await.unwrap(), Billed::Charged);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_is_refused_by_the_ledger() {
    let (locks, _) = locks().await;
    let ledger = Ledger::default();
    let stale = locks.acquire("orders/42").await.unwrap();
    let late = stale.token();
    stale.release().await.unwrap();
    let next = locks.acquire("orders/42").await.unwrap();
    assert!(ledger.charge(42, next.token()));
    assert!(!ledger.charge(42, late), "its token is smaller");
    next.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_contention() {
    let (locks, faults) = locks().await;
    let ledger = Arc::new(Ledger::default());
    faults.fail_next(1, ErrorKind::Unavailable);
    let error = bill(&*locks, &ledger, 42).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(ledger.charges(42), 0);
}
