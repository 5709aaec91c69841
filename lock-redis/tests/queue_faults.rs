//! Thirty-two clients that wait for one lock, while the store, the network and the clients fail:
//! nobody is stranded, and nothing is left of the queue.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_conformance::servers::{self, RedisOptions, RedisSentinel, Server, TcpProxy};
use lock_core::DistributedLock;
use lock_redis::{RedisLock, RedisLockBuilder};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
};

mod common;
use common::{
    NEVER, Operator, address, builder,
    cluster::{self, Move},
    crowd::{CROWD, Crowd, LEASE, contend_once},
    own, seed,
    sentinels::operator,
    until, until_within,
};

async fn clients(builder: &RedisLockBuilder) -> Vec<RedisLock> {
    let mut clients = Vec::new();
    for _ in 0..CROWD {
        clients.push(builder.clone().connect().await.unwrap());
    }
    clients
}

/// Only the counter is left.
async fn is_gone(operator: &Operator) {
    until_within(LEASE * 4, "nothing is left but the counter", || async {
        operator.run::<Vec<String>>(&["KEYS", "*"]).await == ["a\u{1f}{a}"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_stranded_by_what_a_server_forgets_and_cuts() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let crowd = Crowd::start(clients(&builder(proxy.address())).await);
    crowd.goes_on("at first").await;
    for words in [
        &["FLUSHALL"][..],
        &["SCRIPT", "FLUSH"],
        &["DEL", "a\u{1f}q{a}"],
        &["DEL", "a"],
        &["CLIENT", "KILL", "TYPE", "normal"],
    ] {
        let _: redis::Value = operator.run(words).await;
        crowd.goes_on(&format!("after {words:?}")).await;
    }
    proxy.cut().await;
    crowd.goes_on("after all connections were cut").await;
    server.restart().await.unwrap();
    crowd.goes_on("after a restart").await;
    crowd.rests().await;
    is_gone(&operator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_stranded_by_a_failover() {
    let servers = or_skip!(servers::redis_sentinel(
        RedisOptions::new(),
        1,
        3,
        Duration::from_secs(1)
    ));
    let sentinels = (0..3).map(|at| seed(&servers.sentinel(at)));
    let builder = RedisLock::builder()
        .with_sentinels(sentinels, RedisSentinel::SERVICE)
        .with_ttl(NEVER)
        .with_poll_interval(NEVER);
    let crowd = Crowd::start(clients(&builder).await);
    crowd.goes_on("at first").await;
    servers.kill(0).unwrap();
    until_within(Duration::from_secs(60), "a failover", || async {
        (0..3).all(|at| servers.master_by(at) == Some(1))
    })
    .await;
    crowd.goes_on("after a failover").await;
    crowd.rests().await;
    is_gone(&operator(&servers, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_stranded_by_a_slot_that_moves() {
    let cluster = or_skip!(servers::redis_cluster(RedisOptions::new(), 3, 0));
    let crowd = Crowd::start(clients(&cluster::builder(&cluster)).await);
    crowd.goes_on("at first").await;
    let step = Move::begin(&cluster, "a").await;
    step.migrate_all().await;
    step.end().await;
    crowd.goes_on("after the move").await;
    crowd.rests().await;
    is_gone(&cluster::operator(&cluster, step.to)).await;
}

/// Set in processes that [`contends_in_a_process_of_its_own`] is run in.
const CHILD_URL: &str = "LOCK_TEST_CHILD_URL";
const CHILDREN: usize = 8;

/// Counts the grants of each client of each process; kept beside the lock.
const GRANTS: &str = "grants";

/// No test, unless another one starts it: some clients, until the input ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contends_in_a_process_of_its_own() {
    let Ok(url) = std::env::var(CHILD_URL) else {
        return;
    };
    let store = redis::Client::open(url.as_str()).unwrap();
    let stop = Arc::new(AtomicBool::default());
    let mut tasks = JoinSet::new();
    for at in 0..CROWD / CHILDREN {
        let locks = RedisLock::connect(&format!("{url}?poll_interval=10m"))
            .await
            .unwrap();
        let stop = Arc::clone(&stop);
        let field = format!("{}-{at}", std::process::id());
        // The process may be stopped while it waits for an answer.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut store = store
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .unwrap();
        tasks.spawn(async move {
            while !stop.load(SeqCst) {
                let mut granted = false;
                contend_once(&locks, || granted = true).await;
                if granted {
                    let count = redis::cmd("HINCRBY").arg(GRANTS).arg(&field).arg(1).take();
                    let () = count.query_async(&mut store).await.unwrap();
                }
            }
            locks.shutdown().await.unwrap();
        });
    }
    let input_ends = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(input_ends)
        .await
        .unwrap()
        .unwrap();
    stop.store(true, SeqCst);
    tasks.join_all().await;
}

fn child(server: &Server) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["contends_in_a_process_of_its_own", "--exact"])
        .env(CHILD_URL, format!("redis://{}", server.endpoint()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn signal(child: &Child, signal: &str) {
    let pid = child.id().unwrap().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status().await;
    assert!(sent.unwrap().success());
}

/// Waits until all clients of these processes have been granted the lock twice more.
async fn go_on(operator: &Operator, children: &[Child], after: &str) {
    let _: usize = operator.run(&["DEL", GRANTS]).await;
    until_within(Duration::from_secs(60), after, || async {
        let grants: Vec<(String, usize)> = operator.run(&["HGETALL", GRANTS]).await;
        let served = |child: &&Child| {
            let prefix = format!("{}-", child.id().unwrap());
            let of_child = grants
                .iter()
                .filter(|(field, _)| field.starts_with(&prefix));
            of_child.filter(|(_, count)| *count >= 2).count() == CROWD / CHILDREN
        };
        children.iter().filter(served).count() == children.len()
    })
    .await;
}

#[tokio::test]
async fn nobody_is_stranded_by_processes_that_stop_and_die() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let mut children: Vec<_> = (0..CHILDREN).map(|_| child(&server)).collect();
    go_on(&operator, &children, "at first").await;
    signal(&children[0], "-STOP").await;
    go_on(&operator, &children[1..], "while one is stopped").await;
    signal(&children[0], "-CONT").await;
    go_on(&operator, &children, "when it runs again").await;
    children[0].kill().await.unwrap();
    go_on(&operator, &children[1..], "when it was killed").await;
    for child in &mut children[1..] {
        drop(child.stdin.take());
        assert!(child.wait().await.unwrap().success());
    }
    let _: usize = operator.run(&["DEL", GRANTS]).await;
    is_gone(&operator).await;
    until("no client is left", || async {
        operator.clients().await == 1
    })
    .await;
}
