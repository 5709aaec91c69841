//! What is left of a client on real servers when it was shut down, and on a server that it does not
//! need any more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_conformance::servers::{self, RedisOptions};
use lock_core::{
    DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockGuard, backend::SHUTDOWN_LIMIT,
};
use lock_redis::RedisLock;

mod common;
use common::{
    NEVER, Operator, address, builder, cluster, name, own, promptly, quorum, seed, ttl, until,
    until_within, waiter,
};

/// Number of clients that a server has, its replicas and its master apart.
async fn clients(server: &Operator) -> usize {
    // One of them is the operator.
    server
        .run::<String>(&["CLIENT", "LIST", "TYPE", "normal"])
        .await
        .lines()
        .count()
        - 1
}

#[tokio::test]
async fn what_nobody_polls_any_more_does_not_hold_up_the_shutdown_of_a_quorum() {
    let servers = or_skip!(quorum::three());
    let operators = quorum::operators(&servers);
    let locks = quorum::of(&servers)
        .with_request_timeout(Duration::from_millis(300))
        .with_connect_timeout(Duration::from_secs(1));
    let locks = locks.connect().await.unwrap();
    // All are connected to, and know the scripts.
    locks
        .acquire("warm-up")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    until("all have taken part", || async { locks.residue()() == 0 }).await;
    servers[1..]
        .iter()
        .for_each(|server| server.freeze().unwrap());
    let mut acquiring = Box::pin(locks.acquire("a"));
    tokio::select! {
        biased;
        () = until("the first grants it", || async { operators[0].get("a").await.is_some() }) => {}
        outcome = &mut acquiring => panic!("without a majority: {outcome:?}"),
    }
    let shutdown = tokio::time::timeout(SHUTDOWN_LIMIT / 2, locks.shutdown()).await;
    shutdown
        .expect("it waits until nobody wants the lock")
        .unwrap();
    // Requests that may have taken effect are undone, though nobody has learned of the shutdown.
    for (server, operator) in servers.iter().zip(&operators).skip(1) {
        server.thaw().unwrap();
        until("the late effect", || async {
            operator.companion("a", "token").await.is_some()
        })
        .await;
        until("it is undone", || async {
            operator.get("a").await.is_none()
        })
        .await;
    }
    assert_eq!(
        promptly("an error", acquiring).await.unwrap_err().kind(),
        ErrorKind::Shutdown
    );
    for operator in &operators {
        until("nothing is left", || async {
            operator.get("a").await.is_none() && clients(operator).await == 0
        })
        .await;
    }
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn a_shutdown_closes_the_connections_that_waited_for_replicas() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    // There is none, so that nothing is confirmed by itself.
    let locks = builder(address(&server))
        .with_replicas(1, NEVER)
        .connect()
        .await
        .unwrap();
    let first = waiter(&locks, "a");
    operator.end_confirming().await;
    assert_eq!(
        promptly("an error", first)
            .await
            .unwrap()
            .unwrap_err()
            .kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(clients(&operator).await, 2, "one is kept for the next");
    let second = waiter(&locks, "a");
    let closing = locks.clone();
    until("it waits for replicas", || async {
        operator.info("clients", "blocked_clients").await > 0
    })
    .await;
    let shutdown = tokio::spawn(async move { closing.shutdown().await });
    assert_eq!(
        promptly("an error", second)
            .await
            .unwrap()
            .unwrap_err()
            .kind(),
        ErrorKind::Shutdown
    );
    operator.end_confirming().await;
    promptly("the shutdown", shutdown).await.unwrap().unwrap();
    until("the connections are closed", || async {
        clients(&operator).await == 0
    })
    .await;
    assert_eq!((operator.get("a").await, locks.residue()()), (None, 0));
}

#[tokio::test]
async fn nothing_is_left_on_a_master_that_was_replaced_nor_anywhere_after_a_shutdown() {
    let cluster = or_skip!(servers::redis_cluster(RedisOptions::new(), 1, 1));
    let old = cluster::operator(&cluster, 0);
    let new = cluster::operator(&cluster, 1);
    let locks = RedisLock::builder()
        .with_cluster([seed(&cluster.endpoint(0))])
        .with_ttl(NEVER)
        .with_poll_interval(NEVER);
    let locks = locks.connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    until("it waits and is told of changes", || async {
        old.tracked_keys().await > 0
    })
    .await;
    until("the replica has the lock", || async {
        new.run::<usize>(&["DBSIZE"]).await >= 2
    })
    .await;
    let () = new.run(&["CLUSTER", "FAILOVER"]).await;
    until_within(LIMIT, "the replica takes over", || async {
        cluster.is_master(1) && cluster.is_replica(0)
    })
    .await;
    // It says where the slot is now, and then is not asked for anything any more.
    until("the new master is used", || async {
        locks.try_acquire("a").await.is_ok() && new.tracked_keys().await > 0
    })
    .await;
    until("nothing is left on the old one", || async {
        clients(&old).await == 0
    })
    .await;
    assert!(guard.state() == GuardState::Held && !waiting.is_finished());
    locks.shutdown().await.unwrap();
    assert_eq!(
        promptly("an error", waiting)
            .await
            .unwrap()
            .unwrap_err()
            .kind(),
        ErrorKind::Shutdown
    );
    until("the connections are closed", || async {
        clients(&old).await + clients(&new).await == 0
    })
    .await;
    assert_eq!(new.get("a").await, None);
}

#[tokio::test]
async fn nobody_listens_to_the_sentinels_after_a_shutdown() {
    let servers = or_skip!(servers::redis_sentinel(RedisOptions::new(), 0, 1, LIMIT));
    let sentinel = Operator::at(&servers.sentinel(0));
    let master = Operator::at(&servers.direct_endpoint(0));
    let listeners = || async {
        sentinel
            .run::<String>(&["CLIENT", "LIST", "TYPE", "pubsub"])
            .await
            .lines()
            .count()
    };
    let before = clients(&master).await;
    let locks = RedisLock::connect(&servers.url()).await.unwrap();
    let _guard = locks.acquire("a").await.unwrap();
    until("it listens, and watches its lock", || async {
        listeners().await == 1 && clients(&master).await == before + 3
    })
    .await;
    locks.shutdown().await.unwrap();
    until("the connections are closed", || async {
        listeners().await == 0 && clients(&master).await == before
    })
    .await;
}

/// For a failover on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Eleven guards, each with a TTL of its own, and a waiter.
async fn hold_much<L: DistributedLock + Clone + 'static>(locks: &L) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for number in 0..11 {
        guards.push(
            locks
                .acquire_with(
                    &name(&format!("k{number}")),
                    ttl(NEVER + Duration::from_secs(number)),
                )
                .await
                .unwrap(),
        );
    }
    let waiting = waiter(locks, "k0");
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    guards
}

