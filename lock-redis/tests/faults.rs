//! Locks on a real server that fails, loses its data or is cut off.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use lock_conformance::servers::Trouble;
use lock_core::{
    DistributedLock, DistributedLockExt, ErrorKind, FencingToken, GuardState, LossReason,
};
use rand::RngExt;

mod common;
use common::{
    Operator, RULES, address, behind, builder, client, forgetful, name, own, promptly, renewed,
    ttl, until, waiter, warm_up,
};

async fn free(operator: &Operator, key: &str) {
    until("the lock is free", || async {
        operator.get(key).await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_effect_after_its_caller_gave_up_is_undone() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    server.freeze().unwrap();
    let error = locks
        .acquire_timeout("a", Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    server.thaw().unwrap();
    // The counter shows that the request did take effect; the lock would be held for ten minutes.
    until("the late effect", || async {
        operator.companion("a", "token").await.is_some()
    })
    .await;
    free(&operator, "a").await;
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn an_acquisition_survives_a_freeze_with_one_token() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let operator = Operator::of(&server);
    let locks = builder(address(&server))
        .with_request_timeout(Duration::from_millis(100))
        .with_connect_timeout(Duration::from_secs(10));
    let locks = locks.connect().await.unwrap();
    server.freeze().unwrap();
    let acquiring = waiter(&locks, "a");
    // The first request goes unanswered; the next one is made over another connection, once the
    // server accepts it.
    until("it waits for a second chance", || async {
        locks.residue()() > 0
    })
    .await;
    server.thaw().unwrap();
    let guard = promptly("the grant", acquiring).await.unwrap().unwrap();
    assert_eq!(
        operator.get("a").await.as_deref(),
        Some(guard.owner().as_str().as_bytes())
    );
    assert_eq!(
        operator.companion("a", "token").await,
        guard.token().map(|token| token.to_string())
    );
    let left = operator.run::<u64>(&["PTTL", "a"]).await;
    assert!(
        guard.remaining() <= Duration::from_millis(left),
        "the guard outlives the lock"
    );
    guard.release().await.unwrap();
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(
        operator.get("a").await,
        None,
        "a stray request took the lock again"
    );
}

#[tokio::test]
async fn a_lost_reply_is_resolved_by_the_owner_id() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let operator = Operator::of(&server);
    let (proxy, builder) = behind(&server).await;
    let locks = builder.connect().await.unwrap();
    proxy.set(Trouble::DropReplies);
    let acquiring = waiter(&locks, "a");
    until("the effect", || async { operator.get("a").await.is_some() }).await;
    let owner = operator.get("a").await;
    let token = operator.companion("a", "token").await;
    proxy.set(Trouble::None);
    let guard = promptly("the grant", acquiring).await.unwrap().unwrap();
    assert_eq!(Some(guard.owner().as_str().as_bytes()), owner.as_deref());
    assert_eq!(
        guard.token().map(|token| token.to_string()),
        token,
        "a token was minted twice"
    );
    guard.release().await.unwrap();
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn a_try_without_a_reply_is_indeterminate_and_undone() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let operator = Operator::of(&server);
    let (proxy, builder) = behind(&server).await;
    let locks = builder.connect().await.unwrap();
    proxy.set(Trouble::DropReplies);
    let error = locks.try_acquire("a").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.is_indeterminate(),
        "{error:?}"
    );
    // The release that undoes it takes effect although its reply is lost too.
    until("the effect", || async {
        operator.companion("a", "token").await.is_some()
    })
    .await;
    free(&operator, "a").await;
    proxy.set(Trouble::None);
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn cut_connections_cost_no_lock() {
    let server = or_skip!(own());
    let (proxy, builder) = behind(&server).await;
    let locks = builder.connect().await.unwrap();
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(5)))
        .await
        .unwrap();
    for _ in 0..3 {
        proxy.cut().await;
        renewed(&guard).await;
    }
    proxy.cut().await;
    guard.release().await.unwrap();
    proxy.cut().await;
    assert!(
        locks.try_acquire("a").await.unwrap().is_some(),
        "a connection found broken is replaced within the call"
    );
}

