//! What is in the store after a lock was used, for how long, and what tokens are made of.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lock_conformance::servers::{RedisOptions, tools};
use lock_core::{DistributedLockExt, ErrorKind};
use lock_redis::RedisLock;

mod common;
use common::{NEVER, Operator, client, name, own, promptly, quorum, ttl, until, waiter};

/// The largest integer below which Lua's numbers are exact.
const EXACT: u64 = 1 << 53;

#[tokio::test]
async fn after_a_release_only_the_counter_is_left_and_not_for_long() {
    const LIFE: u64 = 60_000;
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let url = format!("{}?ttl=10s&counter_ttl=1m", server.url());
    let locks = RedisLock::connect(&url).await.unwrap();
    let noted = ttl(Duration::from_secs(10)).with_metadata("note");
    let guard = locks.acquire_with(&name("a"), noted.clone()).await.unwrap();
    guard.release().await.unwrap();
    let counter = "a\u{1f}{a}";
    assert_eq!(
        operator.run::<Vec<String>>(&["HKEYS", counter]).await,
        ["token"]
    );
    let left = operator.run::<u64>(&["PTTL", counter]).await;
    assert!((LIFE..=LIFE + 10_000).contains(&left), "{left}");
    assert_eq!(
        operator.run::<Vec<String>>(&["KEYS", "*"]).await,
        [counter],
        "nothing else"
    );
    // What was removed by force neither.
    let guard = locks.acquire_with(&name("a"), noted).await.unwrap();
    locks.force_release("a").await.unwrap();
    assert_eq!(
        operator.run::<Vec<String>>(&["HKEYS", counter]).await,
        ["token"]
    );
    drop(guard);
}

#[tokio::test]
async fn by_default_a_counter_lives_for_minutes() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    locks.acquire("a").await.unwrap().release().await.unwrap();
    let left = Duration::from_millis(operator.run::<u64>(&["PTTL", "a\u{1f}{a}"]).await);
    assert!(
        left > NEVER && left <= NEVER + Duration::from_secs(600),
        "{left:?}"
    );
}

#[tokio::test]
async fn tokens_grow_through_the_end_of_a_counter() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let url = format!("{}?ttl=200ms&counter_ttl=1s", server.url());
    let locks = RedisLock::connect(&url).await.unwrap();
    let mut last = None;
    for _ in 0..3 {
        let guard = locks.acquire("a").await.unwrap();
        assert!(guard.token() > last, "{:?} after {last:?}", guard.token());
        last = guard.token();
        guard.release().await.unwrap();
        until("the counter has ended", || async {
            operator.companion("a", "token").await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn a_counter_at_its_end_is_an_error_and_no_token_is_handed_out_twice() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = client(&server).await;
    let counter = "a\u{1f}{a}";
    let last = (EXACT - 1).to_string();
    let () = operator
        .run(&["HSET", counter, "token", &(EXACT - 2).to_string()])
        .await;
    let guard = locks.acquire("a").await.unwrap();
    assert_eq!(guard.token().unwrap().to_string(), last);
    // Whoever waits is told when the turn comes.
    let other = client(&server).await;
    let waiting = waiter(&other, "a");
    until("it waits", || async { operator.tracked_keys().await > 0 }).await;
    guard.release().await.unwrap();
    let waited = promptly("the error", waiting).await.unwrap().unwrap_err();
    let tried = locks.try_acquire("a").await.unwrap_err();
    let asked = locks.acquire("a").await.unwrap_err();
    for error in [waited, tried, asked] {
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
        assert!(
            error.to_string().contains("counter") && !error.is_indeterminate(),
            "{error:?}"
        );
    }
    assert_eq!(operator.get("a").await, None, "it is not held");
    assert_eq!(operator.companion("a", "token").await, Some(last));
    // What is no number at all.
    let () = operator.run(&["HSET", counter, "token", "nonsense"]).await;
    let error = locks.try_acquire("a").await.unwrap_err();
    assert!(error.to_string().contains("counter"), "{error}");
    assert_eq!(operator.get("a").await, None, "it is not held");
    // An operator who removes the counter lets tokens begin again with the clock.
    let () = operator.run(&["DEL", counter]).await;
    locks.acquire("a").await.unwrap().release().await.unwrap();
    until("no residue", || async {
        other.residue()() + locks.residue()() == 0
    })
    .await;
}

#[tokio::test]
async fn the_clock_of_a_quorums_client_sets_no_tokens() {
    const HOUR: u64 = 3_600_000_000;
    let clock = or_skip!(tools::clock_ahead());
    let options = RedisOptions::new().with_clock_ahead(&clock, 3600);
    let servers = or_skip!(quorum::start(3, &options));
    let locks = quorum::of(&servers).connect().await.unwrap();
    // The clients' clock is an hour behind the servers'.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_micros()).unwrap();
    let guard = locks.acquire("a").await.unwrap();
    let token = guard.token().unwrap().as_u64();
    assert!(token > now + HOUR - 10_000_000, "{token} at {now}");
    guard.release().await.unwrap();
}
