//! A process's side of the coordination, against a real store: runs [`Member`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lock_core::{
    Acquisition, ErrorKind, GuardState, LockError, LockName, LossReason, backend::locked,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Both, Member, MemberReport, NotProven, Plan, Plans, RecordFloor, RecordStore, Ticket,
    draining::Written,
    ending::{give_up, over, shut_down},
    joined::Joined,
    ticket::Bound,
};
use crate::{MemFloor, Phase, acquire::PAUSE, stores::Stores};

/// One process as a member. Guards and the client keep it alive.
#[derive(Debug)]
pub(crate) struct Membership {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    records: Arc<dyn RecordStore>,
    both: Both,
    label: String,
    state: Mutex<State>,
    /// Changes when plans or the membership do.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    member: Member,
    bound: Option<Bound>,
    guards: HashMap<u64, Weak<dyn Acquisition>>,
    /// By prefix and number of the change: a floor that is final is read once for each.
    stores: BTreeMap<String, (u64, Arc<Stores>)>,
    /// The latest reason for having no membership.
    obstacle: Option<LockError>,
}

/// How often guards that drain are looked at.
const DRAIN_CHECK: Duration = Duration::from_millis(100);

/// How long the removal of a member's record may take when it leaves.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

impl Membership {
    /// A member, and the future that keeps it one.
    pub(crate) fn new(
        records: Arc<dyn RecordStore>,
        both: Both,
        label: String,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            records,
            both,
            label,
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            stop: stop.clone(),
        });
        let membership = Arc::new(Self {
            shared: Arc::clone(&shared),
            _stop: stop.drop_guard(),
        });
        (membership, async move { shared.serve().await })
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub(super) fn is_current(&self, ticket: u64) -> bool {
        locked(&self.shared.state).member.is_current(ticket)
    }

    pub(super) fn end(&self, ticket: u64) {
        let mut state = locked(&self.shared.state);
        state.member.end(ticket);
        state.guards.remove(&ticket);
    }

    pub(super) fn holds(&self, ticket: u64, guard: &Arc<dyn Acquisition>) {
        let mut state = locked(&self.shared.state);
        if state.member.is_admitted(ticket) {
            state.guards.insert(ticket, Arc::downgrade(guard));
            return;
        }
        drop(state);
        give_up(guard);
    }

    /// Admits an acquisition; if it waits, it waits for the membership until then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] with the reason why the phase is not known.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        name: &LockName,
        until: Option<Instant>,
    ) -> Result<Ticket, LockError> {
        let mut changes = self.changes();
        loop {
            let unproven = match self.try_admit(name) {
                Ok(ticket) => return Ok(ticket),
                Err(unproven) => unproven,
            };
            let Some(until) = until.filter(|_| unproven.kind() != ErrorKind::Shutdown) else {
                return Err(unproven);
            };
            match timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(unproven),
            }
        }
    }

    fn try_admit(self: &Arc<Self>, name: &LockName) -> Result<Ticket, LockError> {
        if self.shared.stop.is_cancelled() {
            return Err(shut_down());
        }
        let mut state = locked(&self.shared.state);
        let bound = state.bound.clone();
        let is_valid = (bound.as_ref()).is_some_and(|bound| bound.lease.deadline().is_ok());
        let admitted = state.member.begin(name, is_valid);
        let (id, phase) = admitted.map_err(|unproven| state.unproven(unproven))?;
        let plan = state.member.plan_of(name).cloned();
        let is_complete = plan.as_ref().is_some_and(|plan| plan.complete.is_some());
        Ok(Ticket {
            member: Arc::clone(self),
            id,
            phase,
            stores: self.shared.stores(&mut state, plan.as_ref()),
            bound: bound.filter(|_| !is_complete),
        })
    }

    /// Waits until the phase of every name is known.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] with the reason why it is not.
    pub(crate) async fn joined(&self, until: Instant) -> Result<(), LockError> {
        let mut changes = self.changes();
        while locked(&self.shared.state).member.report().is_none() {
            if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Err(locked(&self.shared.state).unproven(NotProven));
            }
        }
        Ok(())
    }

    /// Where to look for a name, and how: in both stores while it may be in either.
    pub(crate) fn view_of(&self, name: &LockName) -> (Arc<Stores>, Phase) {
        let mut state = locked(&self.shared.state);
        let plan = state.member.plan_of(name).cloned();
        let phase = match &plan {
            None => Phase::SourceOnly,
            Some(plan) if plan.from == Phase::SourceOnly && plan.phase == Phase::SourceOnly => {
                Phase::SourceOnly
            }
            Some(plan) if !plan.from.takes_source() && !plan.phase.takes_source() => plan.phase,
            Some(_) => Phase::Dual,
        };
        (self.shared.stores(&mut state, plan.as_ref()), phase)
    }

    /// The stores of names without a plan.
    pub(crate) fn unplanned(&self) -> Arc<Stores> {
        self.shared.stores(&mut locked(&self.shared.state), None)
    }

    /// Ends the membership, and waits until it has.
    pub(crate) async fn leave(&self) {
        let mut changes = self.changes();
        self.shared.stop.cancel();
        let has_left = || locked(&self.shared.state).bound.is_none();
        let left = async { while !has_left() && changes.changed().await.is_ok() {} };
        let _ = timeout(LEAVE_LIMIT, left).await;
    }

    /// Attempts and guards. For leak checks.
    pub(crate) fn tickets(&self) -> usize {
        locked(&self.shared.state).member.tickets()
    }
}