#[tokio::test]
async fn a_wait_for_a_server_whose_answers_take_longer_than_the_ttl_ends() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let (proxy, builder) = behind(&server).await;
    // Enough to make the link that tracks: it is not that which fails.
    let locks = builder
        .with_request_timeout(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    proxy.set(Trouble::Delay(Duration::from_millis(70)));
    let error = promptly(
        "the end",
        locks.acquire_with(&name("a"), ttl(Duration::from_millis(100))),
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    proxy.set(Trouble::None);
    until("no residue", || async { locks.residue()() == 0 }).await;
    free(&operator, "a").await;
}

#[tokio::test]
async fn a_blackholed_connection_is_replaced() {
    let server = or_skip!(own());
    let (proxy, builder) = behind(&server).await;
    let locks = builder.connect().await.unwrap();
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(1)))
        .await
        .unwrap();
    proxy.set(Trouble::Blackhole);
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Expired
    );
    assert_eq!(
        locks.try_acquire("b").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    proxy.set(Trouble::None);
    until("it works again", || async {
        locks
            .try_acquire("b")
            .await
            .is_ok_and(|guard| guard.is_some())
    })
    .await;
}

#[tokio::test]
async fn a_waiter_survives_the_loss_of_the_tracking_connection() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server);
    let guard = other.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    until("it waits", || async { operator.tracked_keys().await > 0 }).await;
    for _ in 0..3 {
        let before = operator.tracker().await;
        let _: usize = operator
            .run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
            .await;
        until("it waits again", || async {
            let now = operator.tracker().await;
            now.is_some() && now != before && operator.tracked_keys().await > 0
        })
        .await;
    }
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
async fn a_waiter_survives_a_restart_of_the_server() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server);
    let guard = other.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    until("it waits", || async { operator.tracked_keys().await > 0 }).await;
    server.restart().await.unwrap();
    assert!(!waiting.is_finished());
    assert_eq!(guard.state(), GuardState::Held);
    let token = guard.token();
    guard.release().await.unwrap();
    let next = promptly("the waiter", waiting).await.unwrap().unwrap();
    assert!(next.token() > token);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left_and_found_again() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(5)))
        .await
        .unwrap();
    let () = operator.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = locks.try_acquire("b").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(),
        "{error:?}"
    );
    assert!(error.to_string().contains("primary"), "{error}");
    let waiting = waiter(&locks, "b");
    until("it waits for a primary", || async { locks.residue()() > 3 }).await;
    let () = operator.run(&["REPLICAOF", "NO", "ONE"]).await;
    promptly("the grant", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    renewed(&guard).await;
    guard.release().await.unwrap();
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn removal_by_an_operator_is_told_promptly() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    for how in [
        ["DEL", "a"].as_slice(),
        &["SET", "a", "stolen"],
        &["FLUSHALL"],
    ] {
        let () = operator.run(&["DEL", "a"]).await;
        let guard = locks.acquire("a").await.unwrap();
        let _: redis::Value = operator.run(how).await;
        assert_eq!(
            promptly("the loss", guard.lost()).await,
            LossReason::Removed,
            "{how:?}"
        );
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    }
    assert_eq!(operator.get("a").await, None, "flushed");
}

