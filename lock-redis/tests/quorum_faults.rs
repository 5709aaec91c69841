//! What silent, slow and partial servers of a quorum cost, and what is left after them, with real
//! servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use futures_util::future::join_all;
use lock_conformance::servers::{Server, TcpProxy, Trouble};
use lock_core::{
    DistributedLock, DistributedLockExt, ErrorKind, GuardState, LossReason, backend::SHUTDOWN_LIMIT,
};
use lock_redis::RedisQuorumLockBuilder;
use rand::RngExt;

mod common;
use common::{
    NEVER, Operator, RULES, address, name, promptly,
    quorum::{self, operators, three, three_that_forget},
    renewed_within, ttl, until, waiter,
};

/// Time that a server has to answer.
const LIMIT: Duration = Duration::from_millis(300);

fn builder(servers: &[Server]) -> RedisQuorumLockBuilder {
    quorum::of(servers).with_request_timeout(LIMIT)
}

#[tokio::test]
async fn a_server_that_never_answered_does_not_hold_up_a_shutdown() {
    let servers = or_skip!(three());
    servers[2].freeze().unwrap();
    // The connections to it are waited for that long.
    let locks = builder(&servers).with_connect_timeout(NEVER);
    let locks = promptly("the connection", locks.connect()).await.unwrap();
    let guard = promptly("the grant", locks.acquire("a")).await.unwrap();
    until("the guard is watched", || async {
        Operator::of(&servers[0]).tracked_keys().await > 0
    })
    .await;
    promptly("the release", guard.release()).await.unwrap();
    assert!(locks.residue()() > 0, "somebody still connects");
    let shutdown = tokio::time::timeout(SHUTDOWN_LIMIT / 2, locks.shutdown()).await;
    shutdown.expect("it waits for a silent server").unwrap();
    assert_eq!(locks.residue()(), 0);
}

#[tokio::test]
async fn a_removal_on_a_majority_is_told_although_the_rest_is_silent() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    // Whoever waits for the silent one waits for ten minutes.
    let locks = builder(&servers)
        .with_request_timeout(NEVER)
        .connect()
        .await
        .unwrap();
    let guard = locks.acquire("a").await.unwrap();
    for operator in &operators {
        until("the guard is watched", || async {
            operator.tracked_keys().await > 0
        })
        .await;
    }
    // One alone is no loss, and all are read again.
    let before = operators[2].calls("get").await;
    let () = operators[0].run(&["DEL", "a"]).await;
    until("the third has answered", || async {
        operators[2].calls("get").await > before
    })
    .await;
    until("the first reports again", || async {
        operators[0].tracked_keys().await > 0
    })
    .await;
    assert_eq!(guard.state(), GuardState::Held);
    servers[2].freeze().unwrap();
    let () = operators[1].run(&["DEL", "a"]).await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
}

