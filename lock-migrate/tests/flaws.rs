//! Each deliberate error of the protocol that the model finds shows on a real Redis and a real etcd
//! as well, and what it breaks is whole without the error.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;
mod flawed;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lock_conformance::servers::{Server, TcpProxy, Trouble};
use lock_core::{AcquireOptions, DistributedLock, DistributedLockExt};
use lock_etcd::EtcdLock;
use lock_migrate::{EtcdFloor, FloorStore, MigratingLock, Operator, Order, Phase, RecordStore};
use lock_redis::RedisLock;

use common::start_servers;
use flawed::{EarlyFloor, Flaw, FlawedRecords, NoFloor, NotRaised, ReleasedEarly};

const NAME: &str = "orders/1";
const PREFIX: &str = "orders/";
const MEMBERSHIP: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(60);
/// So far that the source's clock does not pass it during a test.
const FAR_AHEAD: u64 = 600_000_000;

struct World {
    redis: Server,
    etcd: Server,
}

impl World {
    fn start() -> Option<Self> {
        let (redis, etcd) = start_servers()?;
        Some(Self { redis, etcd })
    }

    async fn source(&self) -> Arc<dyn DistributedLock> {
        Arc::new(RedisLock::connect(self.redis.url()).await.unwrap())
    }

    async fn target(&self, endpoint: &str) -> EtcdLock {
        let builder = EtcdLock::builder([endpoint]).with_ttl(MEMBERSHIP);
        builder.connect().await.unwrap()
    }

    async fn floor(&self) -> Arc<dyn FloorStore> {
        Arc::new(EtcdFloor::new(&self.target(self.etcd.endpoint()).await))
    }

    async fn right(&self, phase: Phase) -> MigratingLock {
        self.client(phase, self.source().await, self.floor().await)
            .await
    }

    async fn client(
        &self,
        phase: Phase,
        source: Arc<dyn DistributedLock>,
        floor: Arc<dyn FloorStore>,
    ) -> MigratingLock {
        let mut builder = MigratingLock::builder(phase).with_head_room(FAR_AHEAD);
        if phase.takes_source() {
            builder = builder.with_source(source);
        }
        if phase.takes_target() {
            let target = self.target(self.etcd.endpoint()).await;
            builder = builder.with_target(Arc::new(target), floor);
        }
        builder.build().unwrap()
    }

    /// A member that reaches etcd at this endpoint.
    async fn member(&self, endpoint: &str, flaw: Option<Flaw>) -> MigratingLock {
        let target = self.target(endpoint).await;
        let records: Arc<dyn RecordStore> = Arc::new(target.records());
        let records = match flaw {
            Some(flaw) => Arc::new(FlawedRecords {
                inner: records,
                flaw,
            }),
            None => records,
        };
        MigratingLock::coordinated(self.source().await, Arc::new(target), records)
            .build()
            .unwrap()
    }

    async fn operator(&self) -> Operator {
        let target = self.target(self.etcd.endpoint()).await;
        let records = Arc::new(target.records());
        let operator = Operator::new(self.source().await, Arc::new(target), records, "test");
        operator.plan(PREFIX, false).await.unwrap();
        operator
    }
}

/// Tells if each of these clients, one after the other, is granted a larger token than the one
/// before.
async fn tokens_grow(clients: &[MigratingLock]) -> bool {
    let mut tokens = Vec::new();
    for locks in clients {
        let guard = locks.acquire(NAME).await.unwrap();
        tokens.push(guard.token().unwrap());
        guard.release().await.unwrap();
    }
    println!("{tokens:?}");
    tokens.is_sorted_by(|one, next| one < next)
}

