//! Changes by operators and by the server itself while locks are held and waited for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions};
use lock_conformance::servers::{self, EtcdOptions, Server, Trouble};
use lock_core::{DistributedLockExt, ErrorKind, GuardState, LossReason, RetryAdvice};

mod common;
use common::{Operator, Waiter, behind, client, name, own, promptly, until, works};

#[tokio::test]
async fn a_revoked_session_is_lost_at_once_and_the_next_one_works() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let unrelated = locks.acquire("b").await.unwrap();
    let waiter = Waiter::start(&other, "a");
    operator.until_entries("a", 2).await;
    let session = operator.entries("a").await[0].lease;
    operator.revoke(session).await;
    for lost in [guard.lost(), unrelated.lost()] {
        assert_eq!(promptly("the loss", lost).await, LossReason::Removed);
    }
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    let theirs = waiter.granted().await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let again = locks.acquire("c").await.unwrap();
    assert_ne!(operator.entries("c").await[0].lease, session);
    again.release().await.unwrap();
    theirs.release().await.unwrap();
}

#[tokio::test]
async fn waiters_of_a_revoked_session_queue_again_with_a_new_one() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    let waiters: Vec<_> = (0..3).map(|_| Waiter::start(&locks, "a")).collect();
    operator.until_entries("a", 4).await;
    let session = operator.entries("a").await[1].lease;
    operator.revoke(session).await;
    operator.until_entries("a", 4).await;
    let entries = operator.entries("a").await;
    assert!(
        entries[1..]
            .iter()
            .all(|entry| entry.lease != session && entry.lease == entries[1].lease),
        "{entries:?}"
    );
    assert_eq!(guard.state(), GuardState::Held);
    guard.release().await.unwrap();
    // In whatever order they came back.
    let served = waiters
        .into_iter()
        .map(|waiter| async { waiter.granted().await.release().await.unwrap() });
    futures_util::future::join_all(served).await;
    assert!(operator.entries("a").await.is_empty());
    assert_eq!(operator.leases().await, 2, "one for each client");
}

#[tokio::test]
async fn a_deleted_waiter_queues_again_behind_the_others() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    let deleted = Waiter::start(&locks, "a");
    let other = client(&server).await;
    operator.until_entries("a", 2).await;
    let old = operator.entries("a").await.remove(1);
    let next = Waiter::start(&other, "a");
    operator.until_entries("a", 3).await;
    operator.delete(&old.key).await;
    until("a new entry", || async {
        operator
            .entries("a")
            .await
            .last()
            .is_some_and(|entry| entry.created > old.created + 1)
    })
    .await;
    operator.until_entries("a", 3).await;
    guard.release().await.unwrap();
    let guard = next.granted().await;
    assert!(deleted.is_pending());
    guard.release().await.unwrap();
    deleted.granted().await.release().await.unwrap();
    assert!(operator.entries("a").await.is_empty());
}

#[tokio::test]
async fn compaction_and_defragmentation_disturb_neither_holder_nor_waiter() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    for _ in 0..3 {
        let guard = holder.acquire("a").await.unwrap();
        let waiter = Waiter::start(&locks, "a");
        operator.until_entries("a", 2).await;
        operator.put("other", vec![]).await.unwrap();
        compact(&operator).await;
        operator.0.maintenance_client().defragment().await.unwrap();
        assert_eq!(guard.state(), GuardState::Held);
        guard.release().await.unwrap();
        waiter.granted().await.release().await.unwrap();
    }
}

#[tokio::test]
async fn compaction_while_a_stream_is_broken_strands_nobody() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    let waiter = Waiter::start(&locks, "a");
    let kept = locks.acquire("kept").await.unwrap();
    operator.until_entries("a", 2).await;
    proxy.set(Trouble::Refuse);
    guard.release().await.unwrap();
    // The client has forgotten the revision that it saw last.
    operator.put("other", vec![]).await.unwrap();
    compact(&operator).await;
    proxy.set(Trouble::None);
    waiter.granted().await.release().await.unwrap();
    assert_eq!(kept.state(), GuardState::Held);
    let info = locks.inspect(&name("kept")).await.unwrap().unwrap();
    assert_eq!(info.holder().owner, *kept.owner());
    kept.release().await.unwrap();
}

/// Forgets all history.
async fn compact(operator: &Operator) {
    let now = operator
        .0
        .kv_client()
        .get("any", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    operator
        .0
        .kv_client()
        .compact(now, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_store_refuses_acquires_and_allows_releases() {
    let server: Server = or_skip!(servers::etcd(
        EtcdOptions::new()
            .own()
            .with_argument("--quota-backend-bytes=1048576")
    ));
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    works(&locks).await;
    let baseline = locks.residue();
    let guard = locks.acquire("held").await.unwrap();
    let waiter = Waiter::start(&locks, "held");
    operator.until_entries("held", 2).await;
    fill(&operator).await;
    for _ in 0..3 {
        let error = locks.acquire("a").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Exhausted, RetryAdvice::Later),
            "{error}"
        );
        assert!(error.to_string().contains("space"), "{error}");
        assert_eq!(
            locks.try_acquire("a").await.unwrap_err().kind(),
            ErrorKind::Exhausted
        );
    }
    // A taken lock is taken all the same.
    assert!(locks.inspect(&name("held")).await.unwrap().is_some());
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
    operator.until_entries("a", 0).await;
    operator.until_clean("held", &locks, baseline).await;
    make_room(&operator).await;
    works(&locks).await;
}

/// Acquires that arrive just as the store gets full: whether one took effect cannot be told from
/// its error.
#[tokio::test]
async fn a_store_that_gets_full_meanwhile_keeps_nothing() {
    let server: Server = or_skip!(servers::etcd(
        EtcdOptions::new()
            .own()
            .with_argument("--quota-backend-bytes=1048576")
    ));
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let acquires: Vec<_> = (0..64)
        .map(|number| {
            let locks = locks.clone();
            tokio::spawn(async move {
                loop {
                    match locks.acquire(format!("edge/{number}")).await {
                        Ok(guard) => guard.release().await.unwrap(),
                        Err(error) => return error,
                    }
                }
            })
        })
        .collect();
    fill(&operator).await;
    for acquire in acquires {
        let error = promptly("the end of the acquires", acquire).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    }
    until("nothing left", || async {
        operator.below("edge/").await.is_empty()
    })
    .await;
}

async fn fill(operator: &Operator) {
    let mut number = 0;
    while operator
        .put(&format!("ballast/{number}"), vec![0; 32 * 1024])
        .await
        .is_ok()
    {
        number += 1;
    }
    let alarms = operator
        .0
        .maintenance_client()
        .alarm(AlarmAction::Get, AlarmType::Nospace, None)
        .await
        .unwrap();
    assert_eq!(alarms.alarms().len(), 1);
}

async fn make_room(operator: &Operator) {
    for entry in operator.below("ballast/").await {
        operator.delete(&entry.key).await;
    }
    compact(operator).await;
    operator.0.maintenance_client().defragment().await.unwrap();
    let mut maintenance = operator.0.maintenance_client();
    for alarm in maintenance
        .alarm(AlarmAction::Get, AlarmType::Nospace, None)
        .await
        .unwrap()
        .alarms()
    {
        let mut options = AlarmOptions::new();
        options.with_member(alarm.member_id());
        maintenance
            .alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options))
            .await
            .unwrap();
    }
}
