use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use super::*;
use crate::{
    ErrorKind, LossReason,
    backend::{Clock, Entry, Grant, GuardSet, Lease, LossTrigger, Tasks, locked},
};

const TTL: Duration = Duration::from_secs(30);

type Releases = Arc<Mutex<Vec<&'static str>>>;

/// Writes down when it is released, and fails some times before.
#[derive(Debug)]
struct Part {
    name: &'static str,
    failures: AtomicU32,
    releases: Releases,
}

#[async_trait]
impl Entry for Part {
    async fn release(&self) -> Result<bool, LockError> {
        if self
            .failures
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err(LockError::new(ErrorKind::PermissionDenied, "not now"));
        }
        locked(&self.releases).push(self.name);
        Ok(true)
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        Ok(at_least.max(FencingToken::new(7)))
    }
}

struct Store {
    guards: Arc<GuardSet>,
    releases: Releases,
}

impl Store {
    fn new() -> Self {
        Self {
            guards: GuardSet::new("test", Tasks::current()),
            releases: Releases::default(),
        }
    }

    fn guard(&self, name: &'static str, ttl: Duration, failures: u32) -> (LockGuard, LossTrigger) {
        let entry = Part {
            name,
            failures: failures.into(),
            releases: Arc::clone(&self.releases),
        };
        let lease = Lease::new(Clock::Tokio, Clock::Tokio.now() + ttl, None);
        let grant = Grant::new(
            name.parse().unwrap(),
            OwnerId::new(name),
            lease,
            Arc::new(entry),
        );
        self.guards
            .grant_watched(grant.with_token(FencingToken::new(7)))
    }

    fn joined(&self, failures: [u32; 3]) -> (LockGuard, [LossTrigger; 3]) {
        let (a, on_a) = self.guard("a", TTL * 3, failures[0]);
        let (b, on_b) = self.guard("b", TTL, failures[1]);
        let (c, on_c) = self.guard("c", TTL * 2, failures[2]);
        (a.join([b, c]), [on_a, on_b, on_c])
    }

    async fn released(&self) -> Vec<&'static str> {
        self.guards.tasks().idle().await;
        locked(&self.releases).clone()
    }
}

