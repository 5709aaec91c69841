//! Locks in a real cluster whose slots and masters change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use futures_util::future::join_all;
use lock_conformance::servers::{self, RedisCluster, RedisOptions};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, LossReason};
use lock_redis::RedisLock;

mod common;
use common::{
    assert_untrusted,
    cluster::{Move, builder, master_of, operator, slot_of},
    name, own, promptly, renewed_within, restricted, trusting, ttl, until, until_within, waiter,
};

/// For a failover, which takes some timeouts of the cluster, on a loaded machine.
const FAILOVER: Duration = Duration::from_secs(60);

/// Longer than a failover, and renewed during one.
const LEASE: Duration = Duration::from_secs(20);

fn options() -> RedisOptions {
    RedisOptions::new()
        .with_argument("--cluster-node-timeout")
        .with_argument("1000")
}

async fn client(cluster: &RedisCluster) -> RedisLock {
    builder(cluster).connect().await.unwrap()
}

#[tokio::test]
async fn locks_are_on_all_servers_and_each_is_renewed_and_watched_where_it_is() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = client(&cluster).await;
    let other = client(&cluster).await;
    let mut guards = Vec::new();
    for number in 0..300 {
        guards.push(
            locks
                .acquire_with(
                    &name(&format!("k{number}")),
                    ttl(Duration::from_secs(6)).with_metadata("note"),
                )
                .await
                .unwrap(),
        );
    }
    for server in 0..3 {
        assert!(operator(&cluster, server).run::<usize>(&["DBSIZE"]).await > 100);
        until("what is on this server is watched", || async {
            operator(&cluster, server).tracked_keys().await > 50
        })
        .await;
    }
    // Together longer than a lease.
    for _ in 0..4 {
        renewed_within(common::PROMPT, &guards[0]).await;
    }
    for guard in &guards {
        assert!(
            other
                .try_acquire(guard.name().as_str())
                .await
                .unwrap()
                .is_none()
        );
    }
    assert_eq!(
        other
            .inspect(&name("k7"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .metadata
            .as_deref(),
        Some("note")
    );
    let () = operator(&cluster, master_of(&cluster, "k7").await)
        .run(&["DEL", "k7"])
        .await;
    assert_eq!(
        promptly("the loss", guards[7].lost()).await,
        LossReason::Removed
    );
    assert!(!other.force_release(&name("k8")).await.unwrap().is_empty());
    assert_eq!(
        promptly("the loss", guards[8].lost()).await,
        LossReason::Removed
    );
    assert_eq!(guards.iter().filter(|guard| guard.is_lost()).count(), 2);
    locks.shutdown().await.unwrap();
    assert!(other.try_acquire("k9").await.unwrap().is_some());
    assert!(format!("{locks:?}").contains("Cluster"));
}

#[tokio::test]
async fn a_slot_that_moves_takes_its_holder_and_its_waiters_along() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = client(&cluster).await;
    let other = client(&cluster).await;
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(5)))
        .await
        .unwrap();
    let token = guard.token();
    let waiting = waiter(&other, "a");
    let source = operator(&cluster, master_of(&cluster, "a").await);
    until("it waits and is told of changes", || async {
        other.residue()() > 0 && source.tracked_keys().await > 0
    })
    .await;

    let step = Move::begin(&cluster, "a").await;
    renewed_within(common::PROMPT, &guard).await;
    step.migrate_keys().await;
    // The source says ASK now.
    renewed_within(common::PROMPT, &guard).await;
    assert_eq!(
        locks
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .owner,
        *guard.owner()
    );
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let target = operator(&cluster, step.to);
    assert_eq!(keys_on(&cluster, step.to, "a").await, 2);
    until("the waiter is told of changes there", || async {
        target.tracked_keys().await > 0
    })
    .await;
    step.end().await;
    // And MOVED from now on.
    renewed_within(common::PROMPT, &guard).await;
    assert!(!waiting.is_finished() && !guard.is_lost());
    guard.release().await.unwrap();
    let next = promptly("the waiter", waiting).await.unwrap().unwrap();
    assert!(next.token() > token, "{:?} after {token:?}", next.token());
    next.release().await.unwrap();
    until("no residue", || async {
        locks.residue()() == 0 && other.residue()() == 0
    })
    .await;
    assert_eq!(target.get("a").await, None);
}

