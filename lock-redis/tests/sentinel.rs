//! Locks on a service whose sentinels make another server the master.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use lock_conformance::servers::{self, Certificates, RedisOptions, RedisSentinel, Skip};
use lock_core::{DistributedLockExt, ErrorKind, GuardState, LossReason};
use lock_redis::{RedisLock, RedisLockBuilder};

mod common;
use common::{
    NEVER, Operator, assert_unconfirmed, assert_untrusted, name, promptly, renewed_within, seed,
    sentinels::{operator, replace_master},
    trusting, ttl, until, until_within, waiter,
};

/// For a failover on a loaded machine.
const FAILOVER: Duration = Duration::from_secs(60);

/// Longer than a failover, and renewed during one.
const LEASE: Duration = Duration::from_secs(20);

/// One replica, three sentinels, which miss a master for a second until they replace it.
fn start() -> Result<RedisSentinel, Skip> {
    servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(1))
}

fn builder(servers: &RedisSentinel) -> RedisLockBuilder {
    let sentinels = (0..3).map(|at| seed(&servers.sentinel(at)));
    RedisLock::builder()
        .with_sentinels(sentinels, RedisSentinel::SERVICE)
        .with_ttl(NEVER)
        .with_poll_interval(NEVER)
}

async fn client(servers: &RedisSentinel) -> RedisLock {
    builder(servers).connect().await.unwrap()
}

async fn until_master(servers: &RedisSentinel, server: usize) {
    until_within(FAILOVER, "the sentinels agree", || async {
        (0..3).all(|at| servers.master_by(at) == Some(server))
    })
    .await;
}