#[tokio::test]
async fn removal_is_told_promptly_once_a_refused_user_is_let_in_again() {
    let server = or_skip!(forgetful());
    let operator = Operator::of(&server);
    let () = operator.run(&RULES).await;
    let restricted = builder(address(&server))
        .with_credentials("app", "s3cret")
        .with_namespace("app:");
    let locks = restricted.connect().await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    until("the guard is watched", || async {
        operator.tracked_keys().await > 0
    })
    .await;
    let () = operator.run(&["ACL", "SETUSER", "app", "off"]).await;
    let _: usize = operator
        .run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    // Each of its logins fails with this, that of the connection that tracks too: it has no other
    // reason to be made.
    until("a refusal", || async {
        !operator
            .run::<Vec<redis::Value>>(&["ACL", "LOG"])
            .await
            .is_empty()
    })
    .await;
    let () = operator.run(&["ACL", "SETUSER", "app", "on"]).await;
    let () = operator.run(&["DEL", "app:a"]).await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
}

#[tokio::test]
async fn a_server_that_lost_its_data_loses_the_locks() {
    let server = or_skip!(forgetful());
    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let renewing = locks
        .acquire_with(&name("b"), ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    server.restart().await.unwrap();
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    assert_eq!(
        promptly("the loss", renewing.lost()).await,
        LossReason::Removed
    );
    assert!(locks.acquire("a").await.unwrap().token() > guard.token());
}

#[tokio::test]
async fn tokens_grow_whatever_happens_to_the_data() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let mut last = FencingToken::new(0);
    for event in [
        "none",
        "expire",
        "restart",
        "FLUSHALL",
        "lose the counter",
        "raise the counter",
        "none",
        "restart",
    ] {
        match event {
            "expire" => {
                let short = ttl(Duration::from_millis(100)).without_renewal();
                let expiring = locks.acquire_with(&name("a"), short).await.unwrap();
                last = expiring.token().unwrap();
                promptly("the expiry", expiring.lost()).await;
                free(&operator, "a").await;
            }
            "restart" => server.restart().await.unwrap(),
            "FLUSHALL" => operator.run(&["FLUSHALL"]).await,
            "lose the counter" => operator.run(&["DEL", "a\u{1f}{a}"]).await,
            "raise the counter" => {
                last = FencingToken::new(last.as_u64() + 3_600_000_000);
                operator
                    .run::<()>(&["HSET", "a\u{1f}{a}", "token", &last.to_string()])
                    .await;
            }
            _ => {}
        }
        let guard = promptly("the grant", locks.acquire("a")).await.unwrap();
        assert!(
            guard.token().unwrap() > last,
            "after {event}: {:?} then {:?}",
            last,
            guard.token()
        );
        last = guard.token().unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_counter_ahead_of_the_clock_outlives_it() {
    const HOUR: u64 = 3_600_000;
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let left = async || {
        operator
            .run::<u64>(&["PTTL", "a\u{1f}{a}"])
            .await
            .div_ceil(HOUR)
    };
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(2)))
        .await
        .unwrap();
    let goal = FencingToken::new(guard.token().unwrap().as_u64() + 48 * HOUR * 1000);
    assert_eq!(guard.raise_token(goal).await.unwrap(), goal);
    assert_eq!((guard.token(), left().await), (Some(goal), 49));
    renewed(&guard).await;
    assert_eq!(left().await, 49, "a renewal leaves it");
    guard.release().await.unwrap();
    let next = locks.acquire("a").await.unwrap();
    assert_eq!(
        (next.token().unwrap().as_u64(), left().await),
        (goal.as_u64() + 1, 49)
    );
}

