use std::{sync::Arc, time::Duration};

use lock_core::{DistributedLock, ErrorKind, LockError, LockName};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    HistoryEntry, MemberReport, MemberStatus, Order, Plan, PlanStatus, Plans, Preparation,
    RecordFloor, RecordStore, RecordWrite, Status, Write, floor_name,
    joined::{MEMBERS, MemberRecord},
    order::Step,
    plans::{check_format, unreadable},
};
use crate::{FloorStore, lock::HEAD_ROOM, prepare::probe};

/// Changes the plans of a migration.
///
/// Any number of operators may act at once: each change is made only if no plan has changed since
/// the operator looked. One that dies leaves a plan that any other can continue or take back.
#[derive(Clone, Debug)]
pub struct Operator {
    source: Arc<dyn DistributedLock>,
    target: Arc<dyn DistributedLock>,
    records: Arc<dyn RecordStore>,
    by: String,
    head_room: u64,
}

/// The plans and the members, as they were at one instant or later, in this order: a member that
/// is not seen has read the plans, or will.
struct Seen {
    plans: Plans,
    revision: i64,
    members: Vec<(String, MemberRecord)>,
}

impl Seen {
    fn reports(&self) -> Vec<MemberReport> {
        let reports = self.members.iter().map(|(_, member)| member.report.clone());
        reports.collect()
    }
}

impl Operator {
    /// An operator of the plans in `records`, which history calls `by`.
    pub fn new(
        source: Arc<dyn DistributedLock>,
        target: Arc<dyn DistributedLock>,
        records: Arc<dyn RecordStore>,
        by: impl Into<String>,
    ) -> Self {
        Self {
            source,
            target,
            records,
            by: by.into(),
            head_room: HEAD_ROOM,
        }
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
            plans.push(seen.status_of(plan, floor));
        }
        let mut members: Vec<_> = seen.members.into_iter().map(member_status).collect();
        members.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
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
                    "the plan `{}` overlaps `{prefix}`; choose another prefix, or go on with that plan",
                    other.prefix
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
            if !name.as_str().starts_with("lock-migrate/") {
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
        loop {
            let mut seen = self.look().await?;
            let plan = seen.plan(prefix)?.clone();
            let epoch = seen.plans.epoch + 1;
            let Step {
                plan: next,
                preparation,
            } = plan
                .decide(order, &seen.reports(), epoch)
                .map_err(|refusal| seen.refused(&plan, refusal))?;
            if dry_run {
                return Ok(next);
            }
            let mut next = next;
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
            let writes: Vec<_> = (write.into_iter())
                .map(|write| RecordWrite {
                    name: &floor_name,
                    if_revision: floor.1,
                    write,
                })
                .collect();
            seen.replace(&plan, next.clone(), epoch);
            let shown = next.as_ref().unwrap_or(&plan);
            if self.write(seen, shown, word(order), &writes).await? {
                return Ok(next);
            }
        }
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
                let reached = probe(Ok(&self.source), PROBE_LIMIT).await?;
                let ahead = reached.saturating_add(self.head_room);
                return Ok((floor.max(ahead), revision));
            }
            Preparation::AwaitSource if floor == 0 => {}
            Preparation::AwaitSource => {
                let passed = floor.saturating_add(probe(Ok(&self.target), PROBE_LIMIT).await?);
                while probe(Ok(&self.source), PROBE_LIMIT).await? <= passed {
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
            let status = seen.status_of(seen.plan(prefix)?, 0);
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

    fn floor(&self, prefix: &str) -> RecordFloor {
        RecordFloor::of_plan(Arc::clone(&self.records), prefix)
    }

    async fn read_plans(&self) -> Result<(Plans, i64), LockError> {
        let record = self.records.read(Plans::RECORD).await?;
        let plans = Plans::parse(record.as_ref().map(|record| &*record.value))?;
        Ok((plans, record.map_or(0, |record| record.revision)))
    }

    /// Reads the plans first: a member that joins after the list has read these, or later ones.
    async fn look(&self) -> Result<Seen, LockError> {
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

const PROBE_LIMIT: Duration = Duration::from_secs(10);

impl Seen {
    fn plan(&self, prefix: &str) -> Result<&Plan, LockError> {
        self.plans.plan(prefix).ok_or_else(|| {
            let known: Vec<_> = (self.plans.plans.iter())
                .map(|plan| format!("`{}`", plan.prefix))
                .collect();
            let known = match known.is_empty() {
                true => "there are none; make one first".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            invalid(format!("there is no plan `{prefix}`; {known}"))
        })
    }

    fn status_of(&self, plan: &Plan, floor: u64) -> PlanStatus {
        let behind = (self.members.iter())
            .filter(|(_, member)| !plan.is_followed_by(&member.report))
            .map(|(_, member)| {
                let draining = member.report.draining.get(&plan.prefix);
                (member.label.clone(), draining.cloned().unwrap_or_default())
            })
            .collect();
        PlanStatus {
            plan: plan.clone(),
            settled: plan.is_settled(&self.reports()),
            floor,
            behind,
        }
    }

    /// With the members that are behind, if it is for them.
    fn refused(&self, plan: &Plan, refusal: super::Refusal) -> LockError {
        let mut message = format!("`{}`: {refusal}", plan.prefix);
        if refusal == super::Refusal::Unsettled {
            let behind = self.status_of(plan, 0).behind;
            let behind: Vec<_> = behind.keys().take(5).cloned().collect();
            message = format!("{message} (behind: {})", behind.join(", "));
        }
        invalid(message)
    }

    fn replace(&mut self, plan: &Plan, next: Option<Plan>, epoch: u64) {
        self.plans.epoch = epoch;
        match next {
            Some(next) => {
                let place = self
                    .plans
                    .plans
                    .iter_mut()
                    .find(|it| it.prefix == plan.prefix);
                if let Some(place) = place {
                    *place = next;
                }
            }
            None => self.plans.plans.retain(|it| it.prefix != plan.prefix),
        }
    }
}

fn member_status((id, member): (String, MemberRecord)) -> MemberStatus {
    MemberStatus {
        id,
        label: member.label,
        seen: member.report.seen,
    }
}

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

fn invalid(message: String) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}
