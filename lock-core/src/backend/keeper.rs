use std::{
    fmt::{self, Debug},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, task::JoinSet};
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
/// runtime that it ran on is gone.
pub struct Keeper<R: Renewer> {
    shared: Arc<Shared<R>>,
    tasks: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Shared<R: Renewer> {
    clock: Clock,
    renewer: R,
    schedule: Mutex<Schedule<R::Item>>,
    wake: Notify,
    /// Whether the task is there.
    driven: AtomicBool,
}

impl<R: Renewer> Keeper<R> {
    /// Most leases that one call of [`Renewer::renew`] is given.
    pub const BATCH: usize = 256;

    /// A keeper without leases.
    #[must_use]
    pub fn new(clock: Clock, renewer: R, tasks: Tasks) -> Arc<Self> {
        let stop = CancellationToken::new();
        let (schedule, driven) = (Mutex::new(Schedule::new()), AtomicBool::new(false));
        Arc::new(Self {
            shared: Arc::new(Shared { clock, renewer, schedule, wake: Notify::new(), driven }),
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
        let (id, early) = locked(&self.shared.schedule).insert(sent, renewal, Arc::clone(&lease), item);
        self.ensure_driver();
        if early {
            self.shared.wake.notify_one();
        }
        let keeper: Arc<dyn Forget> = Arc::clone(self) as _;
        (lease, Keep { id, keeper, stopped: AtomicBool::new(false) })
    }

    /// How many leases are kept; for leak checks.
    #[must_use]
    pub fn kept(&self) -> usize {
        locked(&self.shared.schedule).len()
    }

    fn ensure_driver(&self) {
        if self.shared.driven.load(Ordering::Acquire) || self.shared.driven.swap(true, Ordering::AcqRel) {
            return;
        }
        // Says so when it ends, also where it never runs: without a runtime, or on one that is being shut down.
        let driving = Driving(Arc::clone(&self.shared));
        self.tasks.spawn(drive(driving, self.stop.clone()));
    }
}

/// The task's own mark that it is there.
struct Driving<R: Renewer>(Arc<Shared<R>>);

impl<R: Renewer> Drop for Driving<R> {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::Release);
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
        if !self.stopped.load(Ordering::Acquire) && !self.stopped.swap(true, Ordering::AcqRel) {
            self.keeper.forget(self.id);
        }
    }
}

trait Forget: Send + Sync {
    fn forget(&self, id: Id);
}

impl<R: Renewer> Forget for Keeper<R> {
    fn forget(&self, id: Id) {
        locked(&self.shared.schedule).remove(id);
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
    let shared = &driving.0;
    let mut in_flight = JoinSet::new();
    loop {
        let (due, next) = {
            let (now, mut schedule) = (shared.clock.now(), locked(&shared.schedule));
            (schedule.poll(now), schedule.rest(now))
        };
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            in_flight.spawn(renew(Arc::clone(shared), due.by_ref().take(Keeper::<R>::BATCH).collect()));
        }
        let look_again = async {
            match next {
                Some(next) => shared.clock.sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.wake.notified() => {}
            Some(_) = in_flight.join_next() => {}
            () = look_again => {}
        }
    }
}

async fn renew<R: Renewer>(shared: Arc<Shared<R>>, batch: Vec<Due<R::Item>>) {
    let Some(give_up) = batch.iter().map(|due| due.give_up).min() else { return };
    let (ids, items): (Vec<_>, Vec<_>) = batch.into_iter().map(|due| (due.id, due.item)).unzip();
    let outcomes = tokio::select! {
        outcomes = shared.renewer.renew(&items) => Some(outcomes),
        () = shared.clock.sleep_until(give_up) => None,
    };
    let now = shared.clock.now();
    let mut outcomes = outcomes.into_iter().flatten();
    let mut schedule = locked(&shared.schedule);
    for id in ids {
        let outcome = outcomes.next().unwrap_or_else(|| RenewOutcome::Failed(unanswered()));
        if let RenewOutcome::Failed(error) = &outcome {
            tracing::debug!(%error, "renewal failed, will be retried until the deadline");
        }
        schedule.complete(id, now, &outcome, rand::random());
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
}