#[tokio::test]
async fn a_lock_that_is_released_while_its_slot_moves_is_granted_when_it_has_moved() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = client(&cluster).await;
    let other = client(&cluster).await;
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits", || async { other.residue()() > 0 }).await;
    let step = Move::begin(&cluster, "a").await;
    step.migrate_keys().await;
    guard.release().await.unwrap();
    assert_eq!(
        keys_on(&cluster, step.to, "a").await,
        1,
        "released where it is"
    );
    // Of the two keys one is missing, and so neither server can tell whether it is on the other.
    let error = locks.try_acquire("a").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(),
        "{error:?}"
    );
    assert!(!waiting.is_finished());
    step.end().await;
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_that_slept_through_a_move_is_redirected_at_once() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = client(&cluster).await;
    locks.acquire("a").await.unwrap().release().await.unwrap();
    let step = Move::begin(&cluster, "a").await;
    step.migrate_keys().await;
    step.end().await;
    let guard = locks.try_acquire("a").await.unwrap().unwrap();
    assert_eq!(
        operator(&cluster, step.to).get("a").await.as_deref(),
        Some(guard.owner().as_str().as_bytes())
    );
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_replica_that_takes_over_keeps_the_locks() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 3));
    let locks = client(&cluster).await;
    let other = client(&cluster).await;
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let token = guard.token();
    let waiting = waiter(&other, "a");
    let master = master_of(&cluster, "a").await;
    until("it waits and is told of changes", || async {
        other.residue()() > 0 && operator(&cluster, master).tracked_keys().await > 0
    })
    .await;
    until("the replica has the lock", || async {
        keys_on(&cluster, master + 3, "a").await == 2
    })
    .await;
    cluster.kill(master).unwrap();
    until_within(FAILOVER, "the replica takes over", || async {
        cluster.is_master(master + 3)
    })
    .await;
    renewed_within(FAILOVER, &guard).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    let next = tokio::time::timeout(FAILOVER, waiting)
        .await
        .expect("a stranded waiter")
        .unwrap()
        .unwrap();
    assert!(next.token() > token);

    // The old master comes back as a replica.
    cluster.start(master).unwrap();
    until_within(FAILOVER, "it follows", || async {
        cluster.is_replica(master)
    })
    .await;
    assert!(other.try_acquire("a").await.unwrap().is_none() && !next.is_lost());
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_master_that_is_frozen_is_left_for_its_replica() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 3));
    let connect = || {
        builder(&cluster)
            .with_request_timeout(Duration::from_millis(500))
            .with_connect_timeout(Duration::from_secs(30))
            .connect()
    };
    let locks = connect().await.unwrap();
    let other = connect().await.unwrap();
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    let master = master_of(&cluster, "a").await;
    until("it waits", || async { other.residue()() > 0 }).await;
    until("the replica has the lock", || async {
        keys_on(&cluster, master + 3, "a").await == 2
    })
    .await;
    cluster.freeze(master).unwrap();
    // The attempt to connect to the frozen server, which would take half a minute, ends when
    // another one has the slot.
    renewed_within(LEASE, &guard).await;
    assert!(cluster.is_master(master + 3));
    cluster.thaw(master).unwrap();
    until_within(FAILOVER, "it follows", || async {
        cluster.is_replica(master)
    })
    .await;
    guard.release().await.unwrap();
    tokio::time::timeout(FAILOVER, waiting)
        .await
        .expect("a stranded waiter")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// How many of the key's slot a server has, whether it is in charge of it or not: a lock that is
/// held, and its companion, are two.
/// Those of the queue are not counted.
async fn keys_on(cluster: &RedisCluster, server: usize, key: &str) -> usize {
    let slot = slot_of(cluster, key).await.to_string();
    let keys: Vec<String> = operator(cluster, server)
        .run(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"])
        .await;
    let of_queue = |key: &&String| !key.contains("\u{1f}q") && !key.contains("\u{1f}w");
    keys.iter().filter(of_queue).count()
}

#[tokio::test]
async fn a_user_with_the_documented_rules_waits_and_follows_a_slot() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    add_users(&cluster).await;
    let builder = builder(&cluster)
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    waits_and_follows_a_slot(&cluster, &builder.connect().await.unwrap()).await;
}

#[tokio::test]
async fn a_slot_is_followed_over_tls_and_servers_that_are_not_trusted_are_named() {
    let certificates = common::certificates();
    let others = common::certificates();
    let cluster = or_skip!(servers::redis_cluster(
        options().with_mutual_tls(&certificates),
        3,
        0
    ));
    add_users(&cluster).await;
    let locks = RedisLock::connect(&trusting(&cluster.url(), &certificates))
        .await
        .unwrap();
    let mut guards = Vec::new();
    for number in 0..30 {
        guards.push(
            locks
                .acquire_with(&name(&format!("k{number}")), ttl(Duration::from_secs(6)))
                .await
                .unwrap(),
        );
    }
    for server in 0..3 {
        assert!(operator(&cluster, server).run::<usize>(&["DBSIZE"]).await > 0);
    }
    join_all(
        guards
            .iter()
            .map(|guard| renewed_within(common::PROMPT, guard)),
    )
    .await;
    waits_and_follows_a_slot(&cluster, &locks).await;
    let theirs = format!(
        "{}&ca={}",
        restricted(&cluster.url(), &certificates),
        others.ca().display()
    );
    assert_untrusted(&RedisLock::connect(&theirs).await.unwrap_err());
}

/// Permissions that the documentation gives users of a cluster.
async fn add_users(cluster: &RedisCluster) {
    for server in 0..3 {
        let () = operator(cluster, server)
            .run(&[&common::RULES[..], &["+cluster|slots", "+asking"]].concat())
            .await;
    }
}

async fn waits_and_follows_a_slot(cluster: &RedisCluster, locks: &RedisLock) {
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(locks, "a");
    let step = Move::begin(cluster, "app:a").await;
    step.migrate_keys().await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    until("the waiter is told of changes", || async {
        operator(cluster, step.to).tracked_keys().await > 0
    })
    .await;
    step.end().await;
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
async fn a_single_server_and_a_cluster_are_told_apart() {
    let cluster = or_skip!(servers::redis_cluster(options(), 1, 0));
    let single = or_skip!(own());
    let error = RedisLock::connect(&format!("redis+cluster://{}", single.endpoint()))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidUrl && error.to_string().contains("redis://"),
        "{error:?}"
    );
    // A server that has all slots serves like a single one; of several each sends most keys
    // elsewhere.
    let locks = RedisLock::connect(&format!("redis://{}", cluster.endpoint(0)))
        .await
        .unwrap();
    locks.acquire("a").await.unwrap().release().await.unwrap();
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = RedisLock::connect(&format!(
        "redis://{}",
        cluster.endpoint((master_of(&cluster, "a").await + 1) % 3)
    ))
    .await
    .unwrap();
    let error = locks.try_acquire("a").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("redis+cluster://"),
        "{error:?}"
    );
}
