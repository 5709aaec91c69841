//! What becomes of locks when sentinels make another server the master.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use conformance_tests::servers::{self, RedisOptions, RedisSentinel, Skip};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason, Secret};
use lock_redis::{RedisLock, RedisLockBuilder};

mod common;
use common::{NEVER, Operator, name, promptly, renewed_within, ttl, until, until_within, waiter};

/// For a failover on a loaded machine.
const FAILOVER: Duration = Duration::from_secs(60);

/// Longer than a failover, and renewed during one.
const LEASE: Duration = Duration::from_secs(20);

/// One replica, three sentinels, which miss a master for a second until they replace it.
fn start() -> Result<RedisSentinel, Skip> {
    servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(1))
}

fn builder(servers: &RedisSentinel) -> RedisLockBuilder {
    let address = |at| servers.sentinel(at).rsplit_once(':').map(|(host, port)| (host.to_owned(), port.parse().unwrap())).unwrap();
    RedisLock::builder().with_sentinels((0..3).map(address), RedisSentinel::SERVICE).with_ttl(NEVER).with_poll_interval(NEVER)
}

async fn client(servers: &RedisSentinel) -> RedisLock {
    builder(servers).connect().await.unwrap()
}

fn operator(servers: &RedisSentinel, server: usize) -> Operator {
    Operator::at(&servers.direct_endpoint(server))
}

async fn until_master(servers: &RedisSentinel, server: usize) {
    until_within(FAILOVER, "the sentinels agree", || async { (0..3).all(|at| servers.master_by(at) == Some(server)) }).await;
}