#[tokio::test(start_paused = true)]
async fn joined_guards_last_as_long_as_the_shortest_and_are_released_in_reverse() {
    let store = Store::new();
    let (guard, _) = store.joined([0; 3]);
    assert_eq!(
        (
            guard.name().as_str(),
            guard.owner().as_str(),
            guard.remaining()
        ),
        ("a", "a", TTL)
    );
    let ended = guard.ended();
    let view = guard.view();
    guard.release().await.unwrap();
    assert_eq!(
        (ended.await, view.state(), view.remaining()),
        (GuardState::Released, GuardState::Released, Duration::ZERO)
    );
    assert_eq!(store.released().await, ["c", "b", "a"]);
    assert_eq!(store.guards.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn joined_guards_are_lost_with_the_first_and_for_its_reason() {
    let store = Store::new();
    let (guard, [on_a, _, on_c]) = store.joined([0; 3]);
    let lost = tokio::spawn(guard.lost());
    tokio::task::yield_now().await;
    on_c.lose(LossReason::Removed);
    assert_eq!(lost.await.unwrap(), LossReason::Removed);
    tokio::time::sleep(TTL * 2).await;
    on_a.lose(LossReason::Expired);
    assert_eq!(
        guard.state(),
        GuardState::Lost(LossReason::Removed),
        "what is lost later changes nothing"
    );
    assert_eq!(guard.lost().await, LossReason::Removed);
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let mut released = store.released().await;
    released.sort_unstable();
    assert_eq!(
        released,
        ["a", "b", "c"],
        "what the others hold is not left behind"
    );
    assert_eq!(store.guards.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_nobody_looks_at_ends_joined_guards() {
    let store = Store::new();
    let (guard, _) = store.joined([0; 3]);
    let start = Clock::Tokio.now();
    assert_eq!(guard.lost().await, LossReason::Expired);
    assert_eq!(Clock::Tokio.now().saturating_since(start), TTL);
}

#[tokio::test(start_paused = true)]
async fn what_joined_guards_could_not_release_is_tried_again() {
    let store = Store::new();
    let (guard, _) = store.joined([0, 1, 0]);
    let error = guard.release().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.name().unwrap().as_str()),
        (ErrorKind::PermissionDenied, "b")
    );
    assert_eq!(store.released().await, ["c", "a", "b"]);
    assert_eq!(store.guards.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn joined_guards_that_are_dropped_are_released() {
    let store = Store::new();
    drop(store.joined([0; 3]));
    assert_eq!(store.released().await, ["c", "b", "a"]);
    let (guard, _) = store.joined([0; 3]);
    let mut release = Box::pin(guard.release());
    assert!(futures_poll(&mut release).is_pending() || !locked(&store.releases).is_empty());
    drop(release);
    assert_eq!(store.released().await.len(), 6);
    assert_eq!(store.guards.live(), 0);
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn another_name_and_token_change_nothing_else() {
    let store = Store::new();
    let (guard, trigger) = store.guard("app/a", TTL, 0);
    assert_eq!(
        guard.raise_token(FencingToken::new(9)).await.unwrap(),
        FencingToken::new(9)
    );
    assert_eq!(guard.token(), Some(FencingToken::new(9)));
    let guard = guard.with_name("a".parse().unwrap());
    assert_eq!(
        (guard.name().as_str(), guard.token()),
        ("a", Some(FencingToken::new(9)))
    );
    assert_eq!(
        guard.raise_token(FencingToken::new(3)).await.unwrap(),
        FencingToken::new(9),
        "a token never goes back"
    );
    let guard = guard.with_token(Some(FencingToken::new(100)));
    assert_eq!(
        (guard.name().as_str(), guard.owner().as_str(), guard.token()),
        ("a", "app/a", Some(FencingToken::new(100)))
    );
    assert_eq!(
        guard
            .raise_token(FencingToken::new(200))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
    trigger.lose(LossReason::Removed);
    assert_eq!(guard.lost().await, LossReason::Removed);
    assert!(guard.ensure_held().unwrap_err().to_string().contains("`a`"));
}

#[tokio::test(start_paused = true)]
async fn a_view_of_wrapped_guards_keeps_neither_entries_nor_client() {
    let Store { guards, releases } = Store::new();
    let guard = Store {
        guards: Arc::clone(&guards),
        releases: Arc::clone(&releases),
    }
    .joined([0; 3])
    .0
    .with_token(None);
    let view = guard.view();
    let lost = guard.lost();
    guard.release().await.unwrap();
    guards.tasks().idle().await;
    let the_holds = Arc::downgrade(&guards);
    let the_releases = Arc::downgrade(&releases);
    drop((guards, releases));
    assert!(the_holds.upgrade().is_none() && the_releases.upgrade().is_none());
    assert_eq!(view.state(), GuardState::Released);
    drop(lost);
}

/// Never answers.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl Entry for Silent {
    async fn release(&self) -> Result<bool, LockError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_holds_up_no_other() {
    let store = Store::new();
    let (healthy, _) = store.guard("a", TTL, 0);
    let lease = Lease::new(Clock::Tokio, Clock::Tokio.now() + TTL, None);
    let silent = store.guards.grant(Grant::new(
        "b".parse().unwrap(),
        OwnerId::new("b"),
        lease,
        Arc::new(Silent),
    ));
    let release = tokio::spawn(healthy.join([silent]).release());
    while locked(&store.releases).is_empty() {
        assert!(!release.is_finished());
        tokio::task::yield_now().await;
    }
    assert_eq!(*locked(&store.releases), ["a"]);
    assert_eq!(
        release.await.unwrap().unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(start_paused = true)]
async fn guards_that_could_not_be_joined_are_released() {
    let store = Store::new();
    let (first, _) = store.guard("a", TTL, 0);
    let mut second = Some(store.guard("b", TTL, 0).0);
    let others = [(); 2]
        .iter()
        .map(|()| second.take().expect("there are no more"));
    let joined = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.join(others)));
    assert!(joined.is_err());
    assert_eq!(store.released().await.len(), 2);
    assert_eq!(store.guards.live(), 0);
}
