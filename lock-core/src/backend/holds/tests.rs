use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::Semaphore;

use super::*;
use crate::{
    AcquireOptions, Capabilities, Consistency,
    backend::{Clock, Keeper, RenewOutcome, Renewer},
};

const TTL: Duration = Duration::from_secs(30);

/// An entry that the second request to arrive is the first to remove; they are answered when they may be.
#[derive(Debug)]
struct Slow {
    asked: AtomicUsize,
    answers: Semaphore,
}

#[async_trait]
impl Entry for Slow {
    async fn release(&self) -> Result<bool, LockError> {
        let removes = self.asked.fetch_add(1, SeqCst) == 1;
        let _ = self.answers.acquire().await;
        Ok(removes)
    }
}

fn lease() -> Arc<Lease> {
    Lease::new(Clock::Tokio, Clock::Tokio.now() + TTL, None)
}

fn guard_of(holds: &Arc<Holds>, entry: Arc<dyn Entry>) -> LockGuard {
    let name = "a".parse().unwrap();
    holds.grant(Grant { name, owner: OwnerId::random(), token: None, lease: lease(), keep: None, entry })
}

#[tokio::test(start_paused = true)]
async fn a_release_under_way_at_a_shutdown_is_not_told_lost() {
    let holds = Holds::new("test", Tasks::current());
    let entry = Arc::new(Slow { asked: AtomicUsize::new(0), answers: Semaphore::new(0) });
    let guard = guard_of(&holds, Arc::clone(&entry) as _);
    let release = tokio::spawn(guard.release());
    let closing = Arc::clone(&holds);
    tokio::task::yield_now().await;
    let shutdown = tokio::spawn(async move { closing.shutdown().await });
    while entry.asked.load(SeqCst) < 2 {
        assert!(!release.is_finished());
        tokio::task::yield_now().await;
    }
    entry.answers.add_permits(2);
    release.await.unwrap().unwrap();
    shutdown.await.unwrap().unwrap();
    assert_eq!(holds.live(), 0);
}

/// Notes what a guard was like when it was woken.
struct Note(LockGuard, Mutex<Option<GuardState>>);

impl std::task::Wake for Note {
    fn wake(self: Arc<Self>) {
        *locked(&self.1) = Some(self.0.state());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_told_when_all_guards_have_ended() {
    let holds = Holds::new("test", Tasks::current());
    let guard = guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) }));
    let note = Arc::new(Note(guard, Mutex::default()));
    let mut told = std::pin::pin!(holds.closing().cancelled());
    let waker = Arc::clone(&note).into();
    assert!(told.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    holds.shutdown().await.unwrap();
    assert_eq!(*locked(&note.1), Some(GuardState::Lost(LossReason::Shutdown)));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_up_on_a_store_that_does_not_answer() {
    let holds = Holds::new("test", Tasks::current());
    let guard = guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(0), answers: Semaphore::new(0) }));
    let start = Clock::Tokio.now();
    let error = holds.shutdown().await.unwrap_err();
    assert_eq!((error.kind(), guard.state()), (ErrorKind::Unavailable, GuardState::Lost(LossReason::Shutdown)));
    let took = Clock::Tokio.now().saturating_since(start);
    assert!((SHUTDOWN_LIMIT..SHUTDOWN_LIMIT * 2).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_that_a_clean_up_did_not_end() {
    let holds = Holds::new("test", Tasks::current());
    holds.tasks().spawn(std::future::pending());
    assert_eq!(holds.shutdown().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn what_disappears_after_the_deadline_has_expired() {
    let holds = Holds::new("test", Tasks::current());
    let guard = guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(0), answers: Semaphore::new(9) }));
    let other = guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(0), answers: Semaphore::new(9) }));
    LossTrigger::of(&other).lose(LossReason::Removed);
    assert_eq!(other.state(), GuardState::Lost(LossReason::Removed));
    tokio::time::advance(TTL).await;
    LossTrigger::of(&guard).lose(LossReason::Removed);
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_to_be_gone_is_released_all_the_same() {
    let holds = Holds::new("test", Tasks::current());
    let entry = Arc::new(Slow { asked: AtomicUsize::new(0), answers: Semaphore::new(9) });
    let guard = guard_of(&holds, Arc::clone(&entry) as _);
    LossTrigger::of(&guard).lose(LossReason::Removed);
    drop(guard);
    holds.tasks().idle().await;
    assert_eq!((entry.asked.load(SeqCst), holds.live()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_kept_keeps_neither_the_entry_nor_the_client() {
    let holds = Holds::new("test", Tasks::current());
    let entry = Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) });
    let guard = guard_of(&holds, Arc::clone(&entry) as _);
    let (view, lost) = (guard.hold(), guard.lost());
    guard.release().await.unwrap();
    let (the_entry, the_holds) = (Arc::downgrade(&entry), Arc::downgrade(&holds));
    drop((entry, holds));
    assert!(the_entry.upgrade().is_none() && the_holds.upgrade().is_none());
    assert_eq!(view.state(), GuardState::Released);
    drop(lost);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_released_at_the_maximum_hold() {
    let holds = Holds::new("test", Tasks::current());
    let entry = Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) });
    let now = Clock::Tokio.now();
    let grant = |cap| Grant {
        name: "a".parse().unwrap(),
        owner: OwnerId::random(),
        token: None,
        lease: Lease::new(Clock::Tokio, now + TTL, Some(now + cap)),
        keep: None,
        entry: Arc::clone(&entry) as _,
    };
    let (stuck, quick) = (holds.grant(grant(TTL / 2)), holds.grant(grant(TTL)));
    quick.release().await.unwrap();
    tokio::time::sleep(TTL / 3).await;
    assert_eq!((entry.asked.load(SeqCst), stuck.state()), (2, GuardState::Held));
    holds.tasks().idle().await;
    assert_eq!((entry.asked.load(SeqCst), holds.live()), (3, 0));
    assert_eq!(Clock::Tokio.now().saturating_since(now).as_secs(), TTL.as_secs() / 2);
    let other = holds.grant(grant(TTL));
    drop(stuck);
    assert_eq!((entry.asked.load(SeqCst), holds.live()), (3, 1));
    drop(other);
}

