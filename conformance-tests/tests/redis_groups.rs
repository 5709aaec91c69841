//! Redis servers that belong together: they come up, and a replica takes over.
#![cfg(feature = "servers")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use lock_conformance::servers::{self, RedisOptions};

const LIMIT: Duration = Duration::from_secs(60);

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

macro_rules! or_skip {
    ($attempt:expr) => {
        match $attempt {
            Ok(value) => value,
            Err(skip) => {
                eprintln!("{skip}");
                return;
            }
        }
    };
}

#[tokio::test]
async fn a_replica_of_a_cluster_takes_over_and_the_old_master_follows_it() {
    let options = RedisOptions::new()
        .with_password("s3cret")
        .with_argument("--cluster-node-timeout")
        .with_argument("1000");
    let cluster = or_skip!(servers::redis_cluster(options, 3, 3));
    assert!(cluster.is_master(0) && !cluster.is_master(3));
    cluster.kill(0).unwrap();
    until("the replica takes over", || cluster.is_master(3));
    cluster.start(0).unwrap();
    until("the old master follows", || cluster.is_replica(0));
    cluster.wait_healthy().await.unwrap();
    assert!(!format!("{cluster:?}").is_empty());
}

#[tokio::test]
async fn sentinels_make_a_replica_the_master() {
    let options = RedisOptions::new().with_password("s3cret");
    let servers = or_skip!(servers::redis_sentinel(
        options,
        1,
        3,
        Duration::from_secs(1)
    ));
    assert_eq!(servers.master_by(0), Some(0));
    servers.kill(0).unwrap();
    until("the sentinels agree on the replica", || {
        (0..3).all(|at| servers.master_by(at) == Some(1))
    });
}