/// Tells if one client has a name while the other gets it, too.
async fn have_both(one: &MigratingLock, other: &MigratingLock) -> bool {
    let guard = one.acquire(NAME).await.unwrap();
    let second = other.try_acquire(NAME).await.unwrap();
    guard.is_held() && second.is_some_and(|guard| guard.is_held())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phases_that_are_not_adjacent_have_two_holders() {
    let Some(world) = World::start() else { return };
    let source_only = world.right(Phase::SourceOnly).await;
    let dual = world.right(Phase::Dual).await;
    assert!(!have_both(&source_only, &dual).await);
    let target_only = world.right(Phase::TargetOnly).await;
    assert!(have_both(&source_only, &target_only).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_released_early_has_two_holders() {
    let Some(world) = World::start() else { return };
    let source_only = world.right(Phase::SourceOnly).await;
    let right = world.right(Phase::Dual).await;
    assert!(!have_both(&right, &source_only).await);
    right.shutdown().await.unwrap();
    let early = Arc::new(ReleasedEarly(world.source().await));
    let flawed = world.client(Phase::Dual, early, world.floor().await).await;
    assert!(have_both(&flawed, &source_only).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_floor_tokens_go_back() {
    let Some(world) = World::start() else { return };
    let phases = [Phase::SourceOnly, Phase::Dual, Phase::TargetOnly];
    let mut flawed = Vec::new();
    for phase in phases {
        let floor = Arc::new(NoFloor);
        flawed.push(world.client(phase, world.source().await, floor).await);
    }
    assert!(!tokens_grow(&flawed).await);
    let mut right = Vec::new();
    for phase in phases {
        right.push(world.right(phase).await);
    }
    assert!(tokens_grow(&right).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_that_is_read_early_takes_tokens_back() {
    let Some(world) = World::start() else { return };
    let floor = world.floor().await;
    let early = floor.read().await.unwrap();
    let dual = world.right(Phase::Dual).await;
    let right = world.right(Phase::TargetOnly).await;
    let inner = world.floor().await;
    let early = Arc::new(EarlyFloor { inner, early });
    let source = world.source().await;
    let flawed = world.client(Phase::TargetOnly, source, early).await;
    assert!(tokens_grow(&[dual.clone(), right]).await);
    assert!(!tokens_grow(&[dual, flawed]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_raised_takes_tokens_back_on_the_way_back() {
    let Some(world) = World::start() else { return };
    let target_only = world.right(Phase::TargetOnly).await;
    let dual = world.right(Phase::Dual).await;
    let source_only = world.right(Phase::SourceOnly).await;
    // The first round raises the floor far beyond the source's clock.
    let way_back = [dual, target_only.clone()];
    assert!(tokens_grow(&way_back).await);
    let [dual, _] = way_back;
    assert!(tokens_grow(&[target_only.clone(), dual, source_only.clone()]).await);
    let lower = Arc::new(NotRaised(world.source().await));
    let flawed = world.client(Phase::Dual, lower, world.floor().await).await;
    let mut operator = redis::Client::open(world.redis.url()).unwrap();
    // So that the counter is what the clock makes it.
    let () = redis::cmd("FLUSHALL").query(&mut operator).unwrap();
    assert!(!tokens_grow(&[target_only, flawed, source_only]).await);
}

/// The outcome of two steps while a member holds a name: that it has another holder by then.
async fn has_two_holders_after_two_steps(flaw: Option<Flaw>) -> Option<bool> {
    let world = World::start()?;
    let slow = world.member(world.etcd.endpoint(), flaw).await;
    let other = world.member(world.etcd.endpoint(), None).await;
    let operator = world.operator().await;
    assert!(
        operator
            .settle(PREFIX, LIMIT, |_| {})
            .await
            .unwrap()
            .settled
    );
    let guard = slow.acquire(NAME).await.unwrap();
    for _ in 0..2 {
        let step = operator.order(PREFIX, Order::Advance, LIMIT, false).await;
        if let Err(refused) = step {
            assert!(
                refused.to_string().contains("have not followed"),
                "{refused}"
            );
        }
        let brief = Duration::from_secs(3);
        operator.settle(PREFIX, brief, |_| {}).await.unwrap();
    }
    let second = other.try_acquire(NAME).await.unwrap();
    Some(guard.is_held() && second.is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_before_the_guards_are_gone_leads_to_two_holders() {
    let Some(is_broken) = has_two_holders_after_two_steps(Some(Flaw::ReportsEarly)).await else {
        return;
    };
    assert!(is_broken);
    assert_eq!(has_two_holders_after_two_steps(None).await, Some(false));
}

/// What a member that is cut off has when the fleet is two steps on: its guard, and a new one.
async fn has_after_it_was_cut_off(flaw: Option<Flaw>) -> Option<(bool, bool)> {
    let world = World::start()?;
    let etcd: SocketAddr = world
        .etcd
        .endpoint()
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    let proxy = TcpProxy::start(etcd).await.unwrap();
    let far = world.member(&proxy.address().to_string(), flaw).await;
    let near = world.member(world.etcd.endpoint(), None).await;
    let operator = world.operator().await;
    assert!(
        operator
            .settle(PREFIX, LIMIT, |_| {})
            .await
            .unwrap()
            .settled
    );
    let guard = far.acquire(NAME).await.unwrap();
    proxy.set(Trouble::Blackhole);
    for _ in 0..2 {
        operator.settle(PREFIX, LIMIT, |_| {}).await.unwrap();
        let step = operator.order(PREFIX, Order::Advance, LIMIT, false).await;
        step.unwrap();
    }
    assert!(
        operator
            .settle(PREFIX, LIMIT, |_| {})
            .await
            .unwrap()
            .settled
    );
    let options = AcquireOptions::new().with_timeout(LIMIT);
    let taken = near.acquire_with(NAME, options.clone()).await.unwrap();
    let other = near.acquire_with("orders/2", options).await.unwrap();
    let still = guard.is_held() && taken.is_held();
    let again = far.try_acquire("orders/2").await;
    let again = again.is_ok_and(|guard| guard.is_some()) && other.is_held();
    Some((still, again))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_or_a_phase_that_outlives_the_membership_leads_to_two_holders() {
    let flaw = Some(Flaw::EndlessMembership);
    let Some((still, again)) = has_after_it_was_cut_off(flaw).await else {
        return;
    };
    assert!(still, "the guard is valid beyond the membership");
    assert!(again, "the phase is relied on beyond the membership");
    assert_eq!(has_after_it_was_cut_off(None).await, Some((false, false)));
}
