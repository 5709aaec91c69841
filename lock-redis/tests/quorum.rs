//! Locks on a quorum of real servers some of which fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use lock_conformance::servers::{RedisOptions, Server};
use lock_core::{DistributedLockExt, ErrorKind, GuardState, LossReason, RetryAdvice};
use lock_redis::{RedisQuorumLock, RedisQuorumLockBuilder};
use tokio::task::JoinSet;

mod common;
use common::{
    NEVER, Operator, assert_untrusted,
    contention::Contention,
    name, promptly,
    quorum::{self, operators, start, three, three_that_forget},
    renewed, restricted, trusting, ttl, until, waiter,
};

fn builder(servers: &[Server]) -> RedisQuorumLockBuilder {
    quorum::of(servers).with_request_timeout(Duration::from_secs(2))
}

async fn client(servers: &[Server]) -> RedisQuorumLock {
    let locks = builder(servers).connect().await.unwrap();
    // The scripts are known, and every server is connected to.
    locks
        .acquire("warm-up")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    until("all have taken part", || async {
        holders(servers, "warm-up").await == 0 && locks.residue()() == 0
    })
    .await;
    locks
}

/// Number of servers that keep the lock.
async fn holders(servers: &[Server], key: &str) -> usize {
    let mut holders = 0;
    for operator in operators(servers) {
        holders += usize::from(operator.get(key).await.is_some());
    }
    holders
}

async fn nothing_is_left(locks: &RedisQuorumLock, servers: &[Server], key: &str) {
    until("no residue", || async { locks.residue()() == 0 }).await;
    assert_eq!(holders(servers, key).await, 0);
}

#[tokio::test]
async fn a_dead_minority_is_not_noticed() {
    let servers = or_skip!(three());
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let before = locks.acquire("before").await.unwrap();
    servers[1].kill().unwrap();
    // A new client connects too.
    let late = promptly("the connection", builder(&servers).connect())
        .await
        .unwrap();
    for _ in 0..20 {
        promptly("a cycle", async {
            late.acquire("a").await.unwrap().release().await
        })
        .await
        .unwrap();
    }
    let guard = locks
        .acquire_with(
            &name("a"),
            ttl(Duration::from_secs(3)).with_metadata("note"),
        )
        .await
        .unwrap();
    assert!(other.try_acquire("a").await.unwrap().is_none());
    let info = other.inspect(&name("a")).await.unwrap().unwrap();
    assert_eq!(
        (
            info.holder().token,
            info.holder().metadata.as_deref(),
            &info.holder().owner
        ),
        (guard.token(), Some("note"), guard.owner())
    );
    renewed(&guard).await;
    let waiting = waiter(&other, "a");
    until("it waits", || async {
        Operator::of(&servers[0]).tracked_keys().await > 0
    })
    .await;
    guard.release().await.unwrap();
    let next = promptly("the waiter", waiting).await.unwrap().unwrap();
    assert!(!late.force_release(&name("a")).await.unwrap().is_empty());
    assert_eq!(promptly("the loss", next.lost()).await, LossReason::Removed);
    before.release().await.unwrap();
}

#[tokio::test]
async fn a_url_is_opened_and_needs_a_majority() {
    let servers = or_skip!(three());
    let endpoints: Vec<_> = servers.iter().map(Server::endpoint).collect();
    let url = format!(
        "redis+quorum://{}?connect_timeout=2s&namespace=prod:",
        endpoints.join(",")
    );
    let registry = lock_core::Registry::new().with(lock_redis::RedisQuorumConnector);
    assert_eq!(
        registry
            .capabilities(&"redis+quorum://a,b,c".parse().unwrap())
            .unwrap()
            .backend,
        "redis+quorum"
    );
    let locks = registry.connect(&url).await.unwrap();
    let guard = locks.acquire("a").await.unwrap();
    until("all have granted", || async {
        holders(&servers, "prod:a").await == 3
    })
    .await;
    guard.release().await.unwrap();
    servers[0].kill().unwrap();
    registry.connect(&url).await.unwrap();
    servers[1].kill().unwrap();
    let error = promptly("an error", registry.connect(&url))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("2 of 3"),
        "{error}"
    );
}