#[tokio::test]
async fn a_release_that_a_majority_answers_late_tells_that_the_lock_was_lost() {
    let servers = or_skip!(three_that_forget());
    let operators = operators(&servers);
    let locks = builder(&servers).connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    for operator in &operators {
        until("all have granted", || async {
            operator.get("a").await.is_some()
        })
        .await;
    }
    let () = operators[0].run(&["DEL", "a"]).await;
    servers[1].kill().unwrap();
    servers[2].kill().unwrap();
    // The connections are found broken by this, and not by the release, which then is not sent.
    assert_eq!(
        locks.try_acquire("b").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let mut release = tokio::spawn(guard.release());
    tokio::time::timeout(LIMIT * 3, &mut release)
        .await
        .expect_err("one server cannot tell");
    servers[1].start().await.unwrap();
    let error = promptly("the release", release).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
}

#[tokio::test]
async fn servers_that_can_only_be_read_are_out_of_reach() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let locks = builder(&servers)
        .with_ttl(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    // Every look shows that the lock is free.
    for operator in &operators[..2] {
        let () = operator
            .run(&["CONFIG", "SET", "min-replicas-to-write", "1"])
            .await;
    }
    let error = promptly("an error", locks.acquire("a")).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("2 of 3"),
        "{error:?}"
    );
    for operator in &operators[..2] {
        let () = operator
            .run(&["CONFIG", "SET", "min-replicas-to-write", "0"])
            .await;
    }
    promptly("the grant", locks.acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn dropped_acquisitions_leave_nothing() {
    let servers = or_skip!(three());
    let locks = builder(&servers).connect().await.unwrap();
    let other = builder(&servers).connect().await.unwrap();
    let mut random = rand::rng();
    for round in 0..100 {
        let held = if round % 2 == 0 {
            None
        } else {
            Some(promptly("the holder", other.acquire("a")).await.unwrap())
        };
        let wait_limit = Duration::from_micros(random.random_range(0..4000));
        // A grant that comes in time is dropped too, as a guard.
        let _ = tokio::time::timeout(wait_limit, locks.acquire("a")).await;
        if let Some(held) = held {
            held.release().await.unwrap();
        }
    }
    until("no residue", || async {
        locks.residue()() + other.residue()() == 0
    })
    .await;
    for server in &servers {
        let left: Vec<String> = Operator::of(server).run(&["KEYS", "*"]).await;
        assert_eq!(left, ["a\u{1f}{a}"], "only the counter is left");
    }
}

#[tokio::test]
async fn a_dropped_client_closes_its_connections() {
    let servers = or_skip!(three());
    let operators = operators(&servers);
    let locks = builder(&servers).connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    for operator in &operators {
        until("the guard is watched", || async {
            operator.tracked_keys().await > 0
        })
        .await;
    }
    drop(locks);
    for operator in &operators {
        until("only its own and the operator are left", || async {
            operator.clients().await == 4
        })
        .await;
    }
    assert_eq!(
        guard.state(),
        GuardState::Held,
        "the guard keeps the client alive"
    );
    drop(guard);
    for operator in &operators {
        until("the connections are closed", || async {
            operator.clients().await == 1
        })
        .await;
        assert_eq!(operator.get("a").await, None);
    }
}

#[tokio::test]
async fn waiters_poll_while_some_server_refuses_to_track() {
    for blind in [1, 3] {
        let servers = or_skip!(three());
        let operators = operators(&servers);
        for (at, operator) in operators.iter().enumerate() {
            let rules = RULES
                .into_iter()
                .filter(|rule| at >= blind || *rule != "+client|tracking");
            let () = operator.run(&rules.collect::<Vec<_>>()).await;
        }
        let locks = builder(&servers)
            .with_credentials("app", "s3cret")
            .with_namespace("app:");
        let locks = locks.connect().await.unwrap();
        let guard = locks.acquire("a").await.unwrap();
        let waiting = waiter(&locks, "a");
        until("it looks again and again", || async {
            operators[0].calls("pttl").await > 2
        })
        .await;
        // Nobody tells of this where nothing is tracked.
        guard.release().await.unwrap();
        let guard = promptly("the waiter", waiting).await.unwrap().unwrap();
        guard.release().await.unwrap();
        // Renewals tell of a loss.
        let guard = locks
            .acquire_with(&name("a"), ttl(Duration::from_secs(3)))
            .await
            .unwrap();
        for operator in &operators {
            let () = operator.run(&["DEL", "app:a"]).await;
        }
        assert_eq!(
            promptly("the loss", guard.lost()).await,
            LossReason::Removed
        );
    }
}

#[tokio::test]
async fn a_minority_whose_replies_are_late_or_lost_is_not_noticed() {
    let servers = or_skip!(three());
    let proxy = TcpProxy::start(address(&servers[2])).await.unwrap();
    let addresses = [address(&servers[0]), address(&servers[1]), proxy.address()];
    let builder = || {
        quorum::at(addresses)
            .with_request_timeout(LIMIT)
            .with_connect_timeout(Duration::from_secs(2))
    };
    let third = Operator::of(&servers[2]);
    for trouble in [
        Trouble::Delay(LIMIT * 2),
        Trouble::DropReplies,
        Trouble::Blackhole,
        Trouble::Refuse,
    ] {
        let locks = builder().connect().await.unwrap();
        let other = builder().connect().await.unwrap();
        let held = locks.acquire("held").await.unwrap();
        until("all have granted", || async {
            third.get("held").await.is_some()
        })
        .await;
        proxy.set(trouble);
        let mut last = None;
        for _ in 0..10 {
            let guard = promptly("the grant", locks.acquire("a")).await.unwrap();
            assert!(
                guard.token() > last,
                "{trouble:?}: {last:?}, then {:?}",
                guard.token()
            );
            last = guard.token();
            promptly("the release", guard.release()).await.unwrap();
        }
        let mut guards = Vec::new();
        for term in [2, 3, 5, 9, 30] {
            let short = ttl(Duration::from_secs(term));
            guards.push(
                promptly(
                    "the grant",
                    locks.acquire_with(&name(&format!("for {term} s")), short),
                )
                .await
                .unwrap(),
            );
        }
        assert!(
            promptly("the refusal", other.try_acquire("for 2 s"))
                .await
                .unwrap()
                .is_none(),
            "{trouble:?}"
        );
        join_all(
            guards
                .iter()
                .map(|guard| renewed_within(guard.remaining(), guard)),
        )
        .await;
        for guard in guards {
            promptly("the release", guard.release()).await.unwrap();
        }
        promptly("the release", held.release()).await.unwrap();
        // Requests that took effect unnoticed, or could not be released, are undone.
        proxy.set(Trouble::None);
        until("no residue", || async {
            locks.residue()() + other.residue()() == 0
        })
        .await;
        assert_eq!(
            (third.get("a").await, third.get("held").await),
            (None, None),
            "{trouble:?}"
        );
    }
}
