//! The queue of the clients that wait for a lock: its order, its cost, and what becomes of it.
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
use lock_core::DistributedLockExt;
use lock_redis::RedisLock;
use tokio::task::JoinSet;

mod common;
use common::{
    Operator, client, contention::Contention, own, promptly, until, until_within, waiter,
};

const QUEUE: &str = "a\u{1f}q{a}";

/// Another client's entry: one that is alive for now, and never comes.
const DEAD: &str = "a\u{1f}w0123456789abcdef{a}";

/// Beyond it are marks and presences.
const LAST_ARRIVAL: &str = "7e15";

async fn clients(server: &Server, count: usize) -> Vec<RedisLock> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(client(server).await);
    }
    clients
}

async fn length(operator: &Operator) -> usize {
    operator.run(&["ZCOUNT", QUEUE, "-inf", LAST_ARRIVAL]).await
}

/// Only the counter is left.
async fn is_gone(operator: &Operator) -> bool {
    operator.run::<usize>(&["DBSIZE"]).await == 1
}

async fn enter_dead(operator: &Operator) {
    let () = operator.run(&["SET", DEAD, "", "PX", "60000"]).await;
    let present = format!("~{DEAD}");
    let () = operator
        .run(&["ZADD", QUEUE, "1", DEAD, "9e15", &present])
        .await;
}

#[tokio::test]
async fn clients_are_granted_in_the_order_of_their_arrival() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let clients = clients(&server, 6).await;
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
        until("it is in the queue", || async {
            length(&operator).await == place
        })
        .await;
    }
    guard.release().await.unwrap();
    promptly("all waiters", tasks.join_all()).await;
    assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4, 5]);
    assert!(is_gone(&operator).await);
}

#[tokio::test]
async fn a_client_that_held_for_long_hands_on_to_another_client() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = clients(&server, 2).await;
    let guard = locks[0].acquire("a").await.unwrap();
    let other = waiter(&locks[1], "a");
    until("the other waits", || async { length(&operator).await == 1 }).await;
    let own = waiter(&locks[0], "a");
    until("both wait", || async { length(&operator).await == 2 }).await;
    // Longer than a client may hand on among its own waiters.
    tokio::time::sleep(Duration::from_millis(50)).await;
    guard.release().await.unwrap();
    let granted = promptly("the other", other).await.unwrap().unwrap();
    assert!(!own.is_finished(), "the client's own waiter went before it");
    granted.release().await.unwrap();
    let granted = promptly("its own", own).await.unwrap().unwrap();
    granted.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_costs_the_same_however_many_wait() {
    let mut costs = Vec::new();
    for count in [4, 24] {
        let server = or_skip!(own());
        let operator = Operator::of(&server);
        let contention = Contention::default();
        let mut tasks = JoinSet::new();
        let clients = clients(&server, count).await;
        let before = operator.info("stats", "total_commands_processed").await;
        for locks in clients {
            tasks.spawn(contention.clone().contend(locks, 20));
        }
        promptly("all rounds", tasks.join_all()).await;
        let commands = operator.info("stats", "total_commands_processed").await - before;
        costs.push(commands as f64 / (count * 20) as f64);
        assert!(is_gone(&operator).await);
    }
    // With those that scripts run.
    assert!(costs[1] < costs[0] * 1.5, "{costs:?}");
}

/// Renewals of entries, which go on for as long as anybody waits, wake nobody.
#[tokio::test]
async fn a_long_wait_is_told_of_one_thing() {
    const WAITERS: usize = 8;
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let guard = client(&server).await.acquire("a").await.unwrap();
    let mut waiting = JoinSet::new();
    for locks in clients(&server, WAITERS).await {
        waiting.spawn(async move { locks.acquire("a").await?.release().await });
    }
    let told = || async { operator.info("stats", "tracking_total_items").await };
    until("all wait", || async { length(&operator).await == WAITERS }).await;
    let looks = operator.calls("get").await;
    let renewals = operator.calls("evalsha").await;
    until("all have renewed their entries", || async {
        operator.calls("evalsha").await >= renewals + 3 * WAITERS
    })
    .await;
    // And the holder, of its lock.
    assert!(told().await <= WAITERS + 1, "{} are told", told().await);
    let renewals = operator.calls("evalsha").await - renewals;
    let looks = operator.calls("get").await - looks;
    // Each looks at the lock, and at an entry in its script, and then by itself.
    assert!(looks <= 4 * renewals, "{looks} looks, {renewals} renewals");
    guard.release().await.unwrap();
    for outcome in promptly("all", waiting.join_all()).await {
        outcome.unwrap();
    }
}

#[tokio::test]
async fn a_free_lock_is_not_taken_before_those_who_wait() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    enter_dead(&operator).await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    // But not for long, if they do not take it.
    until("it is passed over", || async {
        locks.try_acquire("a").await.unwrap().is_some()
    })
    .await;
    assert_eq!(operator.get(DEAD).await, None);
}

#[tokio::test]
async fn a_client_that_does_not_come_when_it_is_its_turn_is_passed_over() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = clients(&server, 3).await;
    let guard = locks[0].acquire("a").await.unwrap();
    enter_dead(&operator).await;
    let first = waiter(&locks[1], "a");
    until("the first waits", || async { length(&operator).await == 2 }).await;
    let second = waiter(&locks[2], "a");
    until("the second waits", || async {
        length(&operator).await == 3
    })
    .await;
    guard.release().await.unwrap();
    let granted = promptly("the first", first).await.unwrap().unwrap();
    assert!(!second.is_finished());
    granted.release().await.unwrap();
    promptly("the second", second)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    until("nothing is left", || is_gone(&operator)).await;
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue_at_once() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = clients(&server, 3).await;
    let guard = locks[0].acquire("a").await.unwrap();
    let middle = waiter(&locks[1], "a");
    until("one waits", || async { length(&operator).await == 1 }).await;
    let last = waiter(&locks[2], "a");
    until("both wait", || async { length(&operator).await == 2 }).await;
    middle.abort();
    until("one is left", || async { length(&operator).await == 1 }).await;
    last.abort();
    until("lock and counter are left", || async {
        operator.run::<usize>(&["DBSIZE"]).await == 2
    })
    .await;
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_forgets_strands_nobody() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let clients = clients(&server, 8).await;
    for words in [
        &["FLUSHALL"][..],
        &["SCRIPT", "FLUSH"],
        &["DEL", QUEUE],
        &["CLIENT", "KILL", "TYPE", "normal"],
    ] {
        let guard = clients[0].acquire("a").await.unwrap();
        let mut tasks = JoinSet::new();
        for locks in &clients[1..] {
            let locks = locks.clone();
            tasks.spawn(async move { locks.acquire("a").await?.release().await });
        }
        until("all wait", || async { length(&operator).await == 7 }).await;
        let _: redis::Value = operator.run(words).await;
        // The lock was flushed, so there is nothing to release.
        let _ = guard.release().await;
        let all = async {
            while let Some(outcome) = tasks.join_next().await {
                // A release whose connection was just killed.
                drop(outcome.unwrap());
            }
        };
        promptly("all waiters", all).await;
        until_within(Duration::from_secs(10), "nothing is left", || {
            is_gone(&operator)
        })
        .await;
    }
}
