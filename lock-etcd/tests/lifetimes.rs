//! Entries and leases stay in the store no longer than somebody has a use for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_conformance::servers::{TcpProxy, Trouble};
use lock_core::{AcquireOptions, DistributedLockExt, GuardState, LossReason};
use lock_etcd::EtcdLock;

mod common;
use common::{NEVER, Operator, Waiter, address, client, name, own, promptly, until};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_lock_is_free_at_its_maximum_hold_whatever_its_ttl() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    for ttl in [2, 30, 600] {
        let options = AcquireOptions::new()
            .with_ttl(SECOND * ttl)
            .with_max_hold(SECOND);
        let stuck = locks.acquire_with(&name("a"), options).await.unwrap();
        let start = Instant::now();
        let next = Waiter::start(&other, "a").granted().await;
        assert!(
            start.elapsed() < SECOND * 5,
            "free after {:?} with a TTL of {ttl} s",
            start.elapsed()
        );
        assert_eq!(stuck.state(), GuardState::Lost(LossReason::MaxHold));
        next.release().await.unwrap();
    }
    operator.until_entries("a", 0).await;
}

/// An acquire that made another attempt instead would never end, and ask the store without a pause.
#[tokio::test]
async fn a_maximum_hold_that_has_passed_before_the_grant_ends_the_guard_and_not_the_acquire() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    for options in [
        AcquireOptions::new(),
        AcquireOptions::new().without_renewal(),
    ] {
        let options = options.with_max_hold(Duration::from_nanos(1));
        let guard = promptly("acquire", locks.acquire_with(&name("a"), options.clone()))
            .await
            .unwrap();
        assert_eq!(guard.state(), GuardState::Lost(LossReason::MaxHold));
        operator.until_entries("a", 0).await;
        let guard = promptly("try-acquire", locks.try_acquire_with(&name("a"), options))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(guard.state(), GuardState::Lost(LossReason::MaxHold));
        operator.until_entries("a", 0).await;
    }
}

/// That counts where the process is stuck or dead.
#[tokio::test]
async fn a_lease_is_for_no_longer_than_the_maximum_hold_needs() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    for (ttl, most, granted) in [
        (600, SECOND / 2, 2),
        (30, SECOND, 2),
        (30, SECOND * 7, 8),
        (2, SECOND * 7, 2),
        (30, SECOND * 60, 30),
    ] {
        let options = AcquireOptions::new()
            .with_ttl(SECOND * ttl)
            .with_max_hold(most);
        let guard = locks.acquire_with(&name("a"), options).await.unwrap();
        let lease = operator.entries("a").await[0].lease;
        let kept = operator
            .0
            .lease_client()
            .time_to_live(lease, None)
            .await
            .unwrap();
        assert_eq!(
            kept.granted_ttl(),
            granted,
            "{most:?} with a TTL of {ttl} s"
        );
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_view_that_is_kept_renews_nothing() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let mut views = Vec::new();
    for options in [
        AcquireOptions::new().with_ttl(SECOND * 60),
        AcquireOptions::new().without_renewal(),
        AcquireOptions::new(),
    ] {
        let guard = locks.acquire_with(&name("a"), options).await.unwrap();
        views.push(guard.view());
        guard.release().await.unwrap();
    }
    // The client's own is left.
    until("no lease but the client's", || async {
        operator.leases().await == 1
    })
    .await;
    drop(locks);
    until("no lease", || async { operator.leases().await == 0 }).await;
    assert!(
        views
            .iter()
            .all(|view| view.state() == GuardState::Released)
    );
}

/// An address behind which there is another store for a while, which does not have the entry.
#[tokio::test]
async fn an_entry_that_was_only_read_to_be_gone_is_removed() {
    let server = or_skip!(own());
    let stranger = or_skip!(own());
    let home = TcpProxy::start(address(&server)).await.unwrap();
    let away = TcpProxy::start(address(&stranger)).await.unwrap();
    away.set(Trouble::Refuse);
    let endpoints = [&home, &away].map(|proxy| proxy.address().to_string());
    let locks = EtcdLock::builder(endpoints)
        .with_ttl(NEVER)
        .connect()
        .await
        .unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let operator = Operator::of(&server).await;
    home.set(Trouble::Refuse);
    away.set(Trouble::None);
    promptly("the loss", guard.lost()).await;
    assert_eq!(operator.entries("a").await.len(), 1);
    away.set(Trouble::Refuse);
    home.set(Trouble::None);
    drop(guard);
    operator.until_entries("a", 0).await;
    // The client itself takes no lock for a TTL after its store was another one.
    promptly("the lock", client(&server).await.acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// Its session is renewed for many guards, and as late as a third of the TTL says.
#[tokio::test]
async fn an_extension_renews_a_shared_session_at_once() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let guard = locks.acquire(&name("a")).await.unwrap();
    let fresh = guard.remaining();
    until("a part of the TTL has passed", || async {
        guard.remaining() + SECOND / 2 < fresh
    })
    .await;
    let before = guard.remaining();
    promptly("the extension", guard.extend()).await.unwrap();
    assert!(guard.remaining() > before, "{:?}", guard.remaining());
}
