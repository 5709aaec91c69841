use std::{
    fmt::{self, Debug},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{runtime, sync::Notify, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    LockError, Terms,
    backend::{
        Clock, Lease, Moment, Renewal, Tasks,
        schedule::{Due, Id, Schedule},
    },
    sync::locked,
};

/// How a backend extends leases in its store: the I/O that a [`Keeper`] drives.
#[async_trait]
pub trait Renewer: Debug + Send + Sync + 'static {
    /// What identifies one lease in the store.
    type Item: Send + Sync + 'static;

    /// Extends all leases of a batch, at most [`Keeper::BATCH`], and returns one outcome for each, in order.
    ///
    /// The keeper drops the future when an answer would come too late. It then counts as failed, and may still take
    /// effect: that only keeps the lease longer.
    async fn renew(&self, batch: &[Arc<Self::Item>]) -> Vec<RenewOutcome>;
}

/// What became of one renewal.
#[derive(Debug)]
pub enum RenewOutcome {
    /// The store now keeps the lease for this long.
    Renewed(Duration),
    /// The store does not have the lease, or somebody else does: its guards are lost at once.
    NotHeld,
    /// No answer, or one that says nothing about the lease: retried until the deadline.
    Failed(LockError),
}

/// Keeps all leases of one client alive with one task, however many there are.
///
/// The task ends when the keeper and every [`Keep`] made by it are dropped. It is started on demand, and again if the
/// runtime that it ran on is gone. With [`Tasks::anywhere`] there is one on each runtime that has had a lease kept, and each looks
/// after all leases: they are renewed as long as one of these runtimes runs, unless another one, which is alive but not polled, has
/// just begun to.
pub struct Keeper<R: Renewer> {
    shared: Arc<Shared<R>>,
    tasks: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Shared<R: Renewer> {
    clock: Clock,
    renewer: R,
    state: Mutex<State<R::Item>>,
    /// Has every task look again.
    wake: Notify,
}

struct State<T> {
    schedule: Schedule<T>,
    /// Where a task is, or is being started.
    driven: Vec<runtime::Id>,
    /// A renewal has failed, and none has succeeded since.
    in_trouble: bool,
}

impl<T> State<T> {
    /// Says whether no task is there yet, so that the caller starts one.
    fn claim(&mut self, runtime: runtime::Id) -> bool {
        let free = !self.driven.contains(&runtime);
        if free {
            self.driven.push(runtime);
        }
        free
    }
}

impl<R: Renewer> Keeper<R> {
    /// Most leases that one call of [`Renewer::renew`] is given.
    pub const BATCH: usize = 256;

