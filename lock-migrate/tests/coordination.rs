//! Members and operators, with both stores in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod harness;

use std::time::Duration;

use harness::world::World;
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason,
    Operation,
};
use lock_migrate::{Operator, Order, Phase, PlanStatus, RecordStore, RecordWrite, Write};

const LIMIT: Duration = Duration::from_secs(60);

async fn go(operator: &Operator, order: Order) -> PlanStatus {
    // A member that has only just joined has not reported yet.
    let before = operator.settle("orders/", LIMIT, |_| {}).await.unwrap();
    assert!(before.settled || order == Order::RollBack, "{before:?}");
    operator
        .order("orders/", order, LIMIT, false)
        .await
        .unwrap();
    operator.settle("orders/", LIMIT, |_| {}).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_prefix_goes_forward_and_back_while_other_names_stay() {
    let world = World::default();
    let members = [world.member("a"), world.member("b")];
    let operator = world.operator("me");
    operator.plan("orders/", false).await.unwrap();
    let mut last = None;
    let mut check = async |phase: Phase| {
        for member in &members {
            let guard = member.acquire("orders/1").await.unwrap();
            assert!(guard.token() > last, "{phase}");
            last = guard.token();
            assert_eq!(
                world.has("orders/1").await,
                (phase.takes_source(), phase.takes_target()),
                "{phase}"
            );
            let info = members[0].inspect("orders/1").await.unwrap().unwrap();
            assert_eq!(info.holder().token, last, "{phase}");
            guard.release().await.unwrap();
            let guard = member.acquire("invoices").await.unwrap();
            assert_eq!(world.has("invoices").await, (true, false), "{phase}");
            guard.release().await.unwrap();
        }
    };
    check(Phase::SourceOnly).await;
    for (order, phase) in [
        (Order::Advance, Phase::Dual),
        (Order::Advance, Phase::TargetOnly),
        (Order::Advance, Phase::Final),
        (Order::RollBack, Phase::TargetOnly),
        (Order::Advance, Phase::Final),
        (Order::Complete, Phase::Final),
    ] {
        let status = go(&operator, order).await;
        assert!(status.settled && status.plan.phase == phase, "{status:?}");
        check(phase).await;
    }
    let done: Vec<_> = operator.history().await.unwrap();
    let done: Vec<_> = done.iter().map(|entry| &*entry.what).collect();
    assert_eq!(
        done,
        [
            "plan",
            "advance",
            "advance",
            "advance",
            "roll back",
            "advance",
            "complete"
        ]
    );
    for order in [Order::RollBack, Order::Remove] {
        let error = operator.order("orders/", order, LIMIT, false).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("complete"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_of_the_older_phase_is_waited_for_and_named() {
    let world = World::default();
    let (member, other) = (world.member("slow"), world.member("quick"));
    let operator = world.operator("me");
    operator.plan("orders/", false).await.unwrap();
    let early = member.acquire("orders/1").await.unwrap();
    let waits = tokio::spawn({
        let other = other.clone();
        async move { other.acquire("orders/1").await.unwrap() }
    });
    let before = operator.settle("orders/", LIMIT, |_| {}).await.unwrap();
    assert!(before.settled, "{before:?}");
    operator
        .order("orders/", Order::Advance, LIMIT, false)
        .await
        .unwrap();
    let status = operator
        .settle("orders/", Duration::from_secs(3), |_| {})
        .await
        .unwrap();
    assert!(!status.settled);
    let behind: Vec<_> = status.behind.into_iter().collect();
    assert_eq!(
        behind,
        [("slow".to_owned(), ["orders/1".to_owned()].into())]
    );
    let refused = operator
        .order("orders/", Order::Advance, LIMIT, false)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
    assert!(refused.to_string().contains("slow"), "{refused}");

    // The way back to where they come from is open all the time, and forward again.
    go(&operator, Order::RollBack).await;
    assert!(early.is_held());
    operator
        .order("orders/", Order::Advance, LIMIT, false)
        .await
        .unwrap();
    let short = Duration::from_secs(3);
    let status = operator.settle("orders/", short, |_| {}).await.unwrap();
    assert!(!status.settled);
    early.release().await.unwrap();
    let status = operator.settle("orders/", LIMIT, |_| {}).await.unwrap();
    assert!(status.settled);
    let guard = waits.await.unwrap();
    assert_eq!(world.has("orders/1").await, (true, true), "it began anew");
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_membership_guards_are_lost_and_nothing_is_granted() {
    let world = World::default();
    let member = world.member("a");
    let operator = world.operator("me");
    operator.plan("orders/", false).await.unwrap();
    let guard = member.acquire("orders/1").await.unwrap();
    let other = member.acquire("orders/2").await.unwrap();
    let lost = guard.lost();
    world.records.expire_leases();
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Expired));
    let released = other.release().await.unwrap_err();
    let said = (released.kind(), released.operation(), released.backend());
    assert_eq!(
        said,
        (ErrorKind::Lost, Some(Operation::Release), Some("migrate"))
    );
    let tried = member.try_acquire("orders/1").await.unwrap_err();
    assert_eq!(tried.kind(), ErrorKind::Unavailable);
    assert!(
        tried.to_string().contains("cannot prove its phase"),
        "{tried}"
    );
    assert_eq!(lost.await, LossReason::Expired);
    // It joins again, and has given up what the lost guard had.
    let again = member.acquire("orders/1").await.unwrap();
    assert!(again.is_held() && guard.is_lost());
    assert_eq!(operator.status().await.unwrap().members.len(), 1);
    again.release().await.unwrap();
    drop(guard);
    member.shutdown().await.unwrap();
    assert!(operator.status().await.unwrap().members.is_empty());
    let error = member.try_acquire("orders/1").await.unwrap_err();
    assert!(error.to_string().contains("shut down"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Shutdown);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_meant_changes_nothing() {
    let world = World::default();
    let operator = world.operator("me").without_members(true);
    let says = |error: lock_core::LockError, text: &str| {
        assert!(error.to_string().contains(text), "{error}");
    };
    let error = operator
        .order("orders/", Order::Advance, LIMIT, false)
        .await;
    says(error.unwrap_err(), "no plan");
    operator.plan("orders/", false).await.unwrap();
    for overlapping in ["orders/", "orders/eu/", ""] {
        says(
            operator.plan(overlapping, false).await.unwrap_err(),
            "overlaps",
        );
    }
    let error = operator.plan("", false).await.unwrap_err();
    says(error, "`orders/` overlaps all names");
    let careful = world.operator("me");
    let error = careful.order("orders/", Order::Advance, LIMIT, false).await;
    says(error.unwrap_err(), "no live members");
    let others = world.target.client();
    let guard = others.acquire("invoices/1").await.unwrap();
    says(
        operator.plan("invoices/", false).await.unwrap_err(),
        "invoices/1",
    );
    guard.release().await.unwrap();
    let next = operator
        .order("orders/", Order::Advance, LIMIT, true)
        .await
        .unwrap();
    assert_eq!(next.unwrap().phase, Phase::Dual);
    assert_eq!(
        operator.status().await.unwrap().plans[0].plan.phase,
        Phase::SourceOnly
    );
    go(&operator, Order::Pause).await;
    let error = operator
        .order("orders/", Order::Advance, LIMIT, false)
        .await;
    says(error.unwrap_err(), "paused");
    go(&operator, Order::Resume).await;
    operator
        .order("orders/", Order::Remove, LIMIT, false)
        .await
        .unwrap();
    assert!(operator.status().await.unwrap().plans.is_empty());

    let record = world
        .records
        .read("lock-migrate/plans")
        .await
        .unwrap()
        .unwrap();
    let newer = RecordWrite {
        name: "lock-migrate/plans",
        if_revision: record.revision,
        write: Write::Put(br#"{"format":2}"#),
    };
    world.records.write(&[newer]).await.unwrap().unwrap();
    says(operator.status().await.unwrap_err(), "format 2");
    let late = world.member("late");
    let options = AcquireOptions::new().with_timeout(Duration::from_secs(1));
    let error = late.acquire_with("orders/1", options).await.unwrap_err();
    says(error, "format 2");
}

/// Of several operators at once each change is made by one.
#[tokio::test(start_paused = true)]
async fn operators_at_once_go_one_step_at_a_time() {
    let world = World::default();
    let _member = world.member("a");
    world.operator("me").plan("orders/", false).await.unwrap();
    let orders = (0..4).map(|at| {
        let operator = world.operator(&at.to_string());
        async move {
            operator
                .order("orders/", Order::Advance, LIMIT, false)
                .await
        }
    });
    let outcomes = futures_util::future::join_all(orders).await;
    let made = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let history = world.operator("me").history().await.unwrap();
    assert_eq!(history.len(), made + 1);
    let plan = &world.operator("me").status().await.unwrap().plans[0].plan;
    assert_eq!(plan.phase as usize, made);
}