#[tokio::test]
async fn a_token_is_raised_as_far_as_scripts_count_and_by_its_holder_alone() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let guard = locks.acquire("a").await.unwrap();
    let own = guard.token();
    let last = FencingToken::new(9_000_000_000_000_000);
    let error = guard
        .raise_token(FencingToken::new(last.as_u64() + 1))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidOptions && error.to_string().contains("9000000000000000"),
        "{error}"
    );
    assert_eq!(
        (operator.companion("a", "token").await, guard.token()),
        (own.map(|own| own.to_string()), own)
    );
    assert_eq!(guard.raise_token(last).await.unwrap(), last);
    // A connection that broke while it was idle is no error.
    let _: usize = operator
        .run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    assert_eq!(
        promptly("the answer", guard.raise_token(FencingToken::new(0)))
            .await
            .unwrap(),
        last
    );
    assert_eq!(
        locks
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .token,
        Some(last)
    );
    guard.release().await.unwrap();
    let next = locks.acquire("a").await.unwrap();
    assert_eq!(next.token(), Some(FencingToken::new(last.as_u64() + 1)));
    // Somebody else's by now, of which the guard does not know yet.
    let () = operator
        .run(&["SET", "a", "somebody", "PX", "600000"])
        .await;
    assert_eq!(
        next.raise_token(FencingToken::new(last.as_u64()))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Lost
    );
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_told_them_again() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let flush = || operator.run::<()>(&["SCRIPT", "FLUSH"]);
    flush().await;
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(2)))
        .await
        .unwrap();
    flush().await;
    renewed(&guard).await;
    flush().await;
    assert!(locks.inspect(&name("a")).await.unwrap().is_some());
    flush().await;
    guard.release().await.unwrap();
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn dropped_acquisitions_leave_nothing() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server);
    let mut random = rand::rng();
    for round in 0..200 {
        let held = if round % 2 == 0 {
            None
        } else {
            Some(other.acquire("a").await.unwrap())
        };
        let wait_limit = Duration::from_micros(random.random_range(0..1500));
        // A grant that comes in time is dropped too, as a guard.
        let _ = tokio::time::timeout(wait_limit, locks.acquire("a")).await;
        if let Some(held) = held {
            held.release().await.unwrap();
        }
    }
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(operator.get("a").await, None);
    assert_eq!(
        operator.run::<Vec<String>>(&["KEYS", "*"]).await,
        ["a\u{1f}{a}"],
        "only the counter is left"
    );
}

#[tokio::test]
async fn renewals_have_a_connection_of_their_own() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    let short = ttl(Duration::from_secs(2));
    let guard = locks.acquire_with(&name("a"), short).await.unwrap();
    renewed(&guard).await;
    // The operator's, and those for commands, reports and renewals.
    until("all connections", || async {
        operator.clients().await == 4
    })
    .await;
    renewed(&guard).await;
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_dropped_client_closes_its_connections() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    until("the guard is watched", || async {
        operator.tracked_keys().await > 0
    })
    .await;
    drop(locks);
    until("the guard keeps the client alive", || async {
        operator.clients().await == 4
    })
    .await;
    drop(guard);
    until("the connections are closed", || async {
        operator.clients().await == 1
    })
    .await;
    assert_eq!(operator.get("a").await, None);

    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    locks.shutdown().await.unwrap();
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Shutdown));
    until("the connections are closed", || async {
        operator.clients().await == 1
    })
    .await;
    assert_eq!(
        locks.acquire("a").await.unwrap_err().kind(),
        ErrorKind::Shutdown
    );
    assert_eq!(operator.get("a").await, None);
    drop(guard);
}

#[tokio::test]
async fn a_line_of_waiters_puts_up_with_a_dead_server_together() {
    let server = or_skip!(own());
    warm_up(&server).await;
    let wait_limit = Duration::from_secs(2);
    let locks = builder(address(&server))
        .with_ttl(wait_limit)
        .connect()
        .await
        .unwrap();
    let _guard = locks.acquire("a").await.unwrap();
    let waiters: Vec<_> = (0..8).map(|_| waiter(&locks, "a")).collect();
    until("all wait", || async { locks.residue()() > waiters.len() }).await;
    server.kill().unwrap();
    let start = std::time::Instant::now();
    for waiter in waiters {
        assert_eq!(
            promptly("an error", waiter)
                .await
                .unwrap()
                .unwrap_err()
                .kind(),
            ErrorKind::Unavailable
        );
    }
    // One after the other they would take eight times as long.
    assert!(start.elapsed() < wait_limit * 4, "{:?}", start.elapsed());
}
