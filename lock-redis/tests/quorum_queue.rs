//! The queue of the clients that wait for a lock of a quorum: its cost, its order, and what becomes
//! of it while servers fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_conformance::servers::Server;
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind};
use lock_redis::RedisQuorumLock;
use tokio::task::JoinSet;

mod common;
use common::{
    Operator,
    contention::Contention,
    crowd::{Crowd, LEASE},
    name, promptly,
    quorum::{self, operators, three},
    ttl, until, until_within, waiter,
};

const QUEUE: &str = "a\u{1f}q{a}";

/// Beyond it are marks and presences.
const LAST_ARRIVAL: &str = "7e15";

/// Hundreds of hand-overs on a loaded machine.
const ROUNDS: Duration = Duration::from_secs(60);

/// How many clients wait while servers fail.
const CLIENTS: usize = 12;

async fn clients(servers: &[Server], count: usize) -> Vec<RedisQuorumLock> {
    let builder = quorum::of(servers).with_request_timeout(Duration::from_secs(2));
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(builder.clone().connect().await.unwrap());
    }
    clients
}

/// The number of clients in the queue of each server.
async fn lengths(operators: &[Operator]) -> Vec<usize> {
    let mut lengths = Vec::new();
    for operator in operators {
        lengths.push(operator.run(&["ZCOUNT", QUEUE, "-inf", LAST_ARRIVAL]).await);
    }
    lengths
}

async fn until_waiting(operators: &[Operator], count: usize) {
    until("they are in one queue", || async {
        let mut lengths = lengths(operators).await;
        lengths.sort_unstable();
        lengths == [0, 0, count]
    })
    .await;
}

/// The server that keeps the queue while all can be reached.
async fn keeper(operators: &[Operator]) -> usize {
    let lengths = lengths(operators).await;
    lengths.iter().position(|length| *length > 0).unwrap()
}

/// Only the counters are left.
async fn is_gone(operators: &[Operator]) {
    for operator in operators {
        until_within(LEASE * 4, "nothing is left but the counter", || async {
            let mut keys = operator.run::<Vec<String>>(&["KEYS", "*"]).await;
            keys.retain(|key| key != "a\u{1f}{a}");
            keys.is_empty()
        })
        .await;
    }
}

/// Number of commands that the servers have run, those of scripts included.
async fn commands(operators: &[Operator]) -> usize {
    let mut commands = 0;
    for operator in operators {
        commands += operator.info("stats", "total_commands_processed").await;
    }
    commands
}

async fn rounds(clients: &[RedisQuorumLock], each: usize) {
    let contention = Contention::default();
    let mut tasks = JoinSet::new();
    for locks in clients {
        tasks.spawn(contention.clone().contend(locks.clone(), each));
    }
    tokio::time::timeout(ROUNDS, tasks.join_all())
        .await
        .expect("a client is stranded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_costs_the_same_however_many_clients_wait() {
    const CYCLES: usize = 320;
    let mut costs = Vec::new();
    for count in [8, 32] {
        let servers = or_skip!(three());
        let operators = operators(&servers);
        let clients = clients(&servers, count).await;
        // Every connection is made, and every script known.
        rounds(&clients, 2).await;
        let before = commands(&operators).await;
        rounds(&clients, CYCLES / count).await;
        costs.push((commands(&operators).await - before) as f64 / CYCLES as f64);
    }
    eprintln!("commands a hand-over, those of scripts included: {costs:?}");
    assert!(costs[1] < costs[0] * 1.2, "{costs:?}");
}

#[tokio::test]
async fn clients_are_granted_in_the_order_of_their_arrival() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let clients = clients(&servers, 6).await;
    let guard = clients[0].acquire("a").await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for (place, locks) in clients.iter().enumerate().skip(1) {
        let locks = locks.clone();
        let order = Arc::clone(&order);
        tasks.spawn(async move {
            let guard = locks.acquire("a").await.unwrap();
            order.lock().unwrap().push(place);
            guard.release().await.unwrap();
        });
        until_waiting(&operators, place).await;
    }
    guard.release().await.unwrap();
    promptly("all waiters", tasks.join_all()).await;
    assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4, 5]);
    is_gone(&operators).await;
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue_at_once() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let clients = clients(&servers, 4).await;
    let guard = clients[0].acquire("a").await.unwrap();
    let mut waiting = Vec::new();
    for (place, locks) in clients.iter().enumerate().skip(1) {
        waiting.push(waiter(locks, "a"));
        until_waiting(&operators, place).await;
    }
    let last = waiting.pop().unwrap();
    for (left, waiting) in waiting.iter().enumerate() {
        waiting.abort();
        until_waiting(&operators, 2 - left).await;
    }
    guard.release().await.unwrap();
    let guard = promptly("the last", last).await.unwrap().unwrap();
    guard.release().await.unwrap();
    is_gone(&operators).await;
}

#[tokio::test]
async fn an_outage_is_told_to_those_who_sleep_in_the_queue() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let clients = clients(&servers, 4).await;
    let guard = clients[0].acquire("a").await.unwrap();
    let mut waiting = JoinSet::new();
    for (place, locks) in clients.iter().enumerate().skip(1) {
        let locks = locks.clone();
        waiting.spawn(async move { locks.acquire_named(&name("a"), ttl(LEASE)).await });
        until_waiting(&operators, place).await;
    }
    let keeper = keeper(&operators).await;
    for (at, server) in servers.iter().enumerate() {
        if at != keeper {
            server.kill().unwrap();
        }
    }
    while let Some(outcome) = promptly("an error", waiting.join_next()).await {
        let error = outcome.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    drop(guard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_stranded_while_the_server_with_the_queue_fails() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let clients = clients(&servers, CLIENTS + 1).await;
    let guard = clients[0].acquire("a").await.unwrap();
    let crowd = Crowd::start(clients[1..].to_vec());
    until_waiting(&operators, CLIENTS).await;
    let keeper = keeper(&operators).await;
    let server = &servers[keeper];
    let operator = &operators[keeper];
    server.kill().unwrap();
    guard.release().await.unwrap();
    crowd.goes_on("after the server was killed").await;
    server.start().await.unwrap();
    crowd.goes_on("after it was started").await;
    server.freeze().unwrap();
    crowd.goes_on("while it is frozen").await;
    server.thaw().unwrap();
    crowd.goes_on("after it was frozen").await;
    for words in [
        &["FLUSHALL"][..],
        &["SCRIPT", "FLUSH"],
        &["DEL", QUEUE],
        &["CLIENT", "KILL", "TYPE", "normal"],
    ] {
        let _: redis::Value = operator.run(words).await;
        crowd.goes_on(&format!("after {words:?}")).await;
    }
    server.restart().await.unwrap();
    crowd.goes_on("after a restart").await;
    crowd.rests().await;
    is_gone(&operators).await;
}
