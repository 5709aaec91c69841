use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::Semaphore;

use super::*;
use crate::{
    AcquireOptions, Capabilities, Consistency, OwnerId,
    acquisition::release,
    backend::{
        Clock, Entry, Grant, LeaseKeeper, RenewOutcome, Renewer, call::release_until_definite,
    },
};

const TTL: Duration = Duration::from_secs(30);

/// An entry that the second request to arrive is the first to remove; they are answered when they
/// may be.
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

fn guard_of(guards: &Arc<GuardSet>, entry: Arc<dyn Entry>) -> LockGuard {
    let name = "a".parse().unwrap();
    guards.grant(Grant::new(name, OwnerId::random(), lease(), entry))
}

fn watched_guard_of(guards: &Arc<GuardSet>, entry: Arc<dyn Entry>) -> (LockGuard, LossTrigger) {
    guards.grant_watched(Grant::new(
        "a".parse().unwrap(),
        OwnerId::random(),
        lease(),
        entry,
    ))
}

#[tokio::test(start_paused = true)]
async fn a_release_under_way_at_a_shutdown_is_not_told_lost() {
    let guards = GuardSet::new("test", Tasks::current());
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(0),
        answers: Semaphore::new(0),
    });
    let guard = guard_of(&guards, Arc::clone(&entry) as _);
    let release = tokio::spawn(guard.release());
    let closing = Arc::clone(&guards);
    tokio::task::yield_now().await;
    let shutdown = tokio::spawn(async move { closing.shutdown().await });
    while entry.asked.load(SeqCst) < 2 {
        assert!(!release.is_finished());
        tokio::task::yield_now().await;
    }
    entry.answers.add_permits(2);
    release.await.unwrap().unwrap();
    shutdown.await.unwrap().unwrap();
    assert_eq!(guards.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_was_begun_again_is_answered_once() {
    let guards = GuardSet::new("test", Tasks::current());
    let _guard = guard_of(
        &guards,
        Arc::new(Slow {
            asked: AtomicUsize::new(0),
            answers: Semaphore::new(2),
        }),
    );
    let (answer, mut answers) = mpsc::unbounded_channel();
    let removal = AnsweredRelease {
        acquisition: guards.live_guards().remove(0),
        answer: Mutex::new(Some(answer)),
    };
    removal.remove().await;
    removal.remove().await;
    assert!(answers.recv().await.is_some() && answers.recv().await.is_none());
}

/// Notes a guard's state when it was woken.
struct Note(LockGuard, Mutex<Option<GuardState>>);

impl std::task::Wake for Note {
    fn wake(self: Arc<Self>) {
        *locked(&self.1) = Some(self.0.state());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_is_told_when_all_guards_have_ended() {
    let guards = GuardSet::new("test", Tasks::current());
    let guard = guard_of(
        &guards,
        Arc::new(Slow {
            asked: AtomicUsize::new(1),
            answers: Semaphore::new(9),
        }),
    );
    let note = Arc::new(Note(guard, Mutex::default()));
    let mut told = std::pin::pin!(guards.closing().fired());
    let waker = Arc::clone(&note).into();
    assert!(
        told.as_mut()
            .poll(&mut std::task::Context::from_waker(&waker))
            .is_pending()
    );
    guards.shutdown().await.unwrap();
    assert_eq!(
        *locked(&note.1),
        Some(GuardState::Lost(LossReason::Shutdown))
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_up_on_a_store_that_does_not_answer() {
    let guards = GuardSet::new("test", Tasks::current());
    let guard = guard_of(
        &guards,
        Arc::new(Slow {
            asked: AtomicUsize::new(0),
            answers: Semaphore::new(0),
        }),
    );
    let start = Clock::Tokio.now();
    let error = guards.shutdown().await.unwrap_err();
    assert_eq!(
        (error.kind(), guard.state()),
        (
            ErrorKind::Unavailable,
            GuardState::Lost(LossReason::Shutdown)
        )
    );
    let took = Clock::Tokio.now().saturating_since(start);
    assert!(
        (SHUTDOWN_LIMIT..SHUTDOWN_LIMIT * 2).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_that_a_clean_up_did_not_end() {
    let guards = GuardSet::new("test", Tasks::current());
    guards.tasks().spawn(std::future::pending());
    assert_eq!(
        guards.shutdown().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(start_paused = true)]
async fn what_disappears_after_the_deadline_has_expired() {
    let guards = GuardSet::new("test", Tasks::current());
    let (guard, trigger) = watched_guard_of(
        &guards,
        Arc::new(Slow {
            asked: AtomicUsize::new(0),
            answers: Semaphore::new(9),
        }),
    );
    let (other, other_trigger) = watched_guard_of(
        &guards,
        Arc::new(Slow {
            asked: AtomicUsize::new(0),
            answers: Semaphore::new(9),
        }),
    );
    other_trigger.lose(LossReason::Removed);
    assert_eq!(other.state(), GuardState::Lost(LossReason::Removed));
    tokio::time::advance(TTL).await;
    trigger.lose(LossReason::Removed);
    assert_eq!(guard.state(), GuardState::Lost(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_to_be_gone_is_released_all_the_same() {
    let guards = GuardSet::new("test", Tasks::current());
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(0),
        answers: Semaphore::new(9),
    });
    let (guard, trigger) = watched_guard_of(&guards, Arc::clone(&entry) as _);
    trigger.lose(LossReason::Removed);
    drop(guard);
    guards.tasks().idle().await;
    assert_eq!((entry.asked.load(SeqCst), guards.live()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_kept_keeps_neither_the_entry_nor_the_client() {
    let guards = GuardSet::new("test", Tasks::current());
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(1),
        answers: Semaphore::new(9),
    });
    let guard = guard_of(&guards, Arc::clone(&entry) as _);
    let view = guard.view();
    let lost = guard.lost();
    guard.release().await.unwrap();
    let the_entry = Arc::downgrade(&entry);
    let the_holds = Arc::downgrade(&guards);
    drop((entry, guards));
    assert!(the_entry.upgrade().is_none() && the_holds.upgrade().is_none());
    assert_eq!(view.state(), GuardState::Released);
    drop(lost);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_released_at_the_maximum_hold() {
    let guards = GuardSet::new("test", Tasks::current());
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(1),
        answers: Semaphore::new(9),
    });
    let now = Clock::Tokio.now();
    let grant = |cap| {
        let lease = Lease::new(Clock::Tokio, now + TTL, Some(now + cap));
        Grant::new(
            "a".parse().unwrap(),
            OwnerId::random(),
            lease,
            Arc::clone(&entry) as _,
        )
    };
    let stuck = guards.grant(grant(TTL / 2));
    let quick = guards.grant(grant(TTL));
    quick.release().await.unwrap();
    tokio::time::sleep(TTL / 3).await;
    assert_eq!(
        (entry.asked.load(SeqCst), stuck.state()),
        (2, GuardState::Held)
    );
    while guards.live() > 0 {
        tokio::time::sleep(TTL / 100).await;
    }
    guards.tasks().idle().await;
    assert_eq!(entry.asked.load(SeqCst), 3);
    assert_eq!(
        Clock::Tokio.now().saturating_since(now).as_secs(),
        TTL.as_secs() / 2
    );
    let other = guards.grant(grant(TTL));
    drop(stuck);
    assert_eq!((entry.asked.load(SeqCst), guards.live()), (3, 1));
    drop(other);
}

/// No answer at first, then no connection.
#[derive(Debug)]
struct Gone(AtomicUsize);

#[async_trait]
impl Entry for Gone {
    async fn release(&self) -> Result<bool, LockError> {
        let error = LockError::new(ErrorKind::Unavailable, "unreachable");
        Err(if self.0.fetch_add(1, SeqCst) == 0 {
            error.indeterminate()
        } else {
            error
        })
    }
}

#[tokio::test(start_paused = true)]
async fn one_attempt_without_an_answer_leaves_a_release_indeterminate() {
    let entry = Gone(AtomicUsize::new(0));
    let lease = lease();
    let error = release_until_definite(&entry, &lease).await.unwrap_err();
    assert!(
        error.is_indeterminate() && entry.0.load(SeqCst) > 1,
        "{error:?}"
    );
}

/// Log at the usual level.
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
        // With a subscriber for all threads no other test, which has none of its own, can have a
        // log statement cached as one that nobody listens to.
        static EVERYWHERE: std::sync::Once = std::sync::Once::new();
        EVERYWHERE.call_once(|| {
            let sink = tracing_subscriber::fmt().with_writer(std::io::sink);
            tracing::subscriber::set_global_default(sink.finish()).unwrap();
        });
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(locked(&self.0).clone()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_guard_is_logged_once_and_one_that_ends_otherwise_is_not() {
    let (log, _subscribed) = Log::start();
    let guards = GuardSet::new("test", Tasks::current());
    let guard = || {
        watched_guard_of(
            &guards,
            Arc::new(Slow {
                asked: AtomicUsize::new(1),
                answers: Semaphore::new(9),
            }),
        )
    };
    let (lost, trigger) = guard();
    let (released, _) = guard();
    let (shut_down, _) = guard();
    tokio::time::advance(TTL / 2).await;
    trigger.lose(LossReason::Removed);
    trigger.lose(LossReason::Removed);
    assert!(lost.is_lost());
    released.release().await.unwrap();
    guards.shutdown().await.unwrap();
    assert!(shut_down.is_lost());
    let text = log.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [
        "WARN",
        "lock lost",
        "name=a",
        &format!("owner={}", lost.owner()),
        "backend=\"test\"",
        "held_for=15",
        "removed",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_end_is_told_with_the_final_state() {
    let guards = GuardSet::new("test", Tasks::current());
    let guard = || {
        guard_of(
            &guards,
            Arc::new(Slow {
                asked: AtomicUsize::new(1),
                answers: Semaphore::new(9),
            }),
        )
    };
    let released = guard();
    let dropped = guard();
    let lost = guard();
    let ends = [
        released.view().ended(),
        dropped.view().ended(),
        lost.view().ended(),
    ]
    .map(tokio::spawn);
    tokio::task::yield_now().await;
    assert!(ends.iter().all(|end| !end.is_finished()));
    released.release().await.unwrap();
    drop(dropped);
    let start = Clock::Tokio.now();
    let [released, dropped, expired] = ends;
    assert_eq!(
        (released.await.unwrap(), dropped.await.unwrap()),
        (GuardState::Released, GuardState::Released)
    );
    assert_eq!(Clock::Tokio.now(), start, "a release is not waited for");
    assert_eq!(
        expired.await.unwrap(),
        GuardState::Lost(LossReason::Expired)
    );
    assert_eq!(
        lost.ended().await,
        GuardState::Lost(LossReason::Expired),
        "late"
    );
}

/// An entry that cannot be released.
#[derive(Debug)]
struct Refused;

#[async_trait]
impl Entry for Refused {
    async fn release(&self) -> Result<bool, LockError> {
        Err(LockError::new(ErrorKind::PermissionDenied, "not allowed"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_background_release_that_fails_is_logged_unless_the_loss_was() {
    let (log, _subscribed) = Log::start();
    let guards = GuardSet::new("test", Tasks::current());
    let held = guard_of(&guards, Arc::new(Refused));
    let (lost, trigger) = watched_guard_of(&guards, Arc::new(Refused));
    trigger.lose(LossReason::Removed);
    drop(lost);
    guards.tasks().idle().await;
    let text = log.text();
    assert!(
        text.lines().count() == 1 && text.contains("lock lost"),
        "{text}"
    );
    drop(held);
    guards.tasks().idle().await;
    let text = log.text();
    assert!(
        text.lines().count() == 2 && text.contains("background release failed"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_says_how_long_the_lock_stays() {
    let guards = GuardSet::new("test", Tasks::current());
    let guard = guard_of(&guards, Arc::new(Refused));
    tokio::time::advance(TTL / 3).await;
    let error = guard.release().await.unwrap_err();
    assert!(
        error.to_string().contains("not allowed; unless")
            && error.to_string().contains("stays for 20.000 s"),
        "{error}"
    );
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
    let guards = GuardSet::new("test", Tasks::current());
    let keeper = LeaseKeeper::new(Clock::Tokio, NoRenewals, Tasks::current());
    let terms = AcquireOptions::new().without_renewal();
    let terms = terms
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    let (lease, _renewal) = keeper.register(Arc::new(()), Clock::Tokio.now(), TTL, &terms);
    let entry = || {
        Arc::new(Slow {
            asked: AtomicUsize::new(1),
            answers: Semaphore::new(9),
        })
    };
    let grant = |name: &str| {
        let name = name.parse().unwrap();
        let lease = Arc::clone(&lease);
        guards.grant(Grant::new(name, OwnerId::random(), lease, entry()))
    };
    let _guards = [grant("a"), grant("b")];
    tokio::time::sleep(TTL).await;
    let text = log.text();
    assert!(
        ["name=a", "name=b"].iter().all(|name| text.contains(name)) && text.lines().count() == 2,
        "{text}"
    );
}

/// Renews the leases that it is asked to, except the first time.
#[derive(Debug, Default)]
struct SecondTime(AtomicUsize);

#[async_trait]
impl Renewer for SecondTime {
    type Item = ();

    async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
        let first = self.0.fetch_add(1, SeqCst) == 0;
        let failed = || LockError::new(ErrorKind::Unavailable, "not now");
        batch
            .iter()
            .map(|_| {
                if first {
                    RenewOutcome::Failed(failed())
                } else {
                    RenewOutcome::Renewed(TTL)
                }
            })
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_without_renewal_lasts_as_long_as_its_holder_extends_it() {
    let guards = GuardSet::new("test", Tasks::current());
    let start = Clock::Tokio.now();
    let keeper = LeaseKeeper::new(Clock::Tokio, SecondTime::default(), Tasks::current());
    let terms = AcquireOptions::new().without_renewal();
    let terms = terms
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    let guard = || {
        let (lease, renewal) = keeper.register(Arc::new(()), Clock::Tokio.now(), TTL, &terms);
        let entry = Arc::new(Slow {
            asked: AtomicUsize::new(1),
            answers: Semaphore::new(9),
        });
        guards.grant(
            Grant::new("a".parse().unwrap(), OwnerId::random(), lease, entry).with_renewal(renewal),
        )
    };
    let extended = guard();
    let forgotten = guard();
    for _ in 0..10 {
        tokio::time::sleep(TTL / 2).await;
        extended.extend().await.unwrap();
        assert!(extended.remaining() > TTL * 9 / 10);
    }
    assert!(Clock::Tokio.now().saturating_since(start) >= TTL * 5);
    assert_eq!(
        (extended.state(), forgotten.state()),
        (GuardState::Held, GuardState::Lost(LossReason::Expired))
    );
    let error = forgotten.extend().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Lost, Some(Operation::Renew))
    );
    tokio::time::sleep(TTL).await;
    assert!(extended.is_lost(), "nobody renews it unasked");
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_comes_to_nothing_ends_at_the_deadline() {
    let guards = GuardSet::new("test", Tasks::current());
    let keeper = LeaseKeeper::new(Clock::Tokio, NoRenewals, Tasks::current());
    let capabilities = Capabilities::new("test", Consistency::BestEffort);
    let guard = |options: AcquireOptions| {
        let terms = options.resolve(&capabilities, TTL).unwrap();
        let (lease, renewal) = keeper.register(Arc::new(()), Clock::Tokio.now(), TTL, &terms);
        let entry = Arc::new(Slow {
            asked: AtomicUsize::new(1),
            answers: Semaphore::new(9),
        });
        guards.grant(
            Grant::new("a".parse().unwrap(), OwnerId::random(), lease, entry).with_renewal(renewal),
        )
    };
    let gone = guard(AcquireOptions::new().without_renewal());
    assert_eq!(gone.extend().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(gone.state(), GuardState::Lost(LossReason::Removed));
    // There is nothing to extend before the end that was asked for.
    let capped = guard(AcquireOptions::new().with_max_hold(TTL / 2));
    let left = capped.remaining();
    capped.extend().await.unwrap();
    assert_eq!(capped.remaining(), left);
}

#[tokio::test(start_paused = true)]
async fn an_extension_ends_although_it_moves_no_deadline() {
    let guards = GuardSet::new("test", Tasks::current());
    let start = Clock::Tokio.now();
    let keeper = LeaseKeeper::new(
        Clock::Tokio,
        SecondTime(AtomicUsize::new(1)),
        Tasks::current(),
    );
    let terms = AcquireOptions::new().without_renewal();
    let terms = terms
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    let (lease, renewal) = keeper.register(Arc::new(()), start, TTL, &terms);
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(1),
        answers: Semaphore::new(9),
    });
    let guard = guards.grant(
        Grant::new("a".parse().unwrap(), OwnerId::random(), lease, entry).with_renewal(renewal),
    );
    for _ in 0..3 {
        guard.extend().await.unwrap();
    }
    assert_eq!(Clock::Tokio.now(), start, "no time has passed");
}

#[tokio::test(start_paused = true)]
async fn an_extension_ends_with_its_guard() {
    let guards = GuardSet::new("test", Tasks::current());
    let start = Clock::Tokio.now();
    let keeper = LeaseKeeper::new(Clock::Tokio, NoAnswers, Tasks::current());
    let terms = AcquireOptions::new().without_renewal();
    let terms = terms
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap();
    let (lease, renewal) = keeper.register(Arc::new(()), start, TTL, &terms);
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(1),
        answers: Semaphore::new(9),
    });
    let guard = guards.grant(
        Grant::new("a".parse().unwrap(), OwnerId::random(), lease, entry).with_renewal(renewal),
    );
    let (extended, ()) = tokio::join!(guard.extend(), async {
        tokio::time::sleep(TTL / 10).await;
        guards.shutdown().await.unwrap();
    });
    assert_eq!(extended.unwrap_err().kind(), ErrorKind::Lost);
    assert!(Clock::Tokio.now().saturating_since(start) < TTL / 2);
}

/// Never answers.
#[derive(Debug)]
struct NoAnswers;

#[async_trait]
impl Renewer for NoAnswers {
    type Item = ();

    async fn renew(&self, _: &[Arc<()>]) -> Vec<RenewOutcome> {
        std::future::pending().await
    }
}

#[test]
fn an_extension_outside_a_runtime_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let guard = runtime.block_on(async {
        let guards = GuardSet::new("test", Tasks::current());
        guard_of(
            &guards,
            Arc::new(Slow {
                asked: AtomicUsize::new(1),
                answers: Semaphore::new(9),
            }),
        )
    });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut extend = Box::pin(guard.extend());
    let std::task::Poll::Ready(Err(error)) = extend.as_mut().poll(&mut context) else {
        panic!("it goes on")
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// Is refused at first; then somebody else has removed it.
#[derive(Debug, Default)]
struct RefusedThenGone(AtomicUsize);

#[async_trait]
impl Entry for RefusedThenGone {
    async fn release(&self) -> Result<bool, LockError> {
        match self.0.fetch_add(1, SeqCst) {
            0 => Err(LockError::new(ErrorKind::PermissionDenied, "not allowed")),
            _ => Ok(false),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_release_does_not_explain_a_missing_entry() {
    let guards = GuardSet::new("test", Tasks::current());
    let acquisition = guard_of(&guards, Arc::new(RefusedThenGone::default())).into_acquisition();
    let refused = release(&*acquisition).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    let lost = release(&*acquisition).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Lost, "{lost}");
}

/// Notes what it is told.
#[derive(Debug, Default)]
struct Told {
    margins: Mutex<Vec<Duration>>,
    ends: Mutex<Vec<GuardState>>,
}

impl crate::AcquisitionObserver for Told {
    fn renewed(&self, margin: Duration) {
        locked(&self.margins).push(margin);
    }

    fn ended(&self, end: GuardState) {
        locked(&self.ends).push(end);
    }
}

#[tokio::test(start_paused = true)]
async fn observers_hear_of_renewals_and_of_an_end_that_nobody_looks_at() {
    let guards = GuardSet::new("test", Tasks::current());
    let keeper = LeaseKeeper::new(Clock::Tokio, OnceOnly::default(), Tasks::current());
    let terms = AcquireOptions::new()
        .resolve(&Capabilities::new("test", Consistency::ProcessLocal), TTL)
        .unwrap();
    let (lease, renewal) = keeper.register(Arc::new(()), Clock::Tokio.now(), TTL, &terms);
    let entry = Arc::new(Slow {
        asked: AtomicUsize::new(1),
        answers: Semaphore::new(9),
    });
    let grant =
        Grant::new("a".parse().unwrap(), OwnerId::random(), lease, entry).with_renewal(renewal);
    let acquisition = guards.grant(grant).into_acquisition();
    let both = [Arc::new(Told::default()), Arc::new(Told::default())];
    for told in &both {
        let observer: Weak<Told> = Arc::downgrade(told);
        acquisition.status().observe(observer);
    }
    tokio::time::sleep(TTL * 3).await;
    let lost = GuardState::Lost(LossReason::Removed);
    for told in &both {
        let margins = locked(&told.margins).clone();
        assert_eq!(margins.len(), 1, "{margins:?}");
        assert!(margins[0] > TTL / 2 && margins[0] < TTL, "{margins:?}");
        assert_eq!(*locked(&told.ends), [lost]);
    }
    let late = Arc::new(Told::default());
    let observer: Weak<Told> = Arc::downgrade(&late);
    acquisition.status().observe(observer);
    assert_eq!(*locked(&late.ends), [lost]);
    acquisition.release_in_background();
}

#[tokio::test(start_paused = true)]
async fn a_call_after_the_shutdown_does_not_begin_and_every_error_has_its_context() {
    let guards = GuardSet::new("store", Tasks::current());
    let name: LockName = "a".parse().unwrap();
    let bad = || async { Err::<(), _>(LockError::new(ErrorKind::InvalidOptions, "bad")) };
    let during = |error: &LockError| (error.kind(), error.operation(), error.name().cloned());
    let error = guards.call(Operation::Acquire, &name, bad()).await;
    let error = error.unwrap_err();
    let operation = Some(Operation::Acquire);
    assert_eq!(
        during(&error),
        (ErrorKind::InvalidOptions, operation, Some(name.clone()))
    );
    assert_eq!(error.backend(), Some("store"));
    guards.shutdown().await.unwrap();
    let error = guards.call(Operation::Acquire, &name, bad()).await;
    let seen = during(&error.unwrap_err());
    assert_eq!(seen, (ErrorKind::Shutdown, operation, Some(name)));
    let error = guards.call(Operation::List, None, bad()).await;
    let seen = during(&error.unwrap_err());
    assert_eq!(seen, (ErrorKind::Shutdown, Some(Operation::List), None));
}

/// Renews once; then the lease is gone.
#[derive(Debug, Default)]
struct OnceOnly(AtomicUsize);

#[async_trait]
impl Renewer for OnceOnly {
    type Item = ();

    async fn renew(&self, items: &[Arc<()>]) -> Vec<RenewOutcome> {
        let is_first = self.0.fetch_add(1, SeqCst) == 0;
        let outcome = |_| match is_first {
            true => RenewOutcome::Renewed(TTL),
            false => RenewOutcome::NotHeld,
        };
        items.iter().map(outcome).collect()
    }
}