impl State {
    /// With the reason why there is no membership.
    fn unproven(&self, unproven: NotProven) -> LockError {
        let error = LockError::new(ErrorKind::Unavailable, unproven.to_string());
        match self.obstacle.clone() {
            Some(obstacle) => error.caused_by(obstacle),
            None => error,
        }
    }
}

impl Shared {
    fn stores(&self, state: &mut State, plan: Option<&Plan>) -> Arc<Stores> {
        let prefix = plan.map(|plan| plan.prefix.clone()).unwrap_or_default();
        let epoch = plan.map_or(0, |plan| plan.epoch);
        if let Some((of, stores)) = state.stores.get(&prefix)
            && *of == epoch
        {
            return Arc::clone(stores);
        }
        let stores = Arc::new(match plan {
            Some(plan) => {
                let floor = RecordFloor::of_plan(Arc::clone(&self.records), &plan.prefix);
                self.both.stores(Arc::new(floor), plan.complete)
            }
            None => self.both.stores(Arc::new(MemFloor::new()), None),
        });
        state.stores.insert(prefix, (epoch, Arc::clone(&stores)));
        stores
    }

    async fn serve(&self) {
        while !self.stop.is_cancelled() {
            let obstacle = match self.join().await {
                Ok(joined) => self.take_part(joined).await,
                Err(error) => error,
            };
            self.obstructed(obstacle);
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Registers first, and reads the plans then: so a plan that is written later waits for this
    /// member.
    async fn join(&self) -> Result<Joined, LockError> {
        let lease = self.records.lease().await?;
        let mut joined = Joined::new(lease, &self.label, self.both.member.as_ref());
        joined
            .write(&*self.records, MemberReport::default())
            .await?;
        let bound = Bound {
            lease: Arc::clone(&joined.lease.lease),
            over: CancellationToken::new(),
        };
        locked(&self.state).bound = Some(bound);
        Ok(joined)
    }

    /// Is a member until that ends, and says why it did.
    async fn take_part(&self, mut joined: Joined) -> LockError {
        let lease = Arc::clone(&joined.lease.lease);
        let (obstacle, reason) = tokio::select! {
            biased;
            reason = over(&lease) => {
                let message = format!("the membership has ended: {reason}");
                (LockError::new(ErrorKind::Unavailable, message), reason)
            }
            () = self.stop.cancelled() => {
                (shut_down(), LossReason::Shutdown)
            }
            error = self.follow(&mut joined) => (error, LossReason::Removed),
        };
        // Guards are lost before anybody may think that they are gone.
        lease.lose(reason);
        self.expelled();
        let left = joined.leave(&*self.records);
        // Otherwise the record goes with the lease.
        let _ = timeout(LEAVE_LIMIT, left).await;
        obstacle
    }

    /// Follows the plans until that fails for good.
    async fn follow(&self, joined: &mut Joined) -> LockError {
        let watch = self.records.watch(Plans::RECORD);
        let clock = joined.lease.lease.clock();
        let mut written = Written::default();
        let mut is_read = false;
        loop {
            if !is_read {
                match self.read().await {
                    Ok(()) => is_read = true,
                    Err(error) if error.kind() == ErrorKind::Protocol => {
                        // Stays where it is: nobody goes on without its report.
                        tracing::warn!(%error, "the plans of the migration cannot be followed");
                        self.obstructed(error);
                        is_read = true;
                    }
                    Err(error) if error.kind() == ErrorKind::Unavailable => sleep(PAUSE).await,
                    Err(error) => return error,
                }
                continue;
            }
            let report = locked(&self.state).member.report();
            if let Some(report) = report
                && written.is_outdated_by(&report, clock.now())
            {
                match joined.write(&*self.records, report.clone()).await {
                    Ok(()) => written.was_written(report, clock.now()),
                    Err(error) if error.kind() == ErrorKind::Unavailable => sleep(PAUSE).await,
                    Err(error) => return error,
                }
                continue;
            }
            let drained = async {
                match self.is_draining() {
                    true => sleep(DRAIN_CHECK).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = watch.changed() => is_read = false,
                () = drained => {}
            }
        }
    }

    async fn read(&self) -> Result<(), LockError> {
        let record = self.records.read(Plans::RECORD).await?;
        let plans = Plans::parse(record.as_ref().map(|record| &*record.value))?;
        let mut state = locked(&self.state);
        state.member.told(plans.plans.into(), plans.epoch);
        state.obstacle = None;
        drop(state);
        self.changed();
        Ok(())
    }

    /// Looks at the guards of older phases, and tells if some are left.
    fn is_draining(&self) -> bool {
        let (draining, guards) = {
            let state = locked(&self.state);
            let draining: Vec<_> = state.member.draining().collect();
            let guards: Vec<_> = draining
                .iter()
                .map(|ticket| state.guards.get(ticket).map(Weak::upgrade))
                .collect();
            (draining, guards)
        };
        let mut is_left = false;
        for (ticket, guard) in draining.into_iter().zip(guards) {
            // One without a guard is an attempt, which gives up by itself.
            let is_over = guard.is_some_and(|guard| {
                guard.is_none_or(|guard| guard.status().state() != GuardState::Held)
            });
            match is_over {
                true => locked(&self.state).member.end(ticket),
                false => is_left = true,
            }
        }
        is_left
    }

    fn obstructed(&self, obstacle: LockError) {
        let mut state = locked(&self.state);
        if state.obstacle.is_none() && !self.stop.is_cancelled() {
            tracing::warn!(error = %obstacle, "this process is no member of its migration; it tries to join again");
        }
        state.obstacle = Some(obstacle);
        drop(state);
        self.changed();
    }

    /// The membership is over: so are all guards, whatever their holders do.
    fn expelled(&self) {
        let (bound, guards) = {
            let mut state = locked(&self.state);
            state.member.expelled();
            (state.bound.take(), std::mem::take(&mut state.guards))
        };
        if let Some(bound) = bound {
            bound.over.cancel();
        }
        for guard in guards.into_values().filter_map(|guard| guard.upgrade()) {
            give_up(&guard);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}
