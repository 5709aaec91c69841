//! What a client costs a server that is gone, or that reports changes without end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, RedisOptions, RedisSentinel};
use lock_core::{DistributedLock, DistributedLockExt, LockError, LockGuard};
use lock_redis::RedisLock;
use tokio::{
    net::TcpSocket,
    task::{JoinHandle, JoinSet},
};

mod common;
use common::{
    NEVER, Operator, RULES, address, builder, client, cluster, own, promptly, quorum, seed,
    until_within, waiter,
};

/// Longer than the pauses that waiters make after failures.
const WATCHED: Duration = Duration::from_secs(4);

/// Most attempts to connect that a client may make in that time: a handful a second.
const HANDFUL: f64 = 5.0;

/// For what waits until pauses end, on a loaded machine.
const PATIENT: Duration = Duration::from_secs(30);

/// Accepts connections in the place of a server that is gone, closes them, and counts them.
struct Gone {
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Gone {
    fn instead_of(server: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(server).unwrap();
        let listener = socket.listen(1024).unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { accepted, task }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    async fn leave(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// By how much a count grows in a second, while it is watched.
async fn rate<F: Future<Output = usize>>(count: impl Fn() -> F) -> f64 {
    let before = count().await;
    let start = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let counted = count().await - before;
    let rate = counted as f64 / start.elapsed().as_secs_f64();
    eprintln!("{rate:.1} a second");
    rate
}

/// Keys that somebody holds for ten minutes.
async fn hold(operator: &Operator, prefix: &str, count: usize) {
    let script =
        "for i = 1, ARGV[1] do redis.call('SET', ARGV[2] .. i, 'somebody', 'PX', 600000) end";
    let () = operator
        .run(&["EVAL", script, "0", &count.to_string(), prefix])
        .await;
}

async fn let_go(operator: &Operator, prefix: &str, count: usize) {
    let script = "for i = 1, ARGV[1] do redis.call('DEL', ARGV[2] .. i) end";
    let () = operator
        .run(&["EVAL", script, "0", &count.to_string(), prefix])
        .await;
}

type Waiting = JoinSet<Result<LockGuard, LockError>>;

async fn wait_for<L>(locks: &L, prefix: &str, count: usize) -> Waiting
where
    L: DistributedLock + Clone + 'static,
{
    let mut waiting = JoinSet::new();
    for number in 1..=count {
        let key = format!("{prefix}{number}");
        let locks = locks.clone();
        waiting.spawn(async move { locks.acquire(key).await });
    }
    waiting
}

async fn all_granted(waiting: Waiting) {
    let guards = tokio::time::timeout(PATIENT, waiting.join_all());
    for guard in guards.await.expect("all are granted") {
        guard.unwrap().release().await.unwrap();
    }
}

async fn until_tracked(operator: &Operator, count: usize) {
    until_within(PATIENT, "all wait", || async {
        operator.tracked_keys().await >= count
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_gone_is_asked_seldom_and_found_when_it_is_back() {
    const NAMES: usize = 300;
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    hold(&operator, "k", NAMES).await;
    let locks = client(&server).await;
    let waiting = wait_for(&locks, "k", NAMES).await;
    until_tracked(&operator, NAMES).await;
    server.kill().unwrap();
    let gone = Gone::instead_of(address(&server));
    assert!(rate(async || gone.accepted()).await <= HANDFUL);
    gone.leave().await;
    server.start().await.unwrap();
    let_go(&operator, "k", NAMES).await;
    all_granted(waiting).await;
}

#[tokio::test]
async fn sentinels_are_asked_seldom_for_a_master_that_is_gone() {
    const NAMES: usize = 300;
    let servers = or_skip!(servers::redis_sentinel(RedisOptions::new(), 0, 3, NEVER));
    let operator = common::sentinels::operator(&servers, 0);
    hold(&operator, "k", NAMES).await;
    let sentinels = (0..3).map(|at| seed(&servers.sentinel(at)));
    let locks = RedisLock::builder()
        .with_sentinels(sentinels, RedisSentinel::SERVICE)
        .with_ttl(NEVER)
        .with_poll_interval(NEVER)
        .connect()
        .await
        .unwrap();
    let waiting = wait_for(&locks, "k", NAMES).await;
    until_tracked(&operator, NAMES).await;
    servers.kill(0).unwrap();
    let sentinel = Operator::at(&servers.direct_sentinel(0));
    let connections = async || sentinel.info("stats", "total_connections_received").await;
    // The observer's own looks, and those of the sentinels at each other.
    assert!(rate(connections).await <= HANDFUL + 2.0);
    servers.start(0).await.unwrap();
    let_go(&operator, "k", NAMES).await;
    all_granted(waiting).await;
}

#[tokio::test]
async fn a_cluster_that_is_gone_is_asked_seldom() {
    const NAMES: usize = 300;
    let options = RedisOptions::new();
    let servers = or_skip!(servers::redis_cluster(options, 3, 0));
    let owner = cluster::master_of(&servers, "{s}").await;
    let operator = cluster::operator(&servers, owner);
    hold(&operator, "{s}", NAMES).await;
    let locks = cluster::builder(&servers).connect().await.unwrap();
    let waiting = wait_for(&locks, "{s}", NAMES).await;
    until_tracked(&operator, NAMES).await;
    (0..3).for_each(|at| servers.kill(at).unwrap());
    let gone: Vec<_> = (0..3)
        .map(|at| Gone::instead_of(servers.direct_endpoint(at).parse().unwrap()))
        .collect();
    let each = async || gone.iter().map(Gone::accepted).max().unwrap();
    assert!(rate(each).await <= HANDFUL);
    for gone in gone {
        gone.leave().await;
    }
    for at in 0..3 {
        servers.start(at).unwrap();
    }
    servers.wait_healthy().await.unwrap();
    let_go(&operator, "{s}", NAMES).await;
    all_granted(waiting).await;
}

#[tokio::test]
async fn a_quorum_that_is_gone_is_asked_seldom() {
    const NAMES: usize = 100;
    let servers = or_skip!(quorum::three());
    let operators = quorum::operators(&servers);
    for operator in &operators {
        hold(operator, "k", NAMES).await;
    }
    let locks = quorum::of(&servers).connect().await.unwrap();
    let waiting = wait_for(&locks, "k", NAMES).await;
    for operator in &operators {
        until_tracked(operator, NAMES).await;
    }
    servers.iter().for_each(|server| server.kill().unwrap());
    let gone: Vec<_> = servers
        .iter()
        .map(|server| Gone::instead_of(address(server)))
        .collect();
    let each = async || gone.iter().map(Gone::accepted).max().unwrap();
    assert!(rate(each).await <= HANDFUL);
    for gone in gone {
        gone.leave().await;
    }
    for (server, operator) in servers.iter().zip(&operators) {
        server.start().await.unwrap();
        let_go(operator, "k", NAMES).await;
    }
    all_granted(waiting).await;
}

#[tokio::test]
async fn a_full_tracking_table_costs_no_more_than_a_slow_poll() {
    const NAMES: usize = 100;
    let options = RedisOptions::new()
        .with_argument("--tracking-table-max-keys")
        .with_argument("10");
    let server = or_skip!(servers::redis(options.own()));
    let operator = Operator::of(&server);
    hold(&operator, "k", NAMES).await;
    let locks = client(&server).await;
    let waiting = wait_for(&locks, "k", NAMES).await;
    let entered = async || operator.calls("zadd").await >= NAMES;
    until_within(PATIENT, "all wait", entered).await;
    // The first looks follow each other quickly.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A slow poll makes seven a second, and a loaded machine has some of the first ones still.
    let requests = async || operator.calls("evalsha").await;
    assert!(rate(requests).await <= NAMES as f64 * 14.0);
    let_go(&operator, "k", NAMES).await;
    all_granted(waiting).await;
}

#[tokio::test]
async fn a_held_lock_is_read_seldom_while_the_tracking_table_is_full() {
    const NAMES: usize = 100;
    let options = RedisOptions::new()
        .with_argument("--tracking-table-max-keys")
        .with_argument("10");
    let server = or_skip!(servers::redis(options.own()));
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    let guards = wait_for(&locks, "k", NAMES).await.join_all().await;
    assert!(rate(|| operator.calls("get")).await <= NAMES as f64 * 7.0);
    for guard in guards {
        guard.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_somebody_writes_all_the_time_costs_little() {
    for changing in [false, true] {
        let server = or_skip!(own());
        let operator = Operator::of(&server);
        let locks = client(&server).await;
        hold(&operator, "k", 1).await;
        let writing = {
            let endpoint = server.endpoint().to_owned();
            tokio::spawn(async move {
                let client = redis::Client::open(format!("redis://{endpoint}")).unwrap();
                let mut connection = client.get_multiplexed_async_connection().await.unwrap();
                for round in 0_u64.. {
                    let mut writes = redis::pipe();
                    for write in 0..16 {
                        let value = if changing { round * 16 + write } else { 0 };
                        let mut set = redis::cmd("SET");
                        set.arg("k1").arg(value);
                        if changing {
                            set.arg("PX").arg(600_000 + write);
                        }
                        writes.add_command(set).ignore();
                    }
                    let () = writes.query_async(&mut connection).await.unwrap();
                }
            })
        };
        let waiting = waiter(&locks, "k1");
        let looks = async || operator.calls("pttl").await + operator.calls("evalsha").await;
        let looked = async || looks().await > 2;
        until_within(PATIENT, "it waits", looked).await;
        let rate = rate(looks).await;
        assert!(rate <= 400.0, "{rate} of a key that changes: {changing}");
        writing.abort();
        let _ = writing.await;
        let_go(&operator, "k", 1).await;
        promptly("the grant", waiting)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn tracking_is_asked_for_again_soon_after_it_was_refused() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let () = operator.run(&RULES).await;
    let () = operator
        .run(&["ACL", "SETUSER", "app", "-client|tracking"])
        .await;
    hold(&operator, "app:k", 1).await;
    let locks = builder(address(&server))
        .with_credentials("app", "s3cret")
        .with_namespace("app:")
        .connect()
        .await
        .unwrap();
    let waiting = waiter(&locks, "k1");
    let refused = async || {
        !operator
            .run::<Vec<redis::Value>>(&["ACL", "LOG"])
            .await
            .is_empty()
    };
    until_within(PATIENT, "a refusal", refused).await;
    // Seldom, as long as it is refused.
    let connections = async || operator.info("stats", "total_connections_received").await;
    assert!(rate(connections).await <= 3.0);
    let () = operator
        .run(&["ACL", "SETUSER", "app", "+client|tracking"])
        .await;
    let tracked = async || operator.tracked_keys().await > 0;
    until_within(Duration::from_secs(10), "it is told", tracked).await;
    let_go(&operator, "app:k", 1).await;
    promptly("the grant", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}
