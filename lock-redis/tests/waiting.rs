//! Waiters queue and are woken, at a bounded cost to the server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use lock_conformance::servers::Server;
use lock_core::{DistributedLock, DistributedLockExt, LossReason};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod common;
use common::{
    NEVER, Operator, address, builder, client, contention::Contention, forgetful, name, own,
    promptly, quorum, renewed, ttl, until, waiter,
};

#[tokio::test]
async fn waiters_of_one_client_are_served_in_arrival_order() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    let residue = client(&server).await.residue();
    assert_eq!(residue(), 0);
    let guard = locks.acquire("a").await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let waiting = locks.residue();
    let idle = waiting();
    for place in 0..8 {
        let locks = locks.clone();
        let order = Arc::clone(&order);
        tasks.spawn(async move {
            let guard = locks.acquire("a").await.unwrap();
            order.lock().unwrap().push(place);
            guard.release().await.unwrap();
        });
        until("it waits", || async { waiting() > idle + place }).await;
    }
    guard.release().await.unwrap();
    promptly("all waiters", async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_contenders_of_several_clients_exclude_each_other() {
    let server = or_skip!(forgetful());
    let contention = Contention::default();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let locks = client(&server).await;
        for _ in 0..8 {
            tasks.spawn(contention.clone().contend(locks.clone(), 10));
        }
    }
    // Polls and TTLs take ten minutes: every hand-over is a wake-up by the server.
    let all = async {
        while let Some(outcome) = tasks.join_next().await {
            outcome.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .expect("a waiter was stranded");
    assert_eq!(contention.count(), 320);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hands_a_lock_on_and_on_does_not_keep_others_out() {
    let server = or_skip!(forgetful());
    let busy = client(&server).await;
    let other = client(&server).await;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let rounds = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let busy = busy.clone();
        let stop = stop.clone();
        let rounds = Arc::clone(&rounds);
        tasks.spawn(async move {
            while !stop.is_cancelled() {
                busy.acquire("a").await.unwrap().release().await.unwrap();
                rounds.fetch_add(1, SeqCst);
            }
        });
    }
    until("it goes from hand to hand", || async {
        rounds.load(SeqCst) > 100
    })
    .await;
    for _ in 0..5 {
        promptly("another client's turn", other.acquire("a"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    stop.cancel();
    promptly("the last rounds", async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
}

#[tokio::test]
async fn idle_waiters_of_one_client_send_less_than_one_command_per_second() {
    let server = or_skip!(forgetful());
    let holder = client(&server).await;
    let operator = Operator::of(&server);
    let locks = builder(address(&server))
        .with_poll_interval(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    let guard = holder.acquire("a").await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let locks = locks.clone();
        tasks.spawn(async move { locks.acquire("a").await });
    }
    until("all wait", || async {
        locks.residue()() >= 20 && operator.tracked_keys().await > 0
    })
    .await;
    let before = operator.calls("evalsha").await;
    let start = Instant::now();
    // The rate needs time to be seen: two polls.
    until("two polls", || async {
        operator.calls("evalsha").await >= before + 2
    })
    .await;
    let sent = operator.calls("evalsha").await - before;
    let elapsed = start.elapsed();
    assert!(
        sent as f64 <= elapsed.as_secs_f64() + 1.0,
        "{sent} in {elapsed:?}"
    );
    guard.release().await.unwrap();
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_waiter_takes_over_when_a_dead_holders_lease_ends() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let start = Instant::now();
    let () = operator.run(&["SET", "a", "dead", "NX", "PX", "700"]).await;
    let guard = promptly("the expiry", locks.acquire("a")).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(600),
        "before the lease ended: {:?}",
        start.elapsed()
    );
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_stays_woken_through_the_holders_renewals() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    let holder = client(&server).await;
    let guard = holder
        .acquire_with(&name("a"), ttl(Duration::from_millis(900)))
        .await
        .unwrap();
    let waiting = waiter(&locks, "a");
    for _ in 0..4 {
        renewed(&guard).await;
    }
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn thousands_of_guards_are_renewed_in_batches_and_told_of_their_loss() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let mut guards = Vec::new();
    for number in 0..3000 {
        guards.push(
            locks
                .acquire_with(&name(&format!("k{number}")), ttl(Duration::from_secs(6)))
                .await
                .unwrap(),
        );
    }
    until("all are watched", || async {
        operator.tracked_keys().await >= 3000
    })
    .await;
    renewed(&guards[0]).await;
    renewed(&guards[2999]).await;
    let () = operator.run(&["DEL", "k1234"]).await;
    assert_eq!(
        promptly("the loss", guards[1234].lost()).await,
        LossReason::Removed
    );
    assert_eq!(guards.iter().filter(|guard| guard.is_lost()).count(), 1);
    let connections = operator.info("clients", "connected_clients").await;
    assert_eq!(connections, 4, "three of the client, one of the operator");
    locks.shutdown().await.unwrap();
    assert_eq!(
        operator.run::<Vec<String>>(&["KEYS", "k????"]).await,
        [] as [String; 0]
    );
}

#[tokio::test]
async fn a_user_who_may_not_track_waits_all_the_same() {
    let server = or_skip!(forgetful());
    let operator = Operator::of(&server);
    let rules = [
        "ACL", "SETUSER", "app", "on", ">s3cret", "~app:*", "+eval", "+evalsha", "+set", "+get",
        "+del", "+exists", "+pexpire", "+pttl", "+type", "+hget", "+hmget", "+hset", "+hincrby",
        "+zadd", "+zpopmin", "+zrange", "+zrank", "+zrem", "+zscore", "+time", "+ping", "+hello",
    ];
    let () = operator.run(&rules).await;
    let locks = builder(address(&server))
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    let locks = locks.connect().await.unwrap();
    let guard = locks
        .acquire_with(&name("a"), ttl(NEVER).with_metadata("note"))
        .await
        .unwrap();
    assert_eq!(
        locks
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .metadata
            .as_deref(),
        Some("note")
    );
    let waiting = waiter(&locks, "a");
    until("it waits", || async { locks.residue()() > 3 }).await;
    guard.release().await.unwrap();
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();

    let foreign = locks_of_others(&server).await;
    let residue = foreign.residue();
    let error = foreign.acquire("a").await.unwrap_err();
    assert!(
        error.kind() == lock_core::ErrorKind::PermissionDenied && !error.is_indeterminate(),
        "{error:?}"
    );
    assert_eq!(residue(), 0, "there is nothing to undo");
}

#[tokio::test]
async fn a_user_who_may_not_track_is_refused_it_rarely() {
    let server = or_skip!(forgetful());
    let operator = Operator::of(&server);
    let rules = [
        "ACL",
        "SETUSER",
        "app",
        "on",
        ">s3cret",
        "~app:*",
        "+@all",
        "-client|tracking",
    ];
    let () = operator.run(&rules).await;
    let locks = builder(address(&server))
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    let start = Instant::now();
    let locks = locks.connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    // Neither the waiter, which polls, nor the guard, which is to be watched over, asks for it
    // every time.
    until("some polls", || async {
        operator.calls("evalsha").await >= 15
    })
    .await;
    // At first after a second, then every four.
    let most = 3 + start.elapsed().as_secs() / 4;
    let refused = connections_refused_tracking(&operator).await;
    assert!((1..=most as usize).contains(&refused), "{refused}");
    guard.release().await.unwrap();
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

async fn connections_refused_tracking(operator: &Operator) -> usize {
    let denied: Vec<HashMap<String, redis::Value>> = operator.run(&["ACL", "LOG"]).await;
    let about = |entry: &&HashMap<String, redis::Value>| {
        format!("{:?}", entry["object"]).contains("client")
    };
    denied
        .iter()
        .filter(about)
        .map(|entry| redis::from_redis_value::<usize>(entry["count"].clone()).unwrap())
        .sum()
}

/// A client of the same user on keys that it may not use.
async fn locks_of_others(server: &Server) -> lock_redis::RedisLock {
    let locks = builder(address(server))
        .with_credentials("app", "s3cret")
        .with_namespace("others:");
    locks.connect().await.unwrap()
}

/// Neither a TTL nor a poll can have helped: both take ten minutes.
async fn assert_watched(
    locks: &impl DistributedLock,
    theirs: &impl DistributedLock,
    operators: &[Operator],
) {
    let mut watch = locks.watch("a").await.unwrap();
    let mut owner = async || {
        promptly("the watch", watch.next())
            .await
            .unwrap()
            .unwrap()
            .map(|info| info.holder().owner.clone())
    };
    assert_eq!(owner().await, None);
    for with_trouble in [false, true] {
        let guard = theirs.acquire("a").await.unwrap();
        assert_eq!(owner().await.as_ref(), Some(guard.owner()));
        if with_trouble {
            for operator in operators {
                let tracker = operator.tracker().await.unwrap();
                let _: usize = operator
                    .run(&["CLIENT", "KILL", "ID", tracker.trim_start_matches("id=")])
                    .await;
            }
        }
        guard.release().await.unwrap();
        assert_eq!(owner().await, None);
    }
}

#[tokio::test]
async fn servers_tell_a_watch_of_every_holder() {
    let server = or_skip!(own());
    assert_watched(
        &client(&server).await,
        &client(&server).await,
        &[Operator::of(&server)],
    )
    .await;
    let servers = or_skip!(quorum::three());
    let connect = async || quorum::of(&servers).connect().await.unwrap();
    assert_watched(
        &connect().await,
        &connect().await,
        &quorum::operators(&servers),
    )
    .await;
}
