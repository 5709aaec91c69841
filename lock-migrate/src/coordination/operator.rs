use std::{sync::Arc, time::Duration};

use lock_core::{DistributedLock, ErrorKind, LockError, LockName};
#[cfg(feature = "etcd")]
use lock_core::{LockUrl, Registry};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Evidence, HistoryEntry, MemberReport, Order, Plan, PlanStatus, Plans, Preparation, RecordFloor,
    RecordStore, RecordWrite, Sighting, Status, Verified, Write, floor_name,
    joined::MEMBERS,
    order::Step,
    plans::{check_format, unreadable},
    seen::{Seen, invalid, named},
    source::Source,
    verifier::verified_name,
};
use crate::{FloorStore, Phase, lock::HEAD_ROOM, prepare::probe};

/// Changes the plans of a migration.
///
/// Any number of operators may act at once: each change is made only if no plan has changed since
/// the operator looked. One that dies leaves a plan that any other can continue or take back.
#[derive(Clone, Debug)]
pub struct Operator {
    pub(super) source: Arc<Source>,
    pub(super) target: Arc<dyn DistributedLock>,
    pub(super) records: Arc<dyn RecordStore>,
    by: String,
    head_room: u64,
    pub(super) foreign_window: Duration,
    is_without_members: bool,
}

/// Begins the names that the migration itself locks.
pub(super) const OWN: &str = "lock-migrate/";

impl Operator {
    /// An operator of the plans in `records`, which history calls `by`.
    pub fn new(
        source: Arc<dyn DistributedLock>,
        target: Arc<dyn DistributedLock>,
        records: Arc<dyn RecordStore>,
        by: impl Into<String>,
    ) -> Self {
        Self::of(Source::connected(source), target, records, by)
    }

    /// As [`new`](Self::new), with a source that is connected when it is needed first.
    #[cfg(feature = "etcd")]
    pub(crate) fn with_source_at(
        registry: Registry,
        source: LockUrl,
        target: Arc<dyn DistributedLock>,
        records: Arc<dyn RecordStore>,
        by: impl Into<String>,
    ) -> Self {
        Self::of(Source::at(registry, source), target, records, by)
    }

    fn of(
        source: Source,
        target: Arc<dyn DistributedLock>,
        records: Arc<dyn RecordStore>,
        by: impl Into<String>,
    ) -> Self {
        Self {
            source: Arc::new(source),
            target,
            records,
            by: by.into(),
            head_room: HEAD_ROOM,
            foreign_window: Self::FOREIGN_WINDOW,
            is_without_members: false,
        }
    }

    /// How long foreign lockers must not have been seen, unless
    /// [`with_foreign_window`](Self::with_foreign_window) says otherwise: ten minutes.
    pub const FOREIGN_WINDOW: Duration = Duration::from_secs(600);

    /// Sets how long nobody may have been seen to lock in the source without being a member before
    /// [`Phase::TargetOnly`](crate::Phase::TargetOnly) is entered; default:
    /// [`FOREIGN_WINDOW`](Self::FOREIGN_WINDOW). With zero nobody looks.
    #[must_use]
    pub fn with_foreign_window(mut self, window: Duration) -> Self {
        self.foreign_window = window;
        self
    }

    /// Lets [`Order::Advance`] go on without any live member, which is refused by default: members
    /// with another target would not be seen.
    #[must_use]
    pub fn without_members(mut self, is_expected: bool) -> Self {
        self.is_without_members = is_expected;
        self
    }

    /// As [`MigratingLockBuilder::with_head_room`](crate::MigratingLockBuilder::with_head_room).
    #[must_use]
    pub fn with_head_room(mut self, tokens: u64) -> Self {
        self.head_room = tokens;
        self
    }