/// No answer at first, then no connection.
#[derive(Debug)]
struct Gone(AtomicUsize);

#[async_trait]
impl Entry for Gone {
    async fn release(&self) -> Result<bool, LockError> {
        let error = LockError::new(ErrorKind::Unavailable, "unreachable");
        Err(if self.0.fetch_add(1, SeqCst) == 0 { error.indeterminate() } else { error })
    }
}

#[tokio::test(start_paused = true)]
async fn one_attempt_without_an_answer_leaves_a_release_indeterminate() {
    let (entry, lease) = (Gone(AtomicUsize::new(0)), lease());
    let error = release_until_definite(&entry, &lease).await.unwrap_err();
    assert!(error.is_indeterminate() && entry.0.load(SeqCst) > 1, "{error:?}");
}

/// What is logged at the usual level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        locked(&self.0).extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(locked(&self.0).clone()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_guard_is_logged_once_and_one_that_ends_otherwise_is_not() {
    let (log, _subscribed) = Log::start();
    let holds = Holds::new("test", Tasks::current());
    let guard = || guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) }));
    let (lost, released, shut_down) = (guard(), guard(), guard());
    tokio::time::advance(TTL / 2).await;
    LossTrigger::of(&lost).lose(LossReason::Removed);
    LossTrigger::of(&lost).lose(LossReason::Removed);
    assert!(lost.is_lost());
    released.release().await.unwrap();
    holds.shutdown().await.unwrap();
    assert!(shut_down.is_lost());
    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in ["WARN", "lock lost", "name=a", &format!("owner={}", lost.owner()), "backend=\"test\"", "held_for=15", "removed"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_end_is_told_with_the_final_state() {
    let holds = Holds::new("test", Tasks::current());
    let guard = || guard_of(&holds, Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) }));
    let (released, dropped, lost) = (guard(), guard(), guard());
    let ends = [released.hold().ended(), dropped.hold().ended(), lost.hold().ended()].map(tokio::spawn);
    tokio::task::yield_now().await;
    assert!(ends.iter().all(|end| !end.is_finished()));
    released.release().await.unwrap();
    drop(dropped);
    let start = Clock::Tokio.now();
    let [released, dropped, expired] = ends;
    assert_eq!((released.await.unwrap(), dropped.await.unwrap()), (GuardState::Released, GuardState::Released));
    assert_eq!(Clock::Tokio.now(), start, "a release is not waited for");
    assert_eq!(expired.await.unwrap(), GuardState::Lost(LossReason::Expired));
    assert_eq!(lost.ended().await, GuardState::Lost(LossReason::Expired), "late");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_says_how_long_the_lock_stays() {
    #[derive(Debug)]
    struct Refused;
    #[async_trait]
    impl Entry for Refused {
        async fn release(&self) -> Result<bool, LockError> {
            Err(LockError::new(ErrorKind::PermissionDenied, "not allowed"))
        }
    }
    let holds = Holds::new("test", Tasks::current());
    let guard = guard_of(&holds, Arc::new(Refused));
    tokio::time::advance(TTL / 3).await;
    let error = guard.release().await.unwrap_err();
    assert!(error.to_string().contains("not allowed; unless") && error.to_string().contains("stays for 20.000 s"), "{error}");
}

/// Renews nothing: every lease ends at its deadline.
#[derive(Debug)]
struct NoRenewals;

#[async_trait]
impl Renewer for NoRenewals {
    type Item = ();

    async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
        batch.iter().map(|_| RenewOutcome::NotHeld).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_nobody_looks_at_is_logged_in_time() {
    let (log, _subscribed) = Log::start();
    let holds = Holds::new("test", Tasks::current());
    let keeper = Keeper::new(Clock::Tokio, NoRenewals, Tasks::current());
    let terms = AcquireOptions::new().without_renewal();
    let terms = terms.resolve(&Capabilities::new("test", Consistency::BestEffort), TTL).unwrap();
    let (lease, _keep) = keeper.keep(Arc::new(()), Clock::Tokio.now(), TTL, &terms);
    let entry = || Arc::new(Slow { asked: AtomicUsize::new(1), answers: Semaphore::new(9) });
    let grant = |name: &str| {
        let (name, lease) = (name.parse().unwrap(), Arc::clone(&lease));
        holds.grant(Grant { name, owner: OwnerId::random(), token: None, lease, keep: None, entry: entry() })
    };
    let _guards = [grant("a"), grant("b")];
    tokio::time::sleep(TTL).await;
    let text = log.text();
    assert!(["name=a", "name=b"].iter().all(|name| text.contains(name)) && text.lines().count() == 2, "{text}");
}
