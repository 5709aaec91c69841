//! What becomes of locks when one server of a real cluster is in trouble: those on the others must
//! not notice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use futures_util::future::join_all;
use lock_conformance::servers::{self, RedisCluster, RedisOptions, Trouble};
use lock_core::{DistributedLockExt, LockGuard, LossReason};
use lock_redis::RedisLock;

mod common;
use common::{
    NEVER,
    cluster::{Move, builder, master_of, operator},
    name, promptly, renewed_within, ttl, until, waiter,
};

/// Short ones, the default, and what lies between.
const TTLS: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(9),
    Duration::from_secs(30),
];

/// A cluster whose servers serve what they have, whatever becomes of the others.
fn options() -> RedisOptions {
    RedisOptions::new()
        .with_argument("--cluster-require-full-coverage")
        .with_argument("no")
}

/// Keys that a server of three masters has, and that the restricted user may use.
async fn names_on(cluster: &RedisCluster, server: usize, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for name in (0..).map(|number| format!("app:k{number}")) {
        if master_of(cluster, &name).await == server {
            names.push(name);
        }
        if names.len() == count {
            break;
        }
    }
    names
}

async fn acquire_all(locks: &RedisLock, names: &[String], term: Duration) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for key in names {
        guards.push(locks.acquire_with(&name(key), ttl(term)).await.unwrap());
    }
    guards
}

#[tokio::test]
async fn a_loss_is_told_while_the_connection_to_another_server_is_being_made() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let builder = builder(&cluster)
        .with_request_timeout(Duration::from_millis(300))
        .with_connect_timeout(NEVER);
    let locks = builder.connect().await.unwrap();
    let _on_troubled = acquire_all(&locks, &names_on(&cluster, 0, 3).await, NEVER).await;
    let on_healthy = acquire_all(&locks, &names_on(&cluster, 1, 3).await, NEVER).await;
    for server in [0, 1] {
        until("all are watched", || async {
            operator(&cluster, server).tracked_keys().await >= 3
        })
        .await;
    }
    cluster.trouble(0, Trouble::Refuse);
    until("the connections are gone", || async {
        operator(&cluster, 0).clients().await == 1
    })
    .await;
    // A new connection gets no further than its first request.
    cluster.trouble(0, Trouble::DropReplies);
    until("it is being made again", || async {
        operator(&cluster, 0).clients().await > 1
    })
    .await;
    for guard in &on_healthy {
        let () = operator(&cluster, 1)
            .run(&["DEL", guard.name().as_str()])
            .await;
        assert_eq!(
            promptly("the loss", guard.lost()).await,
            LossReason::Removed
        );
    }
}

#[tokio::test]
async fn a_frozen_server_costs_no_renewal_on_another() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    let locks = builder(&cluster).connect().await.unwrap();
    // So many that there is always one to be tried again together with those of the other server.
    let on_frozen = names_on(&cluster, 0, 100).await;
    let names = names_on(&cluster, 1, TTLS.len()).await;
    let on_frozen = acquire_all(&locks, &on_frozen, TTLS[1]).await;
    let mut on_healthy = Vec::new();
    for (name, term) in names.chunks(1).zip(TTLS) {
        on_healthy.extend(acquire_all(&locks, name, term).await);
    }
    cluster.freeze(0).unwrap();
    let all_lost = join_all(
        on_frozen
            .iter()
            .map(|guard| promptly("the loss", guard.lost())),
    );
    let renewals = join_all(
        on_healthy
            .iter()
            .zip(TTLS)
            .map(|(guard, term)| renewed_within(term, guard)),
    );
    let (reasons, _) = tokio::join!(all_lost, renewals);
    assert!(
        reasons.iter().all(|reason| *reason == LossReason::Expired),
        "{reasons:?}"
    );
    join_all(
        on_healthy
            .iter()
            .zip(TTLS)
            .map(|(guard, term)| renewed_within(term, guard)),
    )
    .await;
}

#[tokio::test]
async fn a_server_that_is_cut_off_is_left_for_the_replica_that_has_taken_over() {
    let cluster = or_skip!(servers::redis_cluster(RedisOptions::new(), 3, 3));
    let locks = builder(&cluster).connect().await.unwrap();
    let names = names_on(&cluster, 0, 2).await;
    let [short, long] = [TTLS[3], TTLS[4]];
    let guards = [
        acquire_all(&locks, &names[..1], short).await.remove(0),
        acquire_all(&locks, &names[1..], long).await.remove(0),
    ];
    let cut_off = operator(&cluster, 0);
    let replica = operator(&cluster, 3);
    until("the replica has the locks", || async {
        replica.run::<usize>(&["DBSIZE"]).await == 4
    })
    .await;
    // It hears nothing of the others any more, and so refuses to serve although it is the master
    // for all it knows.
    for other in 1..6 {
        let () = cut_off
            .run(&["CLUSTER", "FORGET", &cluster.id(other).unwrap()])
            .await;
    }
    until("it is down", || async {
        cut_off
            .run::<String>(&["CLUSTER", "INFO"])
            .await
            .contains("cluster_state:fail")
    })
    .await;
    let () = replica.run(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    until("the replica takes over", || async {
        cluster.is_master(3) && cluster.is_master(0)
    })
    .await;
    tokio::join!(
        renewed_within(short, &guards[0]),
        renewed_within(long, &guards[1])
    );
    for (guard, name) in guards.into_iter().zip(&names) {
        guard.release().await.unwrap();
        assert_eq!(replica.get(name).await, None);
    }
}

#[tokio::test]
async fn a_waiter_that_polls_follows_a_slot_that_is_on_its_way() {
    let cluster = or_skip!(servers::redis_cluster(options(), 3, 0));
    for server in 0..3 {
        let rules = common::RULES
            .iter()
            .copied()
            .filter(|rule| *rule != "+client|tracking");
        let rules: Vec<_> = rules.chain(["+cluster|slots", "+asking"]).collect();
        let () = operator(&cluster, server).run(&rules).await;
    }
    let holder = builder(&cluster).connect().await.unwrap();
    let app = builder(&cluster)
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    let locks = app.connect().await.unwrap();
    let keys = names_on(&cluster, 0, 1).await;
    let guard = acquire_all(&holder, &keys, NEVER).await.remove(0);
    let waiting = waiter(&locks, keys[0].replace("app:", ""));
    until("it waits", || async { locks.residue()() > 0 }).await;
    let step = Move::begin(&cluster, &keys[0]).await;
    step.migrate_keys().await;
    // Nobody else is sent on with ASK.
    until("it asks there", || async {
        operator(&cluster, step.to).calls("asking").await > 0
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
