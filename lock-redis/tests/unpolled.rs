//! Acquisitions whose callers keep the future and do not poll it, and clients whose runtime nobody
//! runs, with real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{future::Future, pin::Pin, time::Duration};

use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, LockError, LockGuard, LockName};
use tokio::{runtime::Runtime, time::Instant};

mod common;
use common::{
    NEVER, Operator, address, builder, client, forgetful, name, own, promptly, quorum, ttl, until,
    warm_up,
};

/// Options of a waiter that is not polled any more.
const TTL: Duration = Duration::from_secs(4);

/// When it must have lost its place, with the time that loaded machines take.
const PASSED: Duration = Duration::from_secs(7);

type Acquiring<'a> = Pin<Box<dyn Future<Output = Result<LockGuard, LockError>> + Send + 'a>>;

fn acquiring<'a>(locks: &'a dyn DistributedLock, name: &'a LockName) -> Acquiring<'a> {
    Box::pin(locks.acquire_with(name, ttl(TTL)))
}

/// Polls it until the condition is met, and then no more.
async fn poll_until<F: Future<Output = bool>>(
    acquiring: &mut Acquiring<'_>,
    what: &str,
    condition: impl FnMut() -> F,
) {
    tokio::select! {
        biased;
        outcome = acquiring => panic!("{what}: {outcome:?}"),
        () = until(what, condition) => {}
    }
}

/// A waiter that is not polled any more comes first, and then the lock is free.
async fn is_passed_over(locks: &(impl DistributedLock + Clone + 'static), operators: &[Operator]) {
    let a = name("a");
    for operator in operators {
        let () = operator
            .run(&["SET", "a", "stranger", "PX", "600000"])
            .await;
    }
    let mut unpolled = acquiring(locks, &a);
    for operator in operators {
        poll_until(&mut unpolled, "it waits", || async {
            operator.tracked_keys().await > 0
        })
        .await;
    }
    let next = common::waiter(locks, "a");
    for operator in operators {
        let () = operator.run(&["DEL", "a"]).await;
    }
    let guard = tokio::time::timeout(PASSED, next)
        .await
        .expect("stranded behind one that is not polled")
        .unwrap()
        .unwrap();
    let last = common::waiter(locks, "a");
    guard.release().await.unwrap();
    promptly("the one behind it", last)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    promptly("the late one", unpolled)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for operator in operators {
        until("nothing is left", || async {
            operator.get("a").await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn a_waiter_that_is_not_polled_loses_its_place_to_the_next() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    is_passed_over(&locks, &[Operator::of(&server)]).await;
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn a_waiter_of_a_quorum_that_is_not_polled_loses_its_place_to_the_next() {
    let servers = or_skip!(quorum::three_that_forget());
    let locks = quorum::of(&servers).connect().await.unwrap();
    is_passed_over(&locks, &quorum::operators(&servers)).await;
    until("no residue", || async { locks.residue()() == 0 }).await;
}

/// The first of a line asks and does not look at the answer, and those behind it wait for less time
/// than it has for that.
async fn is_no_outage_for_others(
    locks: &(impl DistributedLock + Clone + 'static),
    operators: &[Operator],
) {
    for operator in operators {
        let () = operator
            .run(&["SET", "a", "stranger", "PX", "600000"])
            .await;
    }
    let a = name("a");
    let mut unpolled = acquiring(locks, &a);
    for operator in operators {
        // The request that a poll sends is answered before the next.
        while operator.tracked_keys().await == 0 {
            assert!(futures_util::poll!(&mut unpolled).is_pending());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let error = promptly("the end of its wait", locks.acquire_timeout(&a, TTL / 8))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[tokio::test]
async fn an_answer_that_is_not_looked_at_is_no_outage_for_others() {
    let server = or_skip!(forgetful());
    is_no_outage_for_others(&client(&server).await, &[Operator::of(&server)]).await;
}

#[tokio::test]
async fn an_answer_of_a_quorum_that_is_not_looked_at_is_no_outage_for_others() {
    let servers = or_skip!(quorum::three_that_forget());
    is_no_outage_for_others(
        &quorum::of(&servers).connect().await.unwrap(),
        &quorum::operators(&servers),
    )
    .await;
}

#[tokio::test]
async fn a_grant_that_nobody_polls_for_ends_with_its_ttl() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server);
    // It knows the scripts.
    locks
        .acquire("warm-up")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let a = name("a");
    let start = Instant::now();
    let mut unpolled = acquiring(&locks, &a);
    // One poll sends the request. The answer is not looked at.
    assert!(futures_util::poll!(&mut unpolled).is_pending());
    until("it is granted", || async {
        operator.get("a").await.is_some()
    })
    .await;
    let own = common::waiter(&locks, "a");
    let others = common::waiter(&other, "a");
    let (first, last) = tokio::time::timeout(PASSED, async {
        tokio::select! { guard = own => (guard, "own"), guard = others => (guard, "others") }
    })
    .await
    .expect("blocked by a grant that nobody takes");
    assert!(
        start.elapsed() >= TTL - Duration::from_millis(100),
        "{last} within its TTL"
    );
    first.unwrap().unwrap().release().await.unwrap();
    promptly("the late one queues again", async {
        unpolled.await.unwrap().release().await.unwrap();
    })
    .await;
    until("nothing is left", || async {
        operator.get("a").await.is_none() && locks.residue()() == 0
    })
    .await;
}

/// A runtime that nobody runs once the client is made.
fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_client_whose_runtime_nobody_runs_says_so_in_time() {
    let server = or_skip!(own());
    let quick = Duration::from_millis(500);
    let address = address(&server);
    let (runtime, locks) = tokio::task::spawn_blocking(move || {
        let runtime = current_thread();
        let builder = builder(address)
            .with_connect_timeout(quick)
            .with_request_timeout(quick);
        let locks = runtime.block_on(builder.connect()).unwrap();
        (runtime, locks)
    })
    .await
    .unwrap();
    let a = name("a");
    for error in [
        promptly("acquire", locks.acquire_with(&a, ttl(NEVER)))
            .await
            .unwrap_err(),
        promptly("try", locks.try_acquire("a")).await.unwrap_err(),
        promptly("inspect", locks.inspect(&a)).await.unwrap_err(),
        promptly("force-release", locks.force_release(&a))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    tokio::task::spawn_blocking(move || drop((locks, runtime)))
        .await
        .unwrap();
}
