use std::{
    fmt::{self, Debug},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    runtime,
    sync::{Notify, futures::Notified},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    LockError, Terms,
    backend::{
        Clock, Lease, Moment, Renewal, RenewalHandle, Tasks,
        renewal_handle::RenewalControl,
        renewal_queue::{Due, Id, RenewalQueue},
    },
    sync::locked,
};

/// Extends a backend's leases in its store: the I/O that a [`LeaseKeeper`] drives.
#[async_trait]
pub trait Renewer: Debug + Send + Sync + 'static {
    /// Data that identifies one lease in the store.
    type Item: Send + Sync + 'static;

    /// Extends all leases of a batch, at most [`LeaseKeeper::BATCH`], and returns one outcome for
    /// each, in order.
    ///
    /// The keeper drops the future when an answer would come too late. It then counts as failed,
    /// and may still take effect: that only keeps the lease longer.
    async fn renew(&self, batch: &[Arc<Self::Item>]) -> Vec<RenewOutcome>;
}

/// Outcome of one renewal.
#[derive(Debug)]
#[non_exhaustive]
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
/// The task ends when the keeper and every [`RenewalHandle`] made by it are dropped. It is started
/// on demand, and again if the runtime that it ran on is gone. With [`Tasks::anywhere`] there is
/// one on each runtime on which a lease was registered, and each serves all leases: they are
/// renewed as long as one of these runtimes runs, unless another one, which is alive but not
/// polled, has just begun to renew them.
pub struct LeaseKeeper<R: Renewer> {
    shared: Arc<Shared<R>>,
    tasks: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Shared<R: Renewer> {
    clock: Clock,
    renewer: R,
    state: Mutex<State<R::Item>>,
    /// Makes every task look again.
    wake: Notify,
}

struct State<T> {
    queue: RenewalQueue<T>,
    /// Runtimes on which a task runs, or is being started.
    driven: Vec<runtime::Id>,
    /// A renewal has failed, and none has succeeded since.
    is_failing: bool,
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

impl<R: Renewer> LeaseKeeper<R> {
    /// Most leases that one call of [`Renewer::renew`] is given.
    pub const BATCH: usize = 256;

    /// A keeper without leases.
    #[must_use]
    pub fn new(clock: Clock, renewer: R, tasks: Tasks) -> Arc<Self> {
        let stop = CancellationToken::new();
        let state = Mutex::new(State {
            queue: RenewalQueue::new(),
            driven: Vec::new(),
            is_failing: false,
        });
        Arc::new(Self {
            shared: Arc::new(Shared {
                clock,
                renewer,
                state,
                wake: Notify::new(),
            }),
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Watches over a lease that the store granted for `granted` in answer to a request sent at
    /// `sent`, and renews it as `terms` say, until the [`RenewalHandle`] is dropped.
    pub fn register(
        self: &Arc<Self>,
        item: Arc<R::Item>,
        sent: Moment,
        granted: Duration,
        terms: &Terms,
    ) -> (Arc<Lease>, RenewalHandle) {
        let cap = terms.max_hold.map(|most| sent + most);
        let renewal = Renewal::new(sent, granted, terms.renew, cap);
        let lease = Lease::new(self.shared.clock, renewal.deadline(), cap);
        let runtime = self.tasks.runtime();
        let (id, early, undriven) = {
            let mut state = locked(&self.shared.state);
            let (id, early) = state.queue.insert(sent, renewal, Arc::clone(&lease), item);
            (id, early, runtime.filter(|runtime| state.claim(*runtime)))
        };
        self.drive_on(undriven);
        if early {
            self.shared.wake.notify_waiters();
        }
        let keeper: Arc<dyn RenewalControl> = Arc::clone(self) as _;
        (
            lease,
            RenewalHandle {
                id,
                keeper,
                sent,
                stopped: AtomicBool::new(false),
            },
        )
    }

    fn drive_on(&self, undriven: Option<runtime::Id>) {
        if let Some(runtime) = undriven {
            self.tasks.spawn(drive(
                Driver {
                    shared: Arc::clone(&self.shared),
                    runtime,
                },
                self.stop.clone(),
            ));
        }
    }

    /// Number of leases that are kept; for leak checks.
    #[must_use]
    pub fn registered(&self) -> usize {
        locked(&self.shared.state).queue.len()
    }
}

/// Marks that a task exists. Dropped when the task ends, also if it never runs because its runtime
/// is being shut down.
struct Driver<R: Renewer> {
    shared: Arc<Shared<R>>,
    runtime: runtime::Id,
}

impl<R: Renewer> Drop for Driver<R> {
    fn drop(&mut self) {
        locked(&self.shared.state)
            .driven
            .retain(|runtime| *runtime != self.runtime);
        // The others may rely on it to look in time.
        self.shared.wake.notify_waiters();
    }
}

impl<R: Renewer> Debug for LeaseKeeper<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("renewer", &self.shared.renewer)
            .field("kept", &self.registered())
            .finish_non_exhaustive()
    }
}

impl<R: Renewer> RenewalControl for LeaseKeeper<R> {
    fn forget(&self, id: Id) {
        locked(&self.shared.state).queue.remove(id);
    }