#[tokio::test]
async fn the_master_is_found_with_a_sentinel_down_and_trouble_is_named() {
    let servers = or_skip!(servers::redis_sentinel(RedisOptions::new().with_password("s3cret"), 1, 3, Duration::from_secs(30)));
    let (host, own) = (servers.url().replace("://", "://:s3cret@"), RedisSentinel::PASSWORD);
    servers.kill_sentinel(0).unwrap();
    let locks = RedisLock::connect(&format!("{host}?sentinel_password={own}")).await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    assert!(!format!("{locks:?} {guard:?}").contains(own));
    guard.release().await.unwrap();

    let error = RedisLock::connect(&format!("{host}?sentinel_password=wrong")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = RedisLock::connect(&format!("{}?sentinel_password={own}", host.replace("s3cret", "wrong"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = RedisLock::connect(&format!("{host}-2?sentinel_password={own}")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidUrl && error.to_string().contains("service"), "{error:?}");
    assert!(!format!("{error} {error:?}").contains(own));
    let builder = builder(&servers).with_password(Secret::new("s3cret")).with_sentinel_credentials(None, Secret::new(own));
    builder.connect().await.unwrap();
    (1..3).for_each(|at| servers.kill_sentinel(at).unwrap());
    let error = RedisLock::connect(&format!("{host}?sentinel_password={own}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // Who is connected needs no sentinel.
    assert!(locks.try_acquire("a").await.unwrap().is_some());
}

#[tokio::test]
async fn users_with_the_documented_rules_follow_a_failover() {
    let servers = or_skip!(start());
    for server in 0..2 {
        let () = operator(&servers, server).run(&[&common::RULES[..], &["+role"]].concat()).await;
    }
    let rules =
        ["ACL", "SETUSER", "watcher", "on", ">s4cret", "resetchannels", "&+switch-master", "+sentinel|master", "+subscribe", "+hello"];
    for sentinel in 0..3 {
        let () = Operator::at(&servers.sentinel(sentinel)).run(&rules).await;
    }
    let builder = builder(&servers).with_username("app").with_password(Secret::new("s3cret")).with_prefix("app:");
    let builder = builder.with_sentinel_credentials(Some("watcher".into()), Secret::new("s4cret"));
    let locks = builder.connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    until("the replica has the lock", || async { operator(&servers, 1).get("app:a").await.is_some() }).await;
    let waiting = waiter(&locks, "a");
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    until_within(FAILOVER, "it is found", || async { locks.try_acquire("b").await.is_ok_and(|guard| guard.is_some()) }).await;
    guard.release().await.unwrap();
    promptly("the waiter", waiting).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_replica_that_was_in_step_keeps_the_locks() {
    let servers = or_skip!(start());
    let (locks, other) = (client(&servers).await, client(&servers).await);
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let token = guard.token();
    let waiting = waiter(&other, "a");
    until("it waits and is told of changes", || async { other.residue()() > 0 && operator(&servers, 0).tracked_keys().await > 0 }).await;
    until("the replica has the lock", || async { operator(&servers, 1).get("a").await.is_some() }).await;
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    renewed_within(FAILOVER, &guard).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    let next = tokio::time::timeout(FAILOVER, waiting).await.expect("a stranded waiter").unwrap().unwrap();
    assert!(next.token() > token, "{:?} after {token:?}", next.token());

    // The old master comes back, takes itself for one at first, and is not used.
    servers.start(0).await.unwrap();
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    until_within(FAILOVER, "it follows", || async { servers.is_replica(0) }).await;
    assert!(locks.try_acquire("a").await.unwrap().is_none() && !next.is_lost());
    next.release().await.unwrap();
    until("no residue", || async { locks.residue()() == 0 && other.residue()() == 0 }).await;
}

/// What best-effort exclusion means: declared, and shown here.
#[tokio::test]
async fn a_replica_that_was_not_in_step_grants_a_lock_twice_and_the_first_holder_learns_it() {
    let servers = or_skip!(start());
    let (locks, other) = (client(&servers).await, client(&servers).await);
    assert_eq!(lock_redis::capabilities().consistency, lock_core::Consistency::BestEffort);
    locks.acquire("a").await.unwrap().release().await.unwrap();
    let replica = operator(&servers, 1);
    until("the replica has the release", || async { replica.companion("a", "token").await.is_some() && replica.get("a").await.is_none() })
        .await;
    let () = replica.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let guard = locks.acquire("a").await.unwrap();
    let watching = other.acquire("b").await.unwrap();
    servers.kill(0).unwrap();
    until_master(&servers, 1).await;
    // Its TTL is ten minutes, and still somebody else gets it.
    let second = promptly("the second grant", other.acquire("a")).await.unwrap();
    assert!(second.token() > guard.token(), "{:?} after {:?}", second.token(), guard.token());
    assert_eq!(promptly("the loss", guard.lost()).await, LossReason::Removed);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(promptly("the loss", watching.lost()).await, LossReason::Removed);
    assert_eq!(second.state(), GuardState::Held);
    second.release().await.unwrap();
}

#[tokio::test]
async fn waiters_follow_a_master_that_hands_over_while_it_lives() {
    let servers = or_skip!(start());
    let (locks, other) = (client(&servers).await, client(&servers).await);
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits and is told of changes", || async { other.residue()() > 0 && operator(&servers, 0).tracked_keys().await > 0 }).await;
    let sentinel = Operator::at(&servers.sentinel(0));
    let () = sentinel.run(&["SENTINEL", "FAILOVER", RedisSentinel::SERVICE]).await;
    until_master(&servers, 1).await;
    renewed_within(FAILOVER, &guard).await;
    until("it waits there", || async { operator(&servers, 1).tracked_keys().await > 0 }).await;
    guard.release().await.unwrap();
    promptly("the waiter", waiting).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_frozen_master_is_left_and_not_used_when_it_goes_on() {
    let servers = or_skip!(start());
    let connect =
        || builder(&servers).with_request_timeout(Duration::from_millis(500)).with_connect_timeout(Duration::from_secs(30)).connect();
    let (locks, other) = (connect().await.unwrap(), connect().await.unwrap());
    let guard = locks.acquire_with(&name("a"), ttl(LEASE)).await.unwrap();
    let waiting = waiter(&other, "a");
    until("it waits", || async { other.residue()() > 0 }).await;
    until("the replica has the lock", || async { operator(&servers, 1).get("a").await.is_some() }).await;
    servers.freeze(0).unwrap();
    // The attempt to connect to the frozen server, which would take half a minute, ends when it is not the master any more.
    renewed_within(LEASE, &guard).await;
    servers.thaw(0).unwrap();
    guard.release().await.unwrap();
    let next = tokio::time::timeout(FAILOVER, waiting).await.expect("a stranded waiter").unwrap().unwrap();
    assert_eq!(operator(&servers, 1).get("a").await.as_deref(), Some(next.owner().as_str().as_bytes()));
    next.release().await.unwrap();
}

/// As behind a partition: the old master answers its clients, and takes itself for the master.
#[tokio::test]
async fn a_master_that_still_answers_but_has_been_replaced_is_left() {
    let servers = or_skip!(servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(600)));
    let (locks, other) = (client(&servers).await, client(&servers).await);
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&other, "a");
    until("the replica has the lock", || async { operator(&servers, 1).get("a").await.is_some() }).await;
    let () = operator(&servers, 1).run(&["REPLICAOF", "NO", "ONE"]).await;
    let new = servers.endpoint(1);
    let (host, port) = new.rsplit_once(':').unwrap();
    for at in 0..3 {
        let sentinel = Operator::at(&servers.sentinel(at));
        let () = sentinel.run(&["SENTINEL", "REMOVE", RedisSentinel::SERVICE]).await;
        let () = sentinel.run(&["SENTINEL", "MONITOR", RedisSentinel::SERVICE, host, port, "2"]).await;
    }
    // Nobody is asked for anything meanwhile: neither a renewal nor a poll is due for minutes.
    until_within(FAILOVER, "the waiter is told of changes there", || async { operator(&servers, 1).tracked_keys().await > 0 }).await;
    until_within(FAILOVER, "no connection to the old one is left", || async { operator(&servers, 0).tracker().await.is_none() }).await;
    let () = operator(&servers, 1).run(&["DEL", "a"]).await;
    assert_eq!(tokio::time::timeout(FAILOVER, guard.lost()).await.unwrap(), LossReason::Removed);
    promptly("the waiter", waiting).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_the_master_any_more_is_not_used_although_it_is_named() {
    // So slow that they name the old master throughout.
    let servers = or_skip!(servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(600)));
    let locks = client(&servers).await;
    let () = operator(&servers, 0).run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    for error in [locks.try_acquire("a").await.unwrap_err(), builder(&servers).connect().await.unwrap_err()] {
        assert!(error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(), "{error:?}");
        assert!(error.to_string().contains("replica"), "{error}");
    }
    let waiting = waiter(&locks, "a");
    until("it waits", || async { locks.residue()() > 0 }).await;
    let () = operator(&servers, 0).run(&["REPLICAOF", "NO", "ONE"]).await;
    promptly("the grant", waiting).await.unwrap().unwrap().release().await.unwrap();
}
