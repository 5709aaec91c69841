//! What becomes of locks when another server takes over while the old one goes on answering, with
//! real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, RedisOptions, RedisSentinel, Server, Skip, tools};
use lock_core::{DistributedLockExt, ErrorKind, LossReason};
use lock_redis::RedisLock;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

mod common;
use common::{
    Operator, address, builder, name, promptly, renewed_within,
    sentinels::{operator, replace_master, sentinels},
    ttl, until, until_within, waiter,
};

/// Some times as long as clients take to look for the master although nobody tells them of another
/// one.
const LOOKS: Duration = Duration::from_secs(40);

/// Each follows the one before.
async fn chain(members: impl IntoIterator<Item = RedisOptions>) -> Result<Vec<Server>, Skip> {
    let mut chain: Vec<Server> = Vec::new();
    for member in members {
        let mut options = member
            .own()
            .with_argument("--repl-diskless-sync-delay")
            .with_argument("0");
        if let Some(last) = chain.last().map(address) {
            let host = last.ip().to_string();
            let port = last.port().to_string();
            options = options
                .with_argument("--replicaof")
                .with_argument(host)
                .with_argument(port);
        }
        chain.push(servers::redis(options)?);
    }
    for followed in &chain[..chain.len() - 1] {
        until("it is followed", || is_followed(followed)).await;
    }
    Ok(chain)
}

async fn is_followed(server: &Server) -> bool {
    Operator::of(server)
        .run::<String>(&["INFO", "replication"])
        .await
        .contains("state=online")
}