async fn ends_in_time(locks: &dyn DistributedLock, guards: &[LockGuard]) {
    let start = Instant::now();
    let mut shutdown = Box::pin(locks.shutdown());
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(guards.iter().all(LockGuard::is_lost), "not all at once");
    // It says so if something is left.
    let _ = shutdown.await;
    assert!(
        start.elapsed() < SHUTDOWN_LIMIT + Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn frozen_servers_hold_up_a_shutdown_for_one_limit_however_much_is_held() {
    let server = or_skip!(own());
    let locks = builder(address(&server)).connect().await.unwrap();
    let guards = hold_much(&locks).await;
    server.freeze().unwrap();
    ends_in_time(&locks, &guards).await;
}

#[tokio::test]
async fn frozen_servers_of_a_cluster_hold_up_a_shutdown_for_one_limit_however_much_is_held() {
    let cluster = or_skip!(servers::redis_cluster(RedisOptions::new(), 3, 0));
    let locks = cluster::builder(&cluster).connect().await.unwrap();
    let guards = hold_much(&locks).await;
    (0..3).for_each(|server| cluster.freeze(server).unwrap());
    ends_in_time(&locks, &guards).await;
}

#[tokio::test]
async fn frozen_servers_of_a_quorum_hold_up_a_shutdown_for_one_limit_however_much_is_held() {
    let servers = or_skip!(quorum::three());
    let locks = quorum::of(&servers).connect().await.unwrap();
    let guards = hold_much(&locks).await;
    servers.iter().for_each(|server| server.freeze().unwrap());
    ends_in_time(&locks, &guards).await;
}