    fn renew(&self, id: Id) {
        let runtime = self.tasks.runtime();
        let undriven = {
            let mut state = locked(&self.shared.state);
            state.queue.renew_at(id, self.shared.clock.now());
            runtime.filter(|runtime| state.claim(*runtime))
        };
        self.drive_on(undriven);
        self.shared.wake.notify_waiters();
    }

    fn changed(&self) -> Notified<'_> {
        self.shared.wake.notified()
    }
}

async fn drive<R: Renewer>(driving: Driver<R>, stop: CancellationToken) {
    let shared = &driving.shared;
    let mut in_flight = JoinSet::new();
    loop {
        // Made before the look, so that any change after it wakes the task.
        let woken = shared.wake.notified();
        let (due, next, ended) = {
            let now = shared.clock.now();
            let mut state = locked(&shared.state);
            (
                state.queue.poll(now),
                state.queue.rest(now),
                state.queue.ended(),
            )
        };
        ended.iter().for_each(Lease::tell);
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            in_flight.spawn(
                Attempt::new(
                    Arc::clone(shared),
                    due.by_ref().take(LeaseKeeper::<R>::BATCH),
                )
                .run(),
            );
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

/// Renewals in flight. They count as failed unless they get an outcome: their runtime may end, and
/// leave the leases to another.
struct Attempt<R: Renewer> {
    shared: Arc<Shared<R>>,
    ids: Vec<Id>,
    items: Vec<Arc<R::Item>>,
    give_up: Option<Moment>,
}

impl<R: Renewer> Attempt<R> {
    fn new(shared: Arc<Shared<R>>, batch: impl Iterator<Item = Due<R::Item>>) -> Self {
        let mut attempt = Self {
            shared,
            ids: Vec::new(),
            items: Vec::new(),
            give_up: None,
        };
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
        // One jitter for all: they stay together in one request, apart from those of other clients.
        let now = self.shared.clock.now();
        let jitter = rand::random();
        let mut outcomes = outcomes.into_iter();
        let mut state = locked(&self.shared.state);
        for id in self.ids.drain(..) {
            let outcome = outcomes
                .next()
                .unwrap_or_else(|| RenewOutcome::Failed(unanswered()));
            match &outcome {
                // Warns once until a renewal succeeds, however many leases there are and however
                // often each is tried.
                RenewOutcome::Failed(error) if !std::mem::replace(&mut state.is_failing, true) => {
                    tracing::warn!(%error, "renewals fail, they will be retried until the deadline");
                }
                RenewOutcome::Failed(error) => {
                    tracing::debug!(%error, "renewal failed, will be retried until the deadline");
                }
                RenewOutcome::Renewed(_) => state.is_failing = false,
                RenewOutcome::NotHeld => {}
            }
            state.queue.complete(id, now, &outcome, jitter);
        }
        let ended = state.queue.ended();
        let renewed = state.queue.renewed();
        drop(state);
        ended.iter().for_each(Lease::tell);
        renewed
            .iter()
            .for_each(|(lease, margin)| lease.tell_renewed(*margin));
        // Other tasks do not know when these are due next, and this one's runtime may not be polled
        // then.
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
    LockError::new(crate::ErrorKind::Unavailable, "no answer in time")
        .during(crate::Operation::Renew)
        .indeterminate()
}

#[cfg(test)]
mod tests;