#[tokio::test]
async fn a_frozen_minority_is_not_waited_for() {
    let servers = or_skip!(three());
    client(&servers).await;
    // Whoever waits for it waits for ten minutes.
    let locks = builder(&servers)
        .with_request_timeout(NEVER)
        .connect()
        .await
        .unwrap();
    locks.acquire("a").await.unwrap().release().await.unwrap();
    servers[2].freeze().unwrap();
    for _ in 0..20 {
        promptly("a cycle", async {
            locks.acquire("a").await.unwrap().release().await
        })
        .await
        .unwrap();
    }
    let guard = promptly(
        "the grant",
        locks.acquire_with(&name("a"), ttl(Duration::from_secs(3))),
    )
    .await
    .unwrap();
    promptly("a renewal", renewed(&guard)).await;
    assert!(
        promptly("the look", locks.inspect(&name("a")))
            .await
            .unwrap()
            .is_some()
    );
    promptly("the release", guard.release()).await.unwrap();
    servers[2].thaw().unwrap();
    nothing_is_left(&locks, &servers, "a").await;
}

#[tokio::test]
async fn a_frozen_majority_is_an_error_and_loses_guards_at_their_deadline() {
    let servers = or_skip!(three());
    let locks = builder(&servers)
        .with_request_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(1)))
        .await
        .unwrap();
    let other = locks.acquire("b").await.unwrap();
    servers[0].freeze().unwrap();
    servers[1].freeze().unwrap();
    let error = locks.try_acquire("c").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable
            && error.retry() == RetryAdvice::Later
            && error.is_indeterminate(),
        "{error:?}"
    );
    assert!(error.to_string().contains("2 of 3"), "{error}");
    // A waiter puts up with it for a TTL, alone or in a queue.
    let impatient = builder(&servers)
        .with_ttl(Duration::from_secs(1))
        .with_poll_interval(Duration::from_millis(300));
    servers[0].thaw().unwrap();
    let impatient = impatient
        .with_request_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    let held = impatient.acquire("e").await.unwrap();
    let waiting = waiter(&impatient, "e");
    until("it watches", || async {
        Operator::of(&servers[0]).tracked_keys().await > 0
    })
    .await;
    servers[0].freeze().unwrap();
    let error = promptly("an error", impatient.acquire("f"))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.retry() == RetryAdvice::Later,
        "{error:?}"
    );
    let error = promptly("an error", waiting).await.unwrap().unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.retry() == RetryAdvice::Later,
        "{error:?}"
    );
    drop(held);
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Expired
    );
    assert_eq!(other.state(), GuardState::Held);
    servers[0].thaw().unwrap();
    servers[1].thaw().unwrap();
    until("it works again", || async {
        locks
            .try_acquire("d")
            .await
            .is_ok_and(|guard| guard.is_some())
    })
    .await;
    other.release().await.unwrap();
    drop(guard);
    for key in ["a", "b", "c", "d"] {
        nothing_is_left(&locks, &servers, key).await;
    }
}

#[tokio::test]
async fn what_only_a_minority_granted_is_given_back() {
    let servers = or_skip!(three());
    let locks = client(&servers).await;
    servers[0].freeze().unwrap();
    servers[1].freeze().unwrap();
    let error = locks
        .acquire_timeout("a", Duration::from_millis(500))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // At once where it was granted; elsewhere it takes effect now, and is undone.
    until("the third is free", || async {
        Operator::of(&servers[2]).get("a").await.is_none()
    })
    .await;
    servers[0].thaw().unwrap();
    servers[1].thaw().unwrap();
    until("the late effect", || async {
        Operator::of(&servers[0])
            .companion("a", "token")
            .await
            .is_some()
    })
    .await;
    until("no residue", || async { locks.residue()() == 0 }).await;
    until("all are free", || async {
        holders(&servers, "a").await == 0
    })
    .await;
}