/// An address that leads new connections to another server when one has taken over, as a load
/// balancer does.
async fn balancer(server: watch::Receiver<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = *server.borrow();
            tokio::spawn(async move {
                tokio::io::copy_bidirectional(&mut client, &mut TcpStream::connect(server).await?)
                    .await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_renewal_is_confirmed_only_if_the_server_has_it_that_the_replicas_follow() {
    let lease = Duration::from_secs(12);
    let servers = or_skip!(chain([(); 3].map(|()| RedisOptions::new())).await);
    let old = Operator::of(&servers[0]);
    let new = Operator::of(&servers[1]);
    let in_charge = watch::Sender::new(address(&servers[0]));
    let locks = builder(balancer(in_charge.subscribe()).await)
        .with_replicas(1, Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    let kept = locks.acquire_with(&name("kept"), ttl(lease)).await.unwrap();
    let gone = locks.acquire_with(&name("gone"), ttl(lease)).await.unwrap();
    until("both are watched", || async {
        old.tracked_keys().await > 1
    })
    .await;
    let () = new.run(&["REPLICAOF", "NO", "ONE"]).await;
    // As if the old server had granted it after the new one took over.
    let () = new.run(&["DEL", "gone"]).await;
    until("the new server is followed", || is_followed(&servers[1])).await;
    in_charge.send_replace(address(&servers[1]));
    let _: usize = old
        .run(&["CLIENT", "KILL", "ID", &old.confirming().await.unwrap()])
        .await;
    // It finds that connection broken, so that the next one who waits for replicas connects.
    assert_eq!(
        locks.try_acquire("other").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let reason = tokio::time::timeout(lease, gone.lost())
        .await
        .expect("confirmed by replicas of a server that never got it");
    assert_eq!(reason, LossReason::Removed);
    assert_eq!(
        old.get("gone").await.as_deref(),
        Some(gone.owner().as_str().as_bytes()),
        "the old server renews it"
    );
    renewed_within(lease, &kept).await;
}

#[tokio::test]
async fn a_guard_ends_before_a_replica_grants_the_lock_again_whose_clock_is_ahead() {
    let lease = Duration::from_secs(8);
    let ahead = 3;
    let clock = or_skip!(tools::clock_ahead());
    let servers = or_skip!(
        chain([
            RedisOptions::new(),
            RedisOptions::new().with_clock_ahead(&clock, ahead)
        ])
        .await
    );
    let new = Operator::of(&servers[1]);
    let locks = builder(address(&servers[0]))
        .with_max_clock_offset(Duration::from_secs(ahead.into()))
        .connect()
        .await
        .unwrap();
    let guard = locks
        .acquire_with(&name("a"), ttl(lease).without_renewal())
        .await
        .unwrap();
    until("the replica has the lock", || async {
        new.get("a").await.is_some()
    })
    .await;
    servers[0].freeze().unwrap();
    let () = new.run(&["REPLICAOF", "NO", "ONE"]).await;
    let start = Instant::now();
    let next = builder(address(&servers[1]))
        .connect()
        .await
        .unwrap()
        .acquire("a")
        .await
        .unwrap();
    assert!(
        guard.is_lost(),
        "{next:?} while the first is valid for another {:?}",
        guard.remaining()
    );
    assert!(
        start.elapsed() < lease - Duration::from_secs(1),
        "the clocks are not apart: {:?}",
        start.elapsed()
    );
}

/// Sentinels that take no failure for one, so that all changes of the master are ours.
fn start() -> Result<RedisSentinel, Skip> {
    servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(600))
}

/// A client whose TTLs and polls take ten minutes.
async fn client(servers: &RedisSentinel, params: &str) -> RedisLock {
    RedisLock::connect(&format!(
        "{}?ttl=600s&poll_interval=600s&{params}",
        servers.url()
    ))
    .await
    .unwrap()
}

#[tokio::test]
async fn what_is_given_back_is_undone_also_on_the_server_that_took_over_with_it() {
    let servers = or_skip!(start());
    let old = operator(&servers, 0);
    let new = operator(&servers, 1);
    // There is one replica: nothing is ever confirmed.
    let locks = client(&servers, "replicas=2&replica_timeout=600s").await;
    let acquiring = waiter(&locks, "a");
    until("it waits for replicas", || async {
        old.confirming().await.is_some() && new.get("a").await.is_some()
    })
    .await;
    replace_master(&servers).await;
    // The next one who waits for replicas connects, and so the sentinels are asked.
    let other = waiter(&locks, "b");
    until("the new master is used", || async {
        new.confirming().await.is_some()
    })
    .await;
    old.end_confirming().await;
    let error = promptly("an error", acquiring).await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), old.get("a").await),
        (ErrorKind::Unavailable, None),
        "{error:?}"
    );
    until("the new master is free", || async {
        new.get("a").await.is_none()
    })
    .await;
    assert!(error.is_indeterminate(), "{error:?}");
    other.abort();
}

#[tokio::test]
async fn a_new_master_is_found_although_no_sentinel_can_be_subscribed_to() {
    let servers = or_skip!(start());
    let new = operator(&servers, 1);
    for sentinel in sentinels(&servers) {
        let () = sentinel
            .run(&[
                "ACL",
                "SETUSER",
                "watcher",
                "on",
                ">s4cret",
                "+sentinel|master",
                "+hello",
            ])
            .await;
    }
    let began = Instant::now();
    let locks = client(
        &servers,
        "sentinel_username=watcher&sentinel_password=s4cret",
    )
    .await;
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    until("the replica has the lock", || async {
        new.get("a").await.is_some()
    })
    .await;
    replace_master(&servers).await;
    // Nobody is asked for anything meanwhile: neither a renewal nor a poll is due for minutes.
    until_within(LOOKS, "the waiter is told of changes there", || async {
        new.tracked_keys().await > 0
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
    let refused = subscriptions_refused(&servers).await;
    let elapsed = began.elapsed();
    assert!(
        refused > 0 && refused <= elapsed.as_secs() + 1,
        "{refused} in {elapsed:?}"
    );
}

async fn subscriptions_refused(servers: &RedisSentinel) -> u64 {
    let mut refused = 0;
    for sentinel in sentinels(servers) {
        let log: Vec<HashMap<String, String>> = sentinel.run(&["ACL", "LOG"]).await;
        let entries = log.iter().filter(|entry| entry["object"] == "subscribe");
        refused += entries
            .map(|entry| entry["count"].parse::<u64>().unwrap())
            .sum::<u64>();
    }
    refused
}