    /// A keeper without leases.
    #[must_use]
    pub fn new(clock: Clock, renewer: R, tasks: Tasks) -> Arc<Self> {
        let stop = CancellationToken::new();
        let state = Mutex::new(State { schedule: Schedule::new(), driven: Vec::new(), in_trouble: false });
        Arc::new(Self {
            shared: Arc::new(Shared { clock, renewer, state, wake: Notify::new() }),
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Watches over a lease that the store granted for `granted` in answer to a request sent at `sent`, and renews it
    /// as `terms` say, until the [`Keep`] is dropped.
    pub fn keep(self: &Arc<Self>, item: Arc<R::Item>, sent: Moment, granted: Duration, terms: &Terms) -> (Arc<Lease>, Keep) {
        let cap = terms.max_hold.map(|most| sent + most);
        let renewal = Renewal::new(sent, granted, terms.renew, cap);
        let lease = Lease::new(self.shared.clock, renewal.deadline(), cap);
        let runtime = self.tasks.runtime();
        let (id, early, undriven) = {
            let mut state = locked(&self.shared.state);
            let (id, early) = state.schedule.insert(sent, renewal, Arc::clone(&lease), item);
            (id, early, runtime.filter(|runtime| state.claim(*runtime)))
        };
        if let Some(runtime) = undriven {
            self.tasks.spawn(drive(Driving { shared: Arc::clone(&self.shared), runtime }, self.stop.clone()));
        }
        if early {
            self.shared.wake.notify_waiters();
        }
        let keeper: Arc<dyn Forget> = Arc::clone(self) as _;
        (lease, Keep { id, keeper, stopped: AtomicBool::new(false) })
    }

    /// How many leases are kept; for leak checks.
    #[must_use]
    pub fn kept(&self) -> usize {
        locked(&self.shared.state).schedule.len()
    }
}

/// A task's own mark that it is there. Dropped when the task ends, also where it never runs: on a runtime that is being
/// shut down.
struct Driving<R: Renewer> {
    shared: Arc<Shared<R>>,
    runtime: runtime::Id,
}

impl<R: Renewer> Drop for Driving<R> {
    fn drop(&mut self) {
        locked(&self.shared.state).driven.retain(|runtime| *runtime != self.runtime);
        // The others may rely on it to look in time.
        self.shared.wake.notify_waiters();
    }
}

impl<R: Renewer> Debug for Keeper<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("renewer", &self.shared.renewer).field("kept", &self.kept()).finish_non_exhaustive()
    }
}

/// Ends the renewal of one lease when dropped; the lease then runs out at its deadline.
pub struct Keep {
    id: Id,
    keeper: Arc<dyn Forget>,
    stopped: AtomicBool,
}

impl Keep {
    /// As a drop, before it.
    pub(crate) fn stop(&self) {
        // Two at once both forget it, which does no harm and is cheaper than to exclude each other.
        if !self.stopped.load(Ordering::Relaxed) {
            self.stopped.store(true, Ordering::Relaxed);
            self.keeper.forget(self.id);
        }
    }
}

trait Forget: Send + Sync {
    fn forget(&self, id: Id);
}

impl<R: Renewer> Forget for Keeper<R> {
    fn forget(&self, id: Id) {
        locked(&self.shared.state).schedule.remove(id);
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keep").field("id", &self.id).finish_non_exhaustive()
    }
}

async fn drive<R: Renewer>(driving: Driving<R>, stop: CancellationToken) {
    let shared = &driving.shared;
    let mut in_flight = JoinSet::new();
    loop {
        // Before the look, so that whatever comes after it wakes.
        let woken = shared.wake.notified();
        let (due, next, ended) = {
            let (now, mut state) = (shared.clock.now(), locked(&shared.state));
            (state.schedule.poll(now), state.schedule.rest(now), state.schedule.ended())
        };
        ended.iter().for_each(Lease::tell);
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            in_flight.spawn(Attempt::new(Arc::clone(shared), due.by_ref().take(Keeper::<R>::BATCH)).run());
        }
        let look_again = async {
            match next {
                Some(next) => shared.clock.sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = woken => {}
            Some(_) = in_flight.join_next() => {}
            () = look_again => {}
        }
    }
}

/// Renewals under way. They count as failed if nothing else becomes of them: their runtime may end, and leave the
/// leases to another.
struct Attempt<R: Renewer> {
    shared: Arc<Shared<R>>,
    ids: Vec<Id>,
    items: Vec<Arc<R::Item>>,
    give_up: Option<Moment>,
}

impl<R: Renewer> Attempt<R> {
    fn new(shared: Arc<Shared<R>>, batch: impl Iterator<Item = Due<R::Item>>) -> Self {
        let mut attempt = Self { shared, ids: Vec::new(), items: Vec::new(), give_up: None };
        for Due { id, item, give_up } in batch {
            attempt.ids.push(id);
            attempt.items.push(item);
            attempt.give_up = Some(attempt.give_up.map_or(give_up, |first| first.min(give_up)));
        }
        attempt
    }

    async fn run(mut self) {
        let Some(give_up) = self.give_up else { return };
        let outcomes = tokio::select! {
            outcomes = self.shared.renewer.renew(&self.items) => outcomes,
            () = self.shared.clock.sleep_until(give_up) => Vec::new(),
        };
        self.complete(outcomes);
    }

    fn complete(&mut self, outcomes: Vec<RenewOutcome>) {
        // One for all: they go on in one request, and other clients in others.
        let (now, jitter) = (self.shared.clock.now(), rand::random());
        let mut outcomes = outcomes.into_iter();
        let mut state = locked(&self.shared.state);
        for id in self.ids.drain(..) {
            let outcome = outcomes.next().unwrap_or_else(|| RenewOutcome::Failed(unanswered()));
            match &outcome {
                // However many leases there are, and however often each is tried.
                RenewOutcome::Failed(error) if !std::mem::replace(&mut state.in_trouble, true) => {
                    tracing::warn!(%error, "renewals fail, they will be retried until the deadline");
                }
                RenewOutcome::Failed(error) => tracing::debug!(%error, "renewal failed, will be retried until the deadline"),
                RenewOutcome::Renewed(_) => state.in_trouble = false,
                RenewOutcome::NotHeld => {}
            }
            state.schedule.complete(id, now, &outcome, jitter);
        }
        let ended = state.schedule.ended();
        drop(state);
        ended.iter().for_each(Lease::tell);
        // Other tasks do not know when these are due next, and this one's runtime may not be polled then.
        self.shared.wake.notify_waiters();
    }
}

impl<R: Renewer> Drop for Attempt<R> {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.complete(Vec::new());
        }
    }
}