#[tokio::test]
async fn a_minority_that_forgot_grants_to_nobody_else() {
    let servers = or_skip!(three_that_forget());
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    until("all have granted", || async {
        holders(&servers, "a").await == 3
    })
    .await;
    servers[0].restart().await.unwrap();
    for _ in 0..5 {
        assert!(other.try_acquire("a").await.unwrap().is_none());
    }
    renewed(&guard).await;
    assert_eq!(
        holders(&servers, "a").await,
        2,
        "what the others tried there was given back"
    );
    // A majority that forgot is a loss.
    servers[1].restart().await.unwrap();
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    promptly("the next", other.acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_removal_on_a_majority_is_a_loss_and_on_a_minority_is_none() {
    let servers = or_skip!(three());
    let locks = client(&servers).await;
    let operators = operators(&servers);
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    let () = operators[0].run(&["DEL", "a"]).await;
    renewed(&guard).await;
    assert_eq!(guard.state(), GuardState::Held);
    let () = operators[1].run(&["SET", "a", "stolen"]).await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_waiter_is_woken_when_a_majority_is_free() {
    let servers = or_skip!(three());
    let locks = client(&servers).await;
    let operators = operators(&servers);
    for operator in &operators {
        let () = operator.run(&["SET", "a", "somebody"]).await;
    }
    let waiting = waiter(&locks, "a");
    for operator in &operators {
        until("it watches", || async { operator.tracked_keys().await > 0 }).await;
    }
    let () = operators[0].run(&["DEL", "a"]).await;
    let () = operators[2].run(&["DEL", "a"]).await;
    let guard = promptly("the waiter", waiting).await.unwrap().unwrap();
    assert_eq!(
        operators[1].get("a").await.as_deref(),
        Some(b"somebody".as_slice())
    );
    guard.release().await.unwrap();
    // Two that disagree prevent a majority, and nothing is left of what was tried.
    let () = operators[0].run(&["SET", "a", "other"]).await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    until("the third is free", || async {
        operators[2].get("a").await.is_none()
    })
    .await;
}

#[tokio::test]
async fn tokens_grow_from_majority_to_majority() {
    let servers = or_skip!(three());
    let locks = client(&servers).await;
    let operators = operators(&servers);
    let mut last = locks.acquire("a").await.unwrap().token().unwrap();
    let companion = "a\u{1f}{a}";
    for round in 0..6 {
        // One counter is far ahead; the next majority does not have it.
        let ahead = round % 3;
        let away = (round + 2) % 3;
        let far = (last.as_u64() + 3_600_000_000).to_string();
        let () = operators[ahead]
            .run(&["HSET", companion, "token", &far])
            .await;
        servers[away].freeze().unwrap();
        let first = promptly("the first", locks.acquire("a")).await.unwrap();
        let first_token = first.token().unwrap();
        let info = locks.inspect(&name("a")).await.unwrap().unwrap();
        assert_eq!(info.holder().token, Some(first_token));
        first.release().await.unwrap();
        servers[away].thaw().unwrap();
        servers[ahead].freeze().unwrap();
        let second = promptly("the second", locks.acquire("a")).await.unwrap();
        let second_token = second.token().unwrap();
        second.release().await.unwrap();
        servers[ahead].thaw().unwrap();
        assert!(
            last < first_token && first_token < second_token,
            "{last} {first_token} {second_token}"
        );
        last = second_token;
    }
}

#[tokio::test]
async fn two_of_five_may_fail_and_three_may_not() {
    let servers = or_skip!(start(5, &RedisOptions::new()));
    let locks = client(&servers).await;
    let other = client(&servers).await;
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(5)))
        .await
        .unwrap();
    servers[0].kill().unwrap();
    servers[3].freeze().unwrap();
    renewed(&guard).await;
    assert!(
        promptly("the refusal", other.try_acquire("a"))
            .await
            .unwrap()
            .is_none()
    );
    let waiting = waiter(&other, "a");
    until("it watches", || async {
        Operator::of(&servers[1]).tracked_keys().await > 0
    })
    .await;
    let token = guard.token();
    guard.release().await.unwrap();
    let next = promptly("the waiter", waiting).await.unwrap().unwrap();
    assert!(next.token() > token, "{:?} after {token:?}", next.token());
    let short = locks
        .acquire_with(&name("b"), ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    renewed(&short).await;

    servers[4].kill().unwrap();
    let error = promptly("an error", locks.try_acquire("c"))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("3 of 5"),
        "{error:?}"
    );
    assert_eq!(
        promptly("the loss", short.lost()).await,
        LossReason::Expired
    );
    assert_eq!(next.state(), GuardState::Held);
    servers[3].thaw().unwrap();
    until("it works again", || async {
        locks
            .try_acquire("c")
            .await
            .is_ok_and(|guard| guard.is_some())
    })
    .await;
    for down in [0, 4] {
        servers[down].start().await.unwrap();
    }
    next.release().await.unwrap();
    drop(short);
    for key in ["a", "b", "c"] {
        until("nothing is left", || async {
            holders(&servers, key).await == 0
        })
        .await;
        nothing_is_left(&locks, &servers, key).await;
    }
}

#[tokio::test]
async fn a_user_with_the_documented_rules_holds_a_quorum_over_tls() {
    let certificates = common::certificates();
    let others = common::certificates();
    let user = common::RULES[2..].iter().fold(
        RedisOptions::new().with_argument("--user"),
        |options, rule| options.with_argument(*rule),
    );
    let servers = or_skip!(start(5, &user.with_mutual_tls(&certificates)));
    let endpoints: Vec<_> = servers.iter().map(Server::endpoint).collect();
    let url = format!("rediss+quorum://{}", endpoints.join(","));
    let theirs = format!(
        "{}&ca={}",
        restricted(&url, &certificates),
        others.ca().display()
    );
    assert_untrusted(&RedisQuorumLock::connect(&theirs).await.unwrap_err());
    let connect = || async {
        RedisQuorumLock::connect(&trusting(&url, &certificates))
            .await
            .unwrap()
    };
    let locks = connect().await;
    let other = connect().await;
    for down in [None, Some([1, 4])] {
        down.into_iter()
            .flatten()
            .for_each(|at: usize| servers[at].kill().unwrap());
        let guard = locks
            .acquire_with(
                &name("a"),
                ttl(Duration::from_secs(5)).with_metadata("note"),
            )
            .await
            .unwrap();
        let waiting = waiter(&other, "a");
        renewed(&guard).await;
        assert!(locks.try_acquire("a").await.unwrap().is_none() && !waiting.is_finished());
        let info = other.inspect(&name("a")).await.unwrap().unwrap();
        assert_eq!(
            (info.holder().token, info.holder().metadata.as_deref()),
            (guard.token(), Some("note"))
        );
        guard.release().await.unwrap();
        promptly("the waiter", waiting)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        let removed = locks.acquire("b").await.unwrap();
        assert!(!other.force_release(&name("b")).await.unwrap().is_empty());
        assert_eq!(
            promptly("the loss", removed.lost()).await,
            LossReason::Removed
        );
    }
}

/// One of the two is frozen, and the other is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_exclude_each_other_while_two_of_five_come_and_go() {
    let servers = or_skip!(start(5, &RedisOptions::new()));
    let contention = Contention::default();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let locks = builder(&servers)
            .with_request_timeout(Duration::from_millis(200))
            .with_poll_interval(Duration::from_secs(1));
        let locks = locks.connect().await.unwrap();
        for _ in 0..3 {
            tasks.spawn(contention.clone().contend(locks.clone(), 15));
        }
    }
    let contenders = tasks.len();
    let all = 4 * 3 * 15;
    for round in (0..).take_while(|_| contention.count() < all) {
        let frozen = &servers[round % 5];
        let dead = &servers[(round + 1) % 5];
        frozen.freeze().unwrap();
        dead.kill().unwrap();
        // A release waits for those who granted the lock, and may need one of the two.
        let enough = all.min(contention.count() + 10);
        until("the others go on", || async {
            contention.count() >= enough || contention.resting() == contenders
        })
        .await;
        frozen.thaw().unwrap();
        dead.start().await.unwrap();
        let before = contention.count();
        until("all go on", || async {
            contention.count() > before || before == all
        })
        .await;
        while let Some(outcome) = tasks.try_join_next() {
            outcome.unwrap();
        }
    }
    promptly("the last releases", tasks.join_all()).await;
    assert_eq!(contention.count(), all);
}
