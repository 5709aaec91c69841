//! What silent, slow and partial servers of a quorum cost, and what is left after them, with real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use conformance_tests::servers::{self, RedisOptions, Server, Skip};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason, backend::SHUTDOWN_LIMIT};
use lock_redis::{RedisQuorumLock, RedisQuorumLockBuilder};

mod common;
use common::{NEVER, Operator, address, promptly, until};

/// How long a server has to answer.
const LIMIT: Duration = Duration::from_millis(300);

fn three() -> Result<Vec<Server>, Skip> {
    (0..3).map(|_| servers::redis(RedisOptions::new().own())).collect()
}

/// Polls and TTLs take ten minutes: nothing happens because of them.
fn builder(servers: &[Server]) -> RedisQuorumLockBuilder {
    let addresses = servers.iter().map(address).map(|address| (address.ip().to_string(), address.port()));
    let builder = RedisQuorumLock::builder().with_servers(addresses).with_ttl(NEVER).with_poll_interval(NEVER);
    builder.with_request_timeout(LIMIT)
}

#[tokio::test]
async fn a_server_that_never_answered_does_not_hold_up_a_shutdown() {
    let servers = or_skip!(three());
    servers[2].freeze().unwrap();
    // The connections to it are waited for that long.
    let locks = builder(&servers).with_connect_timeout(NEVER);
    let locks = promptly("the connection", locks.connect()).await.unwrap();
    let guard = promptly("the grant", locks.acquire("a")).await.unwrap();
    until("the guard is watched", || async { Operator::of(&servers[0]).tracked_keys().await > 0 }).await;
    promptly("the release", guard.release()).await.unwrap();
    assert!(locks.residue()() > 0, "somebody still connects");
    let shutdown = tokio::time::timeout(SHUTDOWN_LIMIT / 2, locks.shutdown()).await;
    shutdown.expect("it waits for a silent server").unwrap();
    assert_eq!(locks.residue()(), 0);
}

#[tokio::test]
async fn a_removal_on_a_majority_is_told_although_the_rest_is_silent() {
    let servers = or_skip!(three());
    let operators: Vec<_> = servers.iter().map(Operator::of).collect();
    // Whoever waits for the silent one waits for ten minutes.
    let locks = builder(&servers).with_request_timeout(NEVER).connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    for operator in &operators {
        until("the guard is watched", || async { operator.tracked_keys().await > 0 }).await;
    }
    // One alone is no loss, and all are read again.
    let before = reads(&operators[2]).await;
    let () = operators[0].run(&["DEL", "a"]).await;
    until("the third has answered", || async { reads(&operators[2]).await > before }).await;
    until("the first reports again", || async { operators[0].tracked_keys().await > 0 }).await;
    assert_eq!(guard.state(), GuardState::Held);
    servers[2].freeze().unwrap();
    let () = operators[1].run(&["DEL", "a"]).await;
    assert_eq!(promptly("the loss", guard.lost()).await, LossReason::Removed);
}

#[tokio::test]
async fn a_release_that_a_majority_answers_late_tells_that_the_lock_was_lost() {
    let forgetful = || servers::redis(RedisOptions::new().without_persistence().own());
    let servers: Vec<_> = or_skip!((0..3).map(|_| forgetful()).collect::<Result<_, _>>());
    let operators: Vec<_> = servers.iter().map(Operator::of).collect();
    let locks = builder(&servers).connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    for operator in &operators {
        until("all have granted", || async { operator.get("a").await.is_some() }).await;
    }
    let () = operators[0].run(&["DEL", "a"]).await;
    servers[1].kill().unwrap();
    servers[2].kill().unwrap();
    // The connections are found broken by this, and not by the release, which then is not sent.
    assert_eq!(locks.try_acquire("b").await.unwrap_err().kind(), ErrorKind::Unavailable);
    let mut release = tokio::spawn(guard.release());
    tokio::time::timeout(LIMIT * 3, &mut release).await.expect_err("one server cannot tell");
    servers[1].start().await.unwrap();
    let error = promptly("the release", release).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
}

#[tokio::test]
async fn servers_that_can_only_be_read_are_out_of_reach() {
    let servers = or_skip!(three());
    let operators: Vec<_> = servers.iter().map(Operator::of).collect();
    let locks = builder(&servers).with_connect_timeout(LIMIT).connect().await.unwrap();
    // Every look shows that the lock is free.
    for operator in &operators[..2] {
        let () = operator.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    }
    let error = promptly("an error", locks.acquire("a")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("2 of 3"), "{error:?}");
    for operator in &operators[..2] {
        let () = operator.run(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    }
    promptly("the grant", locks.acquire("a")).await.unwrap().release().await.unwrap();
}

/// How many times a server has been asked what a key holds.
async fn reads(operator: &Operator) -> usize {
    let stats: String = operator.run(&["INFO", "commandstats"]).await;
    let calls = |line: &str| line.strip_prefix("cmdstat_get:calls=")?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).unwrap_or(0)
}