#[tokio::test]
async fn the_master_is_found_with_a_sentinel_down_and_trouble_is_named() {
    let servers = or_skip!(servers::redis_sentinel(
        RedisOptions::new().with_password("s3cret"),
        1,
        3,
        Duration::from_secs(30)
    ));
    let host = servers.url().replace("://", "://:s3cret@");
    let own = RedisSentinel::PASSWORD;
    servers.kill_sentinel(0).unwrap();
    let locks = RedisLock::connect(&format!("{host}?sentinel_password={own}"))
        .await
        .unwrap();
    let guard = locks.acquire("a").await.unwrap();
    assert!(!format!("{locks:?} {guard:?}").contains(own));
    guard.release().await.unwrap();

    let error = RedisLock::connect(&format!("{host}?sentinel_password=wrong"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = RedisLock::connect(&format!(
        "{}?sentinel_password={own}",
        host.replace("s3cret", "wrong")
    ))
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = RedisLock::connect(&format!("{host}-2?sentinel_password={own}"))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidUrl && error.to_string().contains("service"),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains(own));
    let builder = builder(&servers)
        .with_credentials("", "s3cret")
        .with_sentinel_credentials("", own);
    builder.connect().await.unwrap();
    (1..3).for_each(|at| servers.kill_sentinel(at).unwrap());
    let error = RedisLock::connect(&format!("{host}?sentinel_password={own}"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // A client that is connected needs no sentinel.
    assert!(locks.try_acquire("a").await.unwrap().is_some());
}

#[tokio::test]
async fn users_with_the_documented_rules_follow_a_failover() {
    let servers = or_skip!(start());
    add_users(&servers).await;
    let builder = builder(&servers)
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    let builder = builder.with_sentinel_credentials("watcher", "s4cret");
    let locks = builder.connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    until("the replica has the lock", || async {
        operator(&servers, 1).get("app:a").await.is_some()
    })
    .await;
    let waiting = waiter(&locks, "a");
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    until_within(FAILOVER, "it is found", || async {
        locks
            .try_acquire("b")
            .await
            .is_ok_and(|guard| guard.is_some())
    })
    .await;
    guard.release().await.unwrap();
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// Permissions that the documentation gives users, on servers and sentinels.
async fn add_users(servers: &RedisSentinel) {
    for server in 0..servers.size() {
        let () = operator(servers, server)
            .run(&[&common::RULES[..], &["+role"]].concat())
            .await;
    }
    let rules = [
        "ACL",
        "SETUSER",
        "watcher",
        "on",
        ">s4cret",
        "resetchannels",
        "&+switch-master",
        "+sentinel|master",
        "+subscribe",
        "+hello",
    ];
    for sentinel in 0..3 {
        let () = Operator::at(&servers.direct_sentinel(sentinel))
            .run(&rules)
            .await;
    }
}

#[tokio::test]
async fn a_failover_is_followed_over_tls() {
    let certificates = common::certificates();
    let options = RedisOptions::new().with_mutual_tls(&certificates);
    let servers = or_skip!(servers::redis_sentinel(
        options,
        1,
        3,
        Duration::from_secs(1)
    ));
    add_users(&servers).await;
    let watcher = "sentinel_username=watcher&sentinel_password=s4cret";
    let connect = || async {
        RedisLock::connect(&format!(
            "{}&{watcher}",
            trusting(&servers.url(), &certificates)
        ))
        .await
        .unwrap()
    };
    let locks = connect().await;
    let other = connect().await;
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits and is told of changes", || async {
        other.residue()() > 0 && operator(&servers, 0).tracked_keys().await > 0
    })
    .await;
    until("the replica has the lock", || async {
        operator(&servers, 1).get("app:a").await.is_some()
    })
    .await;
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    renewed_within(FAILOVER, &guard).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    tokio::time::timeout(FAILOVER, waiting)
        .await
        .expect("a stranded waiter")
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    until("no residue", || async {
        locks.residue()() == 0 && other.residue()() == 0
    })
    .await;
}

#[tokio::test]
async fn sentinels_and_masters_that_are_not_trusted_are_named() {
    let certificates = common::certificates();
    let others = common::certificates();
    let options = RedisOptions::new().with_tls(&certificates);
    let servers = or_skip!(servers::redis_sentinel(options, 0, 1, NEVER));
    let url = |ca: &Certificates| {
        format!(
            "{}?connect_timeout=10s&ca={}",
            servers.url(),
            ca.ca().display()
        )
    };
    RedisLock::connect(&url(&certificates))
        .await
        .unwrap()
        .acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let error = RedisLock::connect(&url(&others)).await.unwrap_err();
    assert_untrusted(&error);
    assert!(error.to_string().contains("sentinel"), "{error}");
    let error = RedisLock::connect(&servers.url().replace("rediss", "redis"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// The URL of sentinels, asking for replicas.
fn confirmed(servers: &RedisSentinel, replicas: u32) -> String {
    format!(
        "{}?replicas={replicas}&replica_timeout=2s&ttl=10m&poll_interval=10m",
        servers.url()
    )
}

#[tokio::test]
async fn the_replicas_of_a_new_master_confirm_until_there_is_none() {
    let servers = or_skip!(servers::redis_sentinel(
        RedisOptions::new(),
        2,
        3,
        Duration::from_secs(1)
    ));
    let locks = RedisLock::connect(&confirmed(&servers, 1)).await.unwrap();
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    for server in [1, 2] {
        until("the replica has the lock", || async {
            operator(&servers, server).get("a").await.is_some()
        })
        .await;
    }
    servers.kill(0).unwrap();
    let is_new = |server| (0..3).all(|at| servers.master_by(at) == Some(server));
    until_within(FAILOVER, "the sentinels agree", || async {
        is_new(1) || is_new(2)
    })
    .await;
    let (master, replica) = if is_new(1) { (1, 2) } else { (2, 1) };
    // Confirmed by whom the sentinels have follow the new master.
    renewed_within(FAILOVER, &guard).await;
    let next = locks.acquire("b").await.unwrap();
    assert_eq!(
        operator(&servers, replica).get("b").await.as_deref(),
        Some(next.owner().as_str().as_bytes())
    );

    servers.kill(replica).unwrap();
    assert_unconfirmed(&promptly("an error", locks.acquire("c")).await.unwrap_err());
    assert_unconfirmed(
        &promptly("an error", locks.try_acquire("c"))
            .await
            .unwrap_err(),
    );
    guard.release().await.unwrap();
    next.release().await.unwrap();
    until("no residue", || async { locks.residue()() == 0 }).await;
    for key in ["a", "b", "c"] {
        assert_eq!(operator(&servers, master).get(key).await, None);
    }
}

#[tokio::test]
async fn a_lock_whose_master_fails_before_it_is_confirmed_is_given_back_at_the_new_one() {
    let servers = or_skip!(start());
    // More than there are: it waits for them until the master is gone.
    let locks = RedisLock::connect(&confirmed(&servers, 2).replace("=2s", "=5m"))
        .await
        .unwrap();
    let waiting = waiter(&locks, "a");
    until("the replica has the lock", || async {
        operator(&servers, 1).get("a").await.is_some()
    })
    .await;
    assert!(!waiting.is_finished());
    servers.kill(0).unwrap();
    let error = promptly("an error", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    until_master(&servers, 1).await;
    until_within(FAILOVER, "it is given back", || async {
        operator(&servers, 1).get("a").await.is_none()
    })
    .await;
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn a_replica_that_was_in_step_keeps_the_locks() {
    let servers = or_skip!(start());
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let token = guard.token();
    let waiting = waiter(&other, "a");
    until("it waits and is told of changes", || async {
        other.residue()() > 0 && operator(&servers, 0).tracked_keys().await > 0
    })
    .await;
    until("the replica has the lock", || async {
        operator(&servers, 1).get("a").await.is_some()
    })
    .await;
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    renewed_within(FAILOVER, &guard).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    let next = tokio::time::timeout(FAILOVER, waiting)
        .await
        .expect("a stranded waiter")
        .unwrap()
        .unwrap();
    assert!(next.token() > token, "{:?} after {token:?}", next.token());

    // The old master comes back, takes itself for one at first, and is not used.
    servers.start(0).await.unwrap();
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    until_within(FAILOVER, "it follows", || async { servers.is_replica(0) }).await;
    assert!(locks.try_acquire("a").await.unwrap().is_none() && !next.is_lost());
    next.release().await.unwrap();
    until("no residue", || async {
        locks.residue()() == 0 && other.residue()() == 0
    })
    .await;
}

/// Exclusion is best-effort: declared, and shown here.
#[tokio::test]
async fn a_replica_that_was_not_in_step_grants_a_lock_twice_and_the_first_holder_learns_it() {
    let servers = or_skip!(start());
    let locks = client(&servers).await;
    let other = client(&servers).await;
    assert_eq!(
        lock_redis::capabilities().consistency,
        lock_core::Consistency::BestEffort
    );
    locks.acquire("a").await.unwrap().release().await.unwrap();
    let replica = operator(&servers, 1);
    until("the replica has the release", || async {
        replica.companion("a", "token").await.is_some() && replica.get("a").await.is_none()
    })
    .await;
    let () = replica.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let guard = locks.acquire("a").await.unwrap();
    let watching = other.acquire("b").await.unwrap();
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    // Its TTL is ten minutes, and still somebody else gets it.
    let second = promptly("the second grant", other.acquire("a"))
        .await
        .unwrap();
    assert!(
        second.token() > guard.token(),
        "{:?} after {:?}",
        second.token(),
        guard.token()
    );
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(
        promptly("the loss", watching.lost()).await,
        LossReason::Removed
    );
    assert_eq!(second.state(), GuardState::Held);
    second.release().await.unwrap();
}

#[tokio::test]
async fn waiters_follow_a_master_that_hands_over_while_it_lives() {
    let servers = or_skip!(start());
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits and is told of changes", || async {
        other.residue()() > 0 && operator(&servers, 0).tracked_keys().await > 0
    })
    .await;
    let sentinel = Operator::at(&servers.sentinel(0));
    let () = sentinel
        .run(&["SENTINEL", "FAILOVER", RedisSentinel::SERVICE])
        .await;
    until_master(&servers, 1).await;
    renewed_within(FAILOVER, &guard).await;
    until("it waits there", || async {
        operator(&servers, 1).tracked_keys().await > 0
    })
    .await;
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
async fn a_frozen_master_is_left_and_not_used_when_it_goes_on() {
    let servers = or_skip!(start());
    let connect = || {
        builder(&servers)
            .with_request_timeout(Duration::from_millis(500))
            .with_connect_timeout(Duration::from_secs(30))
            .connect()
    };
    let locks = connect().await.unwrap();
    let other = connect().await.unwrap();
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits", || async { other.residue()() > 0 }).await;
    until("the replica has the lock", || async {
        operator(&servers, 1).get("a").await.is_some()
    })
    .await;
    servers.freeze(0).unwrap();
    // The attempt to connect to the frozen server, which would take half a minute, ends when it is
    // not the master any more.
    renewed_within(LEASE, &guard).await;
    servers.thaw(0).unwrap();
    guard.release().await.unwrap();
    let next = tokio::time::timeout(FAILOVER, waiting)
        .await
        .expect("a stranded waiter")
        .unwrap()
        .unwrap();
    assert_eq!(
        operator(&servers, 1).get("a").await.as_deref(),
        Some(next.owner().as_str().as_bytes())
    );
    next.release().await.unwrap();
}

/// As behind a partition: the old master answers its clients, and takes itself for the master.
#[tokio::test]
async fn a_master_that_still_answers_but_has_been_replaced_is_left() {
    let servers = or_skip!(servers::redis_sentinel(
        RedisOptions::new(),
        1,
        3,
        Duration::from_secs(600)
    ));
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&other, "a");
    until("the replica has the lock", || async {
        operator(&servers, 1).get("a").await.is_some()
    })
    .await;
    replace_master(&servers).await;
    // Nobody is asked for anything meanwhile: neither a renewal nor a poll is due for minutes.
    until_within(FAILOVER, "the waiter is told of changes there", || async {
        operator(&servers, 1).tracked_keys().await > 0
    })
    .await;
    until_within(FAILOVER, "no connection to the old one is left", || async {
        operator(&servers, 0).tracker().await.is_none()
    })
    .await;
    let () = operator(&servers, 1).run(&["DEL", "a"]).await;
    assert_eq!(
        tokio::time::timeout(FAILOVER, guard.lost()).await.unwrap(),
        LossReason::Removed
    );
    promptly("the waiter", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_the_master_any_more_is_not_used_although_it_is_named() {
    // So slow that they name the old master throughout.
    let servers = or_skip!(servers::redis_sentinel(
        RedisOptions::new(),
        1,
        3,
        Duration::from_secs(600)
    ));
    let locks = client(&servers).await;
    let () = operator(&servers, 0)
        .run(&["REPLICAOF", "127.0.0.1", "1"])
        .await;
    for error in [
        locks.try_acquire("a").await.unwrap_err(),
        builder(&servers).connect().await.unwrap_err(),
    ] {
        assert!(
            error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(),
            "{error:?}"
        );
        assert!(error.to_string().contains("replica"), "{error}");
    }
    let waiting = waiter(&locks, "a");
    until("it waits", || async { locks.residue()() > 0 }).await;
    let () = operator(&servers, 0).run(&["REPLICAOF", "NO", "ONE"]).await;
    promptly("the grant", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}
