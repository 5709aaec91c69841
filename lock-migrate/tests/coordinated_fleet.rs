//! A fleet on a real Redis and a real etcd follows a coordinator, forward and back, under load.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_conformance::servers::{Server, TcpProxy, Trouble};
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason,
    Registry,
};
use lock_etcd::EtcdLock;
use lock_migrate::{MigrateConnector, MigratingLock, Operator, Order, Phase};
use lock_redis::{RedisConnector, RedisLock};
use tokio::task::JoinHandle;

use common::{HEAD_ROOM, Load, MEMBERS, start_servers};

const MEMBERSHIP: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(90);

struct World {
    redis: Server,
    etcd: Server,
    load: Load,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl World {
    fn start() -> Option<Self> {
        let (redis, etcd) = start_servers()?;
        Some(Self {
            redis,
            etcd,
            load: Load::default(),
            stop: Arc::default(),
            workers: Vec::new(),
        })
    }

    async fn stores(&self, etcd: &str) -> (Arc<RedisLock>, EtcdLock) {
        let source = RedisLock::connect(self.redis.url()).await.unwrap();
        let target = EtcdLock::builder([etcd])
            .with_ttl(MEMBERSHIP)
            .connect()
            .await
            .unwrap();
        (Arc::new(source), target)
    }

    /// A member that reaches etcd at this endpoint.
    async fn member(&self, label: &str, etcd: &str) -> MigratingLock {
        let (source, target) = self.stores(etcd).await;
        let records = Arc::new(target.records());
        MigratingLock::coordinated(source, Arc::new(target), records)
            .with_head_room(HEAD_ROOM)
            .with_label(label)
            .build()
            .unwrap()
    }

    async fn operator(&self) -> Operator {
        let (source, target) = self.stores(self.etcd.endpoint()).await;
        let records = Arc::new(target.records());
        Operator::new(source, Arc::new(target), records, "test").with_head_room(HEAD_ROOM)
    }

    fn work(&mut self, locks: &MigratingLock) {
        self.workers.push(self.load.worker(locks, &self.stop));
    }

    /// Waits until every name has been locked some more.
    async fn goes_on(&self) {
        let all_run = || self.workers.iter().all(|worker| !worker.is_finished());
        self.load.goes_on(LIMIT, all_run).await;
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.await.unwrap();
        }
        self.load.expect_no_failures();
    }
}

async fn go(operator: &Operator, order: Order, phase: Phase) {
    // A member that has only just joined has not reported yet.
    assert!(is_settled(operator, "orders/").await);
    let plan = operator
        .order("orders/", order, LIMIT, false)
        .await
        .unwrap();
    assert_eq!(plan.unwrap().phase, phase);
    assert!(is_settled(operator, "orders/").await);
}

async fn is_settled(operator: &Operator, prefix: &str) -> bool {
    let status = operator.settle(prefix, LIMIT, |_| {}).await.unwrap();
    println!("{status:?}");
    status.settled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_goes_forward_and_back_under_load() {
    let Some(mut world) = World::start() else {
        return;
    };

    for at in 0..MEMBERS {
        let member = world.member(&format!("m{at}"), world.etcd.endpoint()).await;
        world.work(&member);
    }
    let operator = world.operator().await;
    operator.plan("orders/", false).await.unwrap();
    world.goes_on().await;
    for (order, phase) in [
        (Order::Advance, Phase::Dual),
        (Order::RollBack, Phase::SourceOnly),
        (Order::Advance, Phase::Dual),
        (Order::Advance, Phase::TargetOnly),
        (Order::Advance, Phase::Final),
        (Order::RollBack, Phase::TargetOnly),
        (Order::RollBack, Phase::Dual),
        (Order::RollBack, Phase::SourceOnly),
        (Order::Advance, Phase::Dual),
    ] {
        go(&operator, order, phase).await;
        world.goes_on().await;
    }
    assert_eq!(operator.status().await.unwrap().members.len(), MEMBERS);
    world.end().await;
}

/// The fleet goes two phases on without a member that cannot be reached, whose guard is over by
/// then; and the member goes on where the others are when it can be reached again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_holds_nothing_when_the_others_go_on() {
    let Some(mut world) = World::start() else {
        return;
    };
    let etcd: SocketAddr = (world.etcd.endpoint().trim_start_matches("http://"))
        .parse()
        .unwrap();
    let proxy = TcpProxy::start(etcd).await.unwrap();
    let far = world.member("far", &proxy.address().to_string()).await;
    let near = world.member("near", world.etcd.endpoint()).await;
    let operator = world.operator().await;
    operator.plan("orders/", false).await.unwrap();
    let guard = far.acquire("orders/1").await.unwrap();
    proxy.set(Trouble::Blackhole);
    world.work(&near);
    go(&operator, Order::Advance, Phase::Dual).await;
    // Redis would renew it for ever: it ends with the membership.
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Expired));
    go(&operator, Order::Advance, Phase::TargetOnly).await;
    let refused = far.try_acquire("orders/1").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        refused.to_string().contains("cannot prove its phase"),
        "{refused}"
    );
    world.goes_on().await;
    proxy.set(Trouble::None);
    let options = AcquireOptions::new().with_timeout(LIMIT);
    let late = far.acquire_with("orders/1", options).await.unwrap();
    world.load.resources[0].work(&late).await;
    late.release().await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_leaves_the_phase_to_the_coordinator() {
    let Some(world) = World::start() else {
        return;
    };
    let target = world.etcd.url().replace('&', "%26");
    let url = format!(
        "migrate+{}?phase=coordinated&target={target}",
        world.redis.url()
    );
    let connector = MigrateConnector::new(Registry::new().with(RedisConnector));
    let operator = connector
        .operator(&url.parse().unwrap(), "test")
        .await
        .unwrap();
    let operator = operator.with_head_room(HEAD_ROOM);
    let registry = Registry::new().with(connector);
    let locks = registry.connect(&url).await.unwrap();
    assert_eq!(
        locks.capabilities(),
        registry.capabilities(&url.parse().unwrap()).unwrap()
    );
    // Connected is being a member: a try, which waits for nothing, is no refusal.
    let tried = locks.try_acquire("orders/1").await.unwrap();
    tried.unwrap().release().await.unwrap();
    operator.plan("", false).await.unwrap();
    let mut last = None;
    for order in [
        Order::Advance,
        Order::Advance,
        Order::Advance,
        Order::Complete,
    ] {
        assert!(is_settled(&operator, "").await);
        operator.order("", order, LIMIT, false).await.unwrap();
        assert!(is_settled(&operator, "").await);
        let guard = locks.acquire("orders/1").await.unwrap();
        assert!(guard.token() > last);
        last = guard.token();
        guard.release().await.unwrap();
    }
    locks.shutdown().await.unwrap();
    // When all is complete neither Redis nor a membership is needed.
    let members = operator.status().await.unwrap().members.len();
    let gone = url.replace(world.redis.url(), "redis://127.0.0.1:1/0");
    let locks = registry.connect(&gone).await.unwrap();
    let guard = locks.acquire("orders/1").await.unwrap();
    assert!(guard.token() > last);
    assert_eq!(operator.status().await.unwrap().members.len(), members);
    guard.release().await.unwrap();
    locks.shutdown().await.unwrap();
}