fn unanswered() -> LockError {
    LockError::new(crate::ErrorKind::Unavailable, "no answer in time").during(crate::Operation::Renew).indeterminate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AcquireOptions, Capabilities, Consistency, LossReason};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    const TTL: Duration = Duration::from_secs(30);

    /// Renews what it is given, or never answers.
    #[derive(Debug, Default)]
    struct Store {
        frozen: Arc<AtomicBool>,
        calls: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl Renewer for Store {
        type Item = ();

        async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
            self.calls.fetch_add(1, SeqCst);
            if self.frozen.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            batch.iter().map(|_| RenewOutcome::Renewed(TTL)).collect()
        }
    }

    fn terms() -> Terms {
        AcquireOptions::new().resolve(&Capabilities::new("test", Consistency::BestEffort), TTL).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_a_thousand_leases_with_few_calls() {
        let store = Store::default();
        let calls = Arc::clone(&store.calls);
        let keeper = Keeper::new(Clock::Tokio, store, Tasks::current());
        let now = Clock::Tokio.now();
        let kept: Vec<_> = (0..1000).map(|_| keeper.keep(Arc::new(()), now, TTL, &terms())).collect();
        tokio::time::sleep(TTL * 4).await;
        assert!(kept.iter().all(|(lease, _)| lease.deadline().is_ok()));
        let calls = calls.load(SeqCst);
        assert!((40..=60).contains(&calls), "{calls} calls for 11 or 12 rounds of 4 batches");
        drop(kept);
        assert_eq!(keeper.kept(), 0);
    }

    /// Notes when it is asked.
    #[derive(Debug, Default)]
    struct Noting(Arc<Mutex<Vec<Moment>>>);

    #[async_trait]
    impl Renewer for Noting {
        type Item = ();

        async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
            locked(&self.0).push(Clock::Tokio.now());
            batch.iter().map(|_| RenewOutcome::Renewed(TTL)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_begin_together_do_not_stay_together() {
        const CLIENTS: usize = 20;
        let (asked, start) = (Arc::<Mutex<Vec<_>>>::default(), Clock::Tokio.now());
        let client = |_| {
            let keeper = Keeper::new(Clock::Tokio, Noting(Arc::clone(&asked)), Tasks::current());
            (keeper.keep(Arc::new(()), start, TTL, &terms()), keeper)
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        tokio::time::sleep(TTL * 2).await;
        let asked = locked(&asked);
        let last = &asked[asked.len() - CLIENTS..];
        let spread = last[CLIENTS - 1].saturating_since(last[0]);
        assert!(spread > TTL / 60, "{spread:?}");
        assert!(clients.iter().all(|((lease, _), _)| lease.deadline().is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_store_loses_the_lease_at_its_deadline() {
        let store = Store::default();
        let frozen = Arc::clone(&store.frozen);
        let keeper = Keeper::new(Clock::Tokio, store, Tasks::current());
        let start = Clock::Tokio.now();
        let (lease, _keep) = keeper.keep(Arc::new(()), start, TTL, &terms());
        tokio::time::sleep(TTL).await;
        let deadline = lease.deadline().unwrap();
        frozen.store(true, SeqCst);
        lease.ended().cancelled().await;
        assert_eq!(lease.deadline(), Err(LossReason::Expired));
        // Tokio's timers tick in milliseconds.
        assert!(Clock::Tokio.now().saturating_since(deadline) <= Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_driver_ends_with_its_last_keep() {
        let tasks = Tasks::current();
        let keeper = Keeper::new(Clock::Tokio, Store::default(), tasks.clone());
        let (_, keep) = keeper.keep(Arc::new(()), Clock::Tokio.now(), TTL, &terms());
        drop(keeper);
        assert_eq!(tasks.running(), 1);
        drop(keep);
        tasks.idle().await;
    }

    fn paused_runtime() -> runtime::Runtime {
        runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    #[test]
    fn leases_live_on_when_one_of_their_runtimes_ends() {
        let (tasks, now) = (Tasks::anywhere(), Clock::Tokio.now());
        let keeper = Keeper::new(Clock::Tokio, Store::default(), tasks.clone());
        let (short, long) = (paused_runtime(), paused_runtime());
        let keep = async || keeper.keep(Arc::new(()), now, TTL, &terms());
        let (first, second) = (short.block_on(keep()), long.block_on(keep()));
        let third = long.block_on(keep());
        assert_eq!(tasks.running(), 2, "one on each runtime");
        drop(short);
        assert_eq!(tasks.running(), 1);
        long.block_on(async { tokio::time::sleep(TTL * 4).await });
        assert!([&first, &second, &third].iter().all(|(lease, _)| lease.deadline().is_ok()));
    }

    #[test]
    fn a_renewal_that_ends_with_its_runtime_is_retried_on_another() {
        let (store, now) = (Store::default(), Clock::Tokio.now());
        let (frozen, calls) = (Arc::clone(&store.frozen), Arc::clone(&store.calls));
        let keeper = Keeper::new(Clock::Tokio, store, Tasks::anywhere());
        let keep = async |ttl| {
            let kept = keeper.keep(Arc::new(()), now, ttl, &terms());
            tokio::time::sleep(Duration::from_millis(1)).await;
            kept
        };
        let (short, long) = (paused_runtime(), paused_runtime());
        frozen.store(true, SeqCst);
        let (lease, _keep) = short.block_on(keep(TTL));
        short.block_on(async { tokio::time::sleep(TTL / 3).await });
        assert_eq!(calls.load(SeqCst), 1);
        // The task there now waits for nothing but the renewal's outcome and what is due long after.
        let _other = long.block_on(keep(TTL * 10));
        drop(short);
        frozen.store(false, SeqCst);
        long.block_on(async { tokio::time::sleep(TTL * 2).await });
        assert!(lease.deadline().is_ok());
    }
}
