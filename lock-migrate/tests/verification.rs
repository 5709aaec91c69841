//! What an operator is told of locks that others hold, with both stores in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod harness;

use std::time::Duration;

use harness::world::World;
use lock_core::{AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, LockError};
use lock_migrate::{FindingKind, Operator, Order, Phase, Verification};

const LIMIT: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(2);

async fn advance(operator: &Operator) -> Result<Phase, LockError> {
    while operator.status().await.unwrap().members.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    operator.settle("orders/", LIMIT, |_| {}).await.unwrap();
    let plan = operator.order("orders/", Order::Advance, LIMIT, false);
    let phase = plan.await?.unwrap().phase;
    operator.settle("orders/", LIMIT, |_| {}).await.unwrap();
    Ok(phase)
}

fn kinds(verification: &Verification) -> Vec<FindingKind> {
    verification.findings.iter().map(|it| it.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn a_foreign_locker_holds_up_the_step_to_the_target_alone() {
    let world = World::default();
    let member = world.member("a");
    let operator = world.operator("me").with_foreign_window(WINDOW);
    operator.plan("orders/", false).await.unwrap();
    let others = world.source.client();
    let elsewhere = others.acquire("invoices/1").await.unwrap();
    assert_eq!(advance(&operator).await.unwrap(), Phase::Dual);
    let foreign = others.acquire("orders/7").await.unwrap();
    let ours = member.acquire("orders/1").await.unwrap();

    let verification = operator.verify("orders/", true).await.unwrap();
    assert_eq!(kinds(&verification), [FindingKind::ForeignInSource]);
    assert_eq!(verification.findings[0].owner, foreign.owner().to_string());
    let (source, target) = (verification.in_source, verification.in_target);
    assert_eq!((source, target, verification.pairs), (2, 1, 1));
    let status = operator.status().await.unwrap();
    assert_eq!(status.plans[0].verified.at_ms, 0, "it was a dry run");

    let refused = advance(&operator).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
    let says = refused.to_string();
    assert!(says.contains("orders/7") && says.contains(foreign.owner().as_str()));
    assert!(says.contains("end them"), "{says}");
    let status = operator.status().await.unwrap();
    let plan = &status.plans[0];
    assert_eq!(plan.plan.phase, Phase::Dual);
    assert!(plan.verified.foreign[0].is_ours && plan.verified.foreign[0].looks == 2);
    assert!(plan.verified.source_token.is_some() && plan.verified.target_token.is_some());

    foreign.release().await.unwrap();
    let patient = operator.clone().with_foreign_window(LIMIT);
    let refused = advance(&patient).await.unwrap_err();
    assert!(refused.to_string().contains("orders/7"), "{refused}");
    // The window is one of the wall clock.
    std::thread::sleep(WINDOW);
    assert_eq!(advance(&operator).await.unwrap(), Phase::TargetOnly);
    ours.release().await.unwrap();
    elsewhere.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_window_of_zero_looks_for_nobody() {
    let world = World::default();
    let _member = world.member("a");
    let operator = world.operator("me").with_foreign_window(Duration::ZERO);
    operator.plan("orders/", false).await.unwrap();
    let foreign = world.source.client().acquire("orders/7").await.unwrap();
    for phase in [Phase::Dual, Phase::TargetOnly] {
        assert_eq!(advance(&operator).await.unwrap(), phase);
    }
    let verification = operator.verify("orders/", false).await.unwrap();
    assert_eq!(kinds(&verification), [FindingKind::ForeignInSource]);
    foreign.release().await.unwrap();
    let error = operator.verify("invoices/", false).await.unwrap_err();
    assert!(error.to_string().contains("no plan"), "{error}");
}

/// What a member that dies leaves behind is an orphan, and nobody's fault.
#[tokio::test(start_paused = true)]
async fn what_a_member_held_that_died_is_an_orphan() {
    let world = World::default();
    let (dies, _lives) = (world.member("dies"), world.member("lives"));
    let operator = world.operator("me");
    operator.plan("orders/", false).await.unwrap();
    assert_eq!(advance(&operator).await.unwrap(), Phase::Dual);
    let guard = dies.acquire("orders/1").await.unwrap();
    // As seen from elsewhere: it does not answer, and its record is gone.
    world.source.freeze();
    world.target.freeze();
    let _ = dies.shutdown().await;
    world.source.thaw();
    world.target.thaw();
    let verification = operator.verify("orders/", false).await.unwrap();
    for kind in kinds(&verification) {
        let is_orphan = matches!(
            kind,
            FindingKind::OrphanInSource | FindingKind::OrphanInTarget
        );
        assert!(is_orphan, "{verification:?}");
    }
    assert_eq!(advance(&operator).await.unwrap(), Phase::TargetOnly);
    drop(guard);
}

/// Marks are for the verifier: callers see what they gave, in every phase.
#[tokio::test(start_paused = true)]
async fn a_members_metadata_comes_back_as_it_was_given() {
    let world = World::default();
    let (member, other) = (world.member("a"), world.member("b"));
    let operator = world.operator("me");
    operator.plan("orders/", false).await.unwrap();
    let full = "x".repeat(AcquireOptions::MAX_METADATA);
    for phase in Phase::ALL {
        for metadata in [None, Some("note"), Some(&*full)] {
            let mut options = AcquireOptions::new();
            if let Some(text) = metadata {
                options = options.with_metadata(text);
            }
            let guard = member.acquire_with("orders/1", options).await.unwrap();
            let info = other.inspect("orders/1").await.unwrap().unwrap();
            assert_eq!(info.holder().metadata.as_deref(), metadata, "{phase}");
            let mut list = other.list("orders/").await.unwrap();
            let info = list.next().await.unwrap().unwrap();
            assert_eq!(info.holder().metadata.as_deref(), metadata, "{phase}");
            let mut watch = other.watch("orders/1").await.unwrap();
            let info = watch.next().await.unwrap().unwrap().unwrap();
            assert_eq!(info.holder().metadata.as_deref(), metadata, "{phase}");
            let removed = other.force_release("orders/1").await.unwrap();
            assert_eq!(removed[0].metadata.as_deref(), metadata, "{phase}");
            drop(guard);
        }
        if phase != Phase::Final {
            advance(&operator).await.unwrap();
        }
    }
}
