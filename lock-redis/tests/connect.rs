//! Opening a connection, and what is said when that fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_conformance::servers::{self, FakeServer, RedisOptions};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, LockError, Registry};
use lock_redis::{RedisConnector, RedisLock, RedisQuorumLock};

mod common;
use common::{NEVER, Operator, address, builder, client, name, own, quorum, ttl, waiter};

const LIMIT: Duration = Duration::from_secs(1);

async fn refused(url: &str) -> LockError {
    common::choose_crypto();
    let start = Instant::now();
    let error = RedisLock::connect(&format!("{url}?connect_timeout=1s"))
        .await
        .expect_err(url);
    assert!(start.elapsed() < LIMIT * 5, "{:?}", start.elapsed());
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    assert_eq!(error.operation(), Some(lock_core::Operation::Connect));
    error
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = std::net::TcpListener::bind(host) else {
            continue;
        };
        let address = listener.local_addr().unwrap();
        drop(listener);
        let others = format!("{address},127.0.0.1:1,127.0.0.1:2");
        for at in [
            format!("redis://app:s3cret@{address}"),
            format!("redis+cluster://app:s3cret@{address}"),
        ] {
            let error = refused(&at).await;
            assert!(
                error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(),
                "{error:?}"
            );
            assert!(
                error
                    .to_string()
                    .contains(&format!("cannot connect to {address}: ")),
                "{error}"
            );
        }
        let error = refused(&format!("redis+sentinel://app:s3cret@{others}/service")).await;
        assert!(
            error
                .to_string()
                .contains(&format!("by the sentinels {}: ", others.replace(',', ", "))),
            "{error}"
        );
        let error = RedisQuorumLock::connect(&format!("redis+quorum://{others}"))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("fewer than 2 of 3 servers serve the request; cannot connect to "),
            "{error}"
        );
        assert_eq!(
            error.to_string().matches("cannot connect").count(),
            1,
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_is_unavailable_in_time() {
    let server = FakeServer::silent().await.unwrap();
    for scheme in ["redis", "rediss", "redis+cluster"] {
        let error = refused(&format!("{scheme}://:s3cret@{}", server.address())).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            error
                .to_string()
                .contains(&format!("{} within 1s: ", server.address())),
            "{error}"
        );
    }
}

#[tokio::test]
async fn garbage_is_an_unexpected_answer() {
    let server = FakeServer::garbage().await.unwrap();
    for url in [
        format!("redis://{}", server.address()),
        format!("redis://:s3cret@{}/3", server.address()),
    ] {
        let error = refused(&url).await;
        assert!(
            matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Unavailable),
            "{error:?}"
        );
    }
    let error = refused(&format!("rediss://{}", server.address())).await;
    assert!(
        matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Unavailable),
        "{error:?}"
    );
}

#[tokio::test]
async fn credentials_are_checked_and_not_shown() {
    let server = or_skip!(servers::redis(
        RedisOptions::new().with_password("right-one")
    ));
    for user in ["", ":s3cret@", "app:s3cret@"] {
        let error = refused(&format!("redis://{user}{}", server.endpoint())).await;
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.to_string().contains("LOCK_REDIS_PASSWORD"), "{error}");
    }
    let locks = RedisLock::connect(&format!("redis://:right-one@{}", server.endpoint()))
        .await
        .unwrap();
    let guard = locks.acquire("a").await.unwrap();
    assert!(!format!("{locks:?} {guard:?}").contains("right-one"));
}

#[tokio::test]
async fn an_access_rule_that_stops_a_script_half_way_is_named_and_what_was_done_undone() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let () = operator
        .run(&[
            "ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all", "-hincrby",
        ])
        .await;
    let locks = builder(address(&server)).with_credentials("app", "s3cret");
    let locks = locks.connect().await.unwrap();
    let residue = locks.residue();
    let error = locks.acquire("a").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::PermissionDenied && error.is_indeterminate(),
        "{error:?}"
    );
    assert!(error.to_string().contains("access rules"), "{error}");
    common::until("it is undone", || async { residue() == 0 }).await;
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn a_database_of_its_own_and_one_that_is_not_there() {
    let server = or_skip!(own());
    let zero = client(&server).await;
    let seven = builder(address(&server))
        .with_database(7)
        .connect()
        .await
        .unwrap();
    let _guard = zero.acquire("a").await.unwrap();
    let other = seven.try_acquire("a").await.unwrap();
    assert!(other.is_some(), "databases are apart");
    let error = refused(&format!("redis://{}/4711", server.endpoint())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{error:?}");
}

#[tokio::test]
async fn a_client_of_ones_own_and_the_registry() {
    let server = or_skip!(own());
    let ours = RedisLock::builder()
        .connect_with(redis::Client::open(server.url()).unwrap())
        .await
        .unwrap();
    let registered = Registry::new()
        .with(RedisConnector)
        .connect(server.url())
        .await
        .unwrap();
    let guard = ours.acquire("a").await.unwrap();
    assert!(registered.try_acquire("a").await.unwrap().is_none());
    assert_eq!(
        registered
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .owner,
        *guard.owner()
    );
}

#[tokio::test]
async fn tls_with_a_client_certificate_and_what_is_missing_without() {
    let certificates = common::certificates();
    let server = or_skip!(servers::redis(
        RedisOptions::new().with_mutual_tls(&certificates)
    ));
    let ca = certificates.ca();
    let cert = certificates.client_cert();
    let key = certificates.client_key();
    let trusting = format!("{}?connect_timeout=5s&ca={}", server.url(), ca.display());
    let url = format!("{trusting}&cert={}&key={}", cert.display(), key.display());
    let locks = RedisLock::connect(&url).await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    guard.release().await.unwrap();
    common::promptly("the waiter, over TLS too", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    for url in [trusting, server.url().to_owned()] {
        let error = RedisLock::connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("TLS handshake"), "{error:?}");
    }
}

#[tokio::test]
async fn a_connection_that_broke_while_it_was_idle_fails_no_operator() {
    let server = or_skip!(own());
    let servers = or_skip!(quorum::three());
    let locks = client(&server).await;
    let of_three = quorum::of(&servers).connect().await.unwrap();
    let locks: [&dyn DistributedLock; 2] = [&locks, &of_three];
    let operators = [vec![Operator::of(&server)], quorum::operators(&servers)];
    for (locks, operators) in locks.into_iter().zip(&operators) {
        let a = name("a");
        let guard = locks.acquire_with(&a, ttl(NEVER)).await.unwrap();
        cut_idle(operators).await;
        assert_eq!(
            &locks.inspect(&a).await.unwrap().unwrap().holder().owner,
            guard.owner()
        );
        cut_idle(operators).await;
        assert!(!locks.force_release(&a).await.unwrap().is_empty());
    }
}

/// Cuts all connections; nobody hears of it before the next request.
async fn cut_idle(operators: &[Operator]) {
    for operator in operators {
        let _: usize = operator.run(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    }
}
