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
use redis::aio::MultiplexedConnection;
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
    let has_members = async {
        while operator.status().await.unwrap().members.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, has_members).await.unwrap();
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

/// Takes a lock as redis-py does, and waits for its turn as it does.
async fn set_by_another_library(redis: &mut MultiplexedConnection, name: &str, owner: &str) {
    loop {
        let mut set = redis::cmd("SET");
        set.arg(name).arg(owner).arg("NX").arg("PX").arg(60_000);
        if let Some(_ok) = set.query_async::<Option<String>>(redis).await.unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_library_on_the_same_key_holds_up_the_step_to_etcd_alone() {
    const OWNER: &str = "5b4e0d0c-redis-py";
    let Some(mut world) = World::start() else {
        return;
    };
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let members = [
        world.member("m0", world.etcd.endpoint()).await,
        world.member("m1", world.etcd.endpoint()).await,
    ];
    members.iter().for_each(|member| world.work(member));
    let operator = world.operator().await;
    operator.plan("orders/", false).await.unwrap();
    go(&operator, Order::Advance, Phase::Dual).await;
    world.goes_on().await;
    let verification = operator.verify("orders/", false).await.unwrap();
    assert_eq!(verification.verified.foreign, [], "members are none");

    set_by_another_library(&mut redis, "orders/2", OWNER).await;
    let advance = async |operator: &Operator| {
        let order = operator.order("orders/", Order::Advance, LIMIT, false);
        order.await
    };
    let refused = advance(&operator).await.unwrap_err();
    let says = refused.to_string();
    assert!(says.contains("orders/2") && says.contains(OWNER), "{says}");
    assert!(says.contains("another library"), "{says}");
    let _: () = redis::cmd("DEL")
        .arg("orders/2")
        .query_async(&mut redis)
        .await
        .unwrap();
    world.goes_on().await;
    let refused = advance(&operator).await.unwrap_err();
    assert!(
        refused.to_string().contains(OWNER),
        "it was seen: {refused}"
    );

    let window = Duration::from_secs(1);
    let operator = operator.with_foreign_window(window);
    let is_over = async {
        while advance(&operator).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, is_over).await.unwrap();
    assert!(is_settled(&operator, "orders/").await);
    world.goes_on().await;
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