    /// All plans, and how far the members have followed them.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn status(&self) -> Result<Status, LockError> {
        let seen = self.look().await?;
        let mut plans = Vec::new();
        for plan in &seen.plans.plans {
            let floor = match plan.complete {
                Some(floor) => floor,
                None => self.floor(&plan.prefix).read().await?,
            };
            let (verified, _) = self.verified(&plan.prefix).await?;
            plans.push(seen.status_of(plan, floor, verified));
        }
        let members = seen.member_statuses();
        Ok(Status { plans, members })
    }

    /// What operators have done, the oldest first.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn history(&self) -> Result<Vec<HistoryEntry>, LockError> {
        Ok(self.read_plans().await?.0.history.into())
    }

    /// Makes a plan for all names that begin with `prefix`, in
    /// [`Phase::SourceOnly`](crate::Phase::SourceOnly): nothing changes by that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if there is a plan that overlaps, or the target holds locks with
    /// the prefix, which are somebody else's; those of the stores.
    pub async fn plan(&self, prefix: &str, dry_run: bool) -> Result<Plan, LockError> {
        if !prefix.is_empty() {
            LockName::new(prefix)?;
        }
        loop {
            let mut seen = self.look().await?;
            let plan = Plan::new(prefix, seen.plans.epoch + 1);
            seen.plans.epoch = plan.epoch;
            seen.plans.add(plan.clone()).map_err(|other| {
                invalid(format!(
                    "the plan {} overlaps {}; choose another prefix, or go on with that plan",
                    named(&other.prefix),
                    match prefix {
                        "" => "all names".to_owned(),
                        prefix => named(prefix),
                    }
                ))
            })?;
            if let Some(held) = self.held_in_target(prefix).await? {
                return Err(invalid(format!(
                    "`{held}` is locked in the target already; whoever locks there takes no part in the migration: stop it, or give the migration a namespace of its own"
                )));
            }
            if dry_run || self.write(seen, &plan, "plan", &[]).await? {
                return Ok(plan);
            }
        }
    }

    async fn held_in_target(&self, prefix: &str) -> Result<Option<LockName>, LockError> {
        let mut list = self.target.list(prefix).await?;
        while let Some(info) = list.next().await {
            let name = info?.name;
            if !name.as_str().starts_with(OWN) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Carries out an order, and returns the plan from then on, `None` if it is removed. With
    /// `dry_run` says what it would be. `limit` bounds the wait that going back to
    /// [`Phase::SourceOnly`](crate::Phase::SourceOnly) takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for an unknown prefix and for an order that is
    /// [refused](super::Refusal); those of the stores.
    pub async fn order(
        &self,
        prefix: &str,
        order: Order,
        limit: Duration,
        dry_run: bool,
    ) -> Result<Option<Plan>, LockError> {
        let until = Instant::now() + limit;
        let mut foreign = self.foreign_window.is_zero().then(Vec::new);
        loop {
            let mut seen = self.look().await?;
            let plan = seen.plan(prefix)?.clone();
            let epoch = seen.plans.epoch + 1;
            let known = foreign.as_deref().unwrap_or_default();
            let Step {
                plan: mut next,
                preparation,
            } = plan
                .decide(order, self.evidence(&seen.reports(), known), epoch)
                .map_err(|refusal| seen.refused(&plan, refusal, known))?;
            let leaves_source = order == Order::Advance && plan.phase == Phase::Dual;
            if leaves_source && foreign.is_none() {
                foreign = Some(self.foreign_lockers(prefix, dry_run).await?);
                continue;
            }
            if dry_run {
                return Ok(next);
            }
            let floor = self.prepared(prefix, preparation, until).await?;
            if let (Preparation::ReadFloor, Some(next)) = (preparation, &mut next) {
                next.complete = Some(floor.0);
            }
            let value = floor.0.to_string();
            let floor_name = floor_name(prefix);
            let write = match (preparation, &next) {
                (Preparation::RaiseFloor, _) => Some(Write::Put(value.as_bytes())),
                (Preparation::ReadFloor, _) => Some(Write::Check),
                (_, None) => Some(Write::Delete),
                _ => None,
            };
            let mut writes: Vec<_> = (write.into_iter())
                .map(|write| RecordWrite {
                    name: &floor_name,
                    if_revision: floor.1,
                    write,
                })
                .collect();
            let verified_name = verified_name(prefix);
            if next.is_none() {
                writes.push(RecordWrite {
                    name: &verified_name,
                    if_revision: self.verified(prefix).await?.1,
                    write: Write::Delete,
                });
            }
            seen.replace(&plan, next.clone(), epoch);
            let shown = next.as_ref().unwrap_or(&plan);
            if self.write(seen, shown, word(order), &writes).await? {
                return Ok(next);
            }
        }
    }

    fn evidence<'e>(&self, reports: &'e [MemberReport], foreign: &'e [Sighting]) -> Evidence<'e> {
        Evidence::new(reports)
            .with_foreign(foreign)
            .without_members(self.is_without_members)
    }

    /// The floor that is to be written, and the revision that it is to replace.
    async fn prepared(
        &self,
        prefix: &str,
        preparation: Preparation,
        until: Instant,
    ) -> Result<(u64, i64), LockError> {
        let (floor, revision) = self.floor(prefix).latest().await?;
        match preparation {
            Preparation::None | Preparation::ReadFloor => {}
            Preparation::RaiseFloor => {
                let reached = probe(self.source.get().await, PROBE_LIMIT).await?;
                let ahead = reached.saturating_add(self.head_room);
                return Ok((floor.max(ahead), revision));
            }
            Preparation::AwaitSource if floor == 0 => {}
            Preparation::AwaitSource => {
                let passed = floor.saturating_add(probe(Ok(&self.target), PROBE_LIMIT).await?);
                while probe(self.source.get().await, PROBE_LIMIT).await? <= passed {
                    if Instant::now() >= until {
                        let message = "the source's tokens have not passed the target's in time; they do with its clock, so try again later";
                        return Err(LockError::new(ErrorKind::TimedOut, message));
                    }
                    sleep(LOOK).await;
                }
            }
        }
        Ok((floor, revision))
    }

    /// Waits until all live members have followed a plan; `progress` is called with every look.
    /// Returns how far they are after `limit` if they have not. A target that does not answer is
    /// asked again until then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if there is no plan with this prefix; those of the store.
    pub async fn settle(
        &self,
        prefix: &str,
        limit: Duration,
        mut progress: impl FnMut(&PlanStatus),
    ) -> Result<PlanStatus, LockError> {
        let until = Instant::now() + limit;
        loop {
            let seen = match self.look().await {
                Ok(seen) => seen,
                // Such as while a thousand members follow at once.
                Err(error)
                    if error.kind() == ErrorKind::Unavailable && Instant::now() + LOOK < until =>
                {
                    sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = seen.status_of(seen.plan(prefix)?, 0, Verified::default());
            progress(&status);
            if status.settled || timeout_at(until, sleep(LOOK)).await.is_err() {
                return Ok(status);
            }
        }
    }

    /// Shuts down its clients of both stores, which gives back what they have there.
    ///
    /// # Errors
    ///
    /// Those of the stores; what is left there then ends with its lease.
    pub async fn shutdown(&self) -> Result<(), LockError> {
        let source = self.source.shutdown().await;
        self.target.shutdown().await.and(source)
    }

    pub(super) fn floor(&self, prefix: &str) -> RecordFloor {
        RecordFloor::of_plan(Arc::clone(&self.records), prefix)
    }

    async fn read_plans(&self) -> Result<(Plans, i64), LockError> {
        let record = self.records.read(Plans::RECORD).await?;
        let plans = Plans::parse(record.as_ref().map(|record| &*record.value))?;
        Ok((plans, record.map_or(0, |record| record.revision)))
    }

    /// Reads the plans first: a member that joins after the list has read these, or later ones.
    pub(super) async fn look(&self) -> Result<Seen, LockError> {
        let (plans, revision) = self.read_plans().await?;
        let mut members = Vec::new();
        for record in self.records.list(MEMBERS).await? {
            check_format(&record.value)?;
            let member = serde_json::from_slice(&record.value).map_err(unreadable)?;
            let id = record.name[MEMBERS.len()..].to_owned();
            members.push((id, member));
        }
        Ok(Seen {
            plans,
            revision,
            members,
        })
    }

    /// Writes what was changed, unless some plan has changed since it was read.
    async fn write(
        &self,
        mut seen: Seen,
        plan: &Plan,
        what: &str,
        more: &[RecordWrite<'_>],
    ) -> Result<bool, LockError> {
        let phase = seen.plans.plan(&plan.prefix).map(|plan| plan.phase);
        let entry = HistoryEntry::new(&self.by, &plan.prefix, what, phase);
        seen.plans.remember(entry);
        let value = seen.plans.to_bytes()?;
        let write = RecordWrite {
            name: Plans::RECORD,
            if_revision: seen.revision,
            write: Write::Put(&value),
        };
        let writes: Vec<_> = [write].into_iter().chain(more.iter().copied()).collect();
        Ok(self.records.write(&writes).await?.is_some())
    }
}

/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(10);

fn word(order: Order) -> &'static str {
    match order {
        Order::Advance => "advance",
        Order::RollBack => "roll back",
        Order::Pause => "pause",
        Order::Resume => "resume",
        Order::Remove => "remove",
        Order::Complete => "complete",
    }
}
