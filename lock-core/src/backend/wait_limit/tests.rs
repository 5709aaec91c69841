use std::task::{Context, Waker};

use std::{error::Error, pin::Pin, task::Poll};

use super::*;
use crate::{AcquireOptions, Capabilities, Consistency, RetryAdvice};

const TTL: Duration = Duration::from_secs(30);
const REQUEST: Duration = Duration::from_secs(6);
const SECOND: Duration = Duration::from_secs(1);

fn wait_limit(timeout: Option<Duration>) -> WaitLimit {
    let options = timeout.map_or(AcquireOptions::new(), |timeout| {
        AcquireOptions::new().with_timeout(timeout)
    });
    let terms = options
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    WaitLimit::new(StoreHealth::new(Clock::Tokio), &terms, REQUEST)
}

fn refused() -> LockError {
    LockError::new(ErrorKind::Unavailable, "cannot connect to 10.0.0.7:2379")
        .caused_by("connection refused")
}

fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

async fn end(wait_limit: &WaitLimit) -> LockError {
    wait_limit.error(wait_limit.over().await)
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_not_free_and_names_its_holder() {
    let wait_limit = wait_limit(Some(SECOND));
    wait_limit.asked();
    wait_limit.answered();
    wait_limit.held_by(&OwnerId::new("7f3a"), Some("nightly\nreport"));
    let error = end(&wait_limit).await;
    assert_eq!(
        error.to_string(),
        r#"timed out: the lock was not free within 1s; it is held by 7f3a, "nightly\nreport""#
    );
    assert_eq!(
        wait_limit.clock.now().saturating_since(wait_limit.began),
        SECOND
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_failed_last_is_unavailable_and_says_why() {
    let wait_limit = wait_limit(Some(SECOND));
    wait_limit.answered();
    wait_limit.failed(refused()).unwrap();
    let error = end(&wait_limit).await;
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later)
    );
    assert!(
        error
            .to_string()
            .contains("10.0.0.7:2379: connection refused")
            && error.source().is_some(),
        "{error}"
    );
    wait_limit.answered();
    assert_eq!(
        end(&wait_limit).await.kind(),
        ErrorKind::TimedOut,
        "it has answered since"
    );
}

#[tokio::test(start_paused = true)]
async fn a_frozen_store_is_unavailable() {
    let fresh = wait_limit(Some(SECOND));
    fresh.asked();
    assert_eq!(
        end(&fresh).await.to_string(),
        "unavailable: the store did not answer for 1s",
        "it has never answered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_falls_silent_is_unavailable_after_half_the_wait_or_what_a_request_may_take() {
    const MILLI: Duration = Duration::from_millis(1);
    for (wait, enough) in [
        (SECOND * 4, SECOND * 2),
        (REQUEST * 2, REQUEST),
        (REQUEST * 4, REQUEST),
    ] {
        for (silent, kind) in [
            (MILLI * 21, ErrorKind::TimedOut),
            (enough - MILLI, ErrorKind::TimedOut),
            (enough, ErrorKind::Unavailable),
            (wait - MILLI, ErrorKind::Unavailable),
        ] {
            for fails in [false, true] {
                let wait_limit = wait_limit(Some(wait));
                wait_limit.answered();
                tokio::time::advance(wait - silent).await;
                wait_limit.asked();
                if fails {
                    wait_limit.failed(refused()).unwrap();
                }
                let error = end(&wait_limit).await;
                assert_eq!(
                    error.kind(),
                    kind,
                    "silent for {silent:?} at the end of {wait:?}: {error}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answered_is_unavailable_whoever_else_it_answers() {
    let wait_limit = wait_limit(Some(SECOND));
    wait_limit.asked();
    // By another of those who share the health.
    locked(&wait_limit.told).health.answered();
    assert_eq!(
        end(&wait_limit).await.to_string(),
        "unavailable: the store did not answer for 1s"
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_a_wait_without_a_bound_after_one_ttl() {
    let wait_limit = wait_limit(None);
    tokio::time::advance(TTL * 5).await;
    wait_limit.asked();
    wait_limit.failed(refused()).unwrap();
    let began = wait_limit.clock.now();
    let mut over = Box::pin(end(&wait_limit));
    tokio::time::timeout(TTL - SECOND, &mut over)
        .await
        .unwrap_err();
    wait_limit.answered();
    wait_limit.asked();
    tokio::time::timeout(TTL - SECOND, &mut over)
        .await
        .unwrap_err();
    assert_eq!(over.await.kind(), ErrorKind::Unavailable);
    let lasted = wait_limit.clock.now().saturating_since(began);
    assert!(
        (TTL * 2 - SECOND..TTL * 2).contains(&lasted),
        "the outage began when the last answer came, not before: {lasted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_others_did_not_hear_before_does_not_count() {
    let health = StoreHealth::new(Clock::Tokio);
    health.asked();
    tokio::time::advance(TTL * 2).await;
    let terms = AcquireOptions::new()
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    let wait_limit = WaitLimit::new(health, &terms, REQUEST);
    tokio::time::timeout(TTL - SECOND, wait_limit.over())
        .await
        .unwrap_err();
    wait_limit.over().await;
}

#[test]
fn a_refusal_is_handed_back() {
    let refusal = LockError::new(ErrorKind::PermissionDenied, "no");
    assert_eq!(
        wait_limit(None).failed(refusal).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_goes_along_to_whom_is_followed() {
    let wait_limit = wait_limit(Some(SECOND));
    let line = StoreHealth::new(Clock::Tokio);
    wait_limit.failed(refused()).unwrap();
    wait_limit.follow(Arc::clone(&line));
    assert!(end(&wait_limit).await.to_string().contains("refused"));
    line.answered();
    assert_eq!(end(&wait_limit).await.kind(), ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn who_follows_is_answered_by_what_others_were_told() {
    let line = StoreHealth::new(Clock::Tokio);
    let wait_limit = wait_limit(Some(SECOND));
    wait_limit.follow(Arc::clone(&line));
    tokio::time::advance(SECOND - Duration::from_millis(1)).await;
    line.asked();
    assert_eq!(
        end(&wait_limit).await.kind(),
        ErrorKind::TimedOut,
        "nothing was to be asked before"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_told_to_a_caller_that_does_not_look_is_no_silence() {
    for (answered, looked, kind) in [
        (false, false, ErrorKind::Unavailable),
        (true, false, ErrorKind::TimedOut),
        // It was woken by something else.
        (true, true, ErrorKind::Unavailable),
    ] {
        let line = StoreHealth::new(Clock::Tokio);
        let woken = tokio::sync::Notify::new();
        let mut head = Box::pin(line.ask(async {
            woken.notified().await;
            std::future::pending::<()>().await;
        }));
        assert!(poll_once(&mut head).is_pending());
        let wait_limit = wait_limit(Some(SECOND));
        wait_limit.follow(Arc::clone(&line));
        if answered {
            woken.notify_one();
        }
        if looked {
            assert!(poll_once(&mut head).is_pending());
        }
        let error = end(&wait_limit).await;
        assert_eq!(
            error.kind(),
            kind,
            "answered: {answered}, looked: {looked}: {error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_to_ask_is_not_told_of_a_silence_that_has_ended() {
    let line = StoreHealth::new(Clock::Tokio);
    let woken = tokio::sync::Notify::new();
    let wait_limit = wait_limit(None);
    wait_limit.follow(Arc::clone(&line));
    let mut head = Box::pin(line.ask(woken.notified()));
    assert!(poll_once(&mut head).is_pending());
    woken.notify_one();
    tokio::time::timeout(TTL * 3, wait_limit.over())
        .await
        .unwrap_err();
    line.asked();
    tokio::time::timeout(TTL - SECOND, wait_limit.over())
        .await
        .unwrap_err();
    assert_eq!(end(&wait_limit).await.kind(), ErrorKind::Unavailable);
}
