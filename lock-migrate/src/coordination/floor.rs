use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{ErrorKind, FencingToken, LockError};

use super::{Plans, Record, RecordStore, RecordWrite, Write};
use crate::{FloorStore, Phase};

/// A floor as a record beside the target's locks.
///
/// It is read as it was when the lock was owned: so whatever an earlier holder had raised is in it,
/// and nothing that a later one does. The floor of a plan is raised only while the plan allows
/// [`Phase::Dual`], which the store checks as it writes: a process that was paused or whose request
/// was on its way for long cannot raise one that is final.
#[derive(Clone, Debug)]
pub(crate) struct RecordFloor {
    records: Arc<dyn RecordStore>,
    name: String,
    /// The prefix of its plan, if a coordinator has one.
    plan: Option<String>,
}

/// The record of a plan's floor.
pub(crate) fn floor_name(prefix: &str) -> String {
    record_name("floor", prefix)
}

/// One of a plan's records. The last part of the name is never one of a lock's entry.
pub(super) fn record_name(what: &str, prefix: &str) -> String {
    let mut name = format!("lock-migrate/{what}");
    if !prefix.is_empty() {
        name.push(':');
        name.push_str(&prefix.replace('%', "%25").replace('/', "%2f"));
    }
    name
}

impl RecordFloor {
    #[cfg(feature = "etcd")]
    pub(crate) fn named(records: Arc<dyn RecordStore>, name: String) -> Self {
        Self {
            records,
            name,
            plan: None,
        }
    }

    pub(crate) fn of_plan(records: Arc<dyn RecordStore>, prefix: &str) -> Self {
        Self {
            records,
            name: floor_name(prefix),
            plan: Some(prefix.to_owned()),
        }
    }

    /// The floor and the revision at which it was written.
    pub(crate) async fn latest(&self) -> Result<(u64, i64), LockError> {
        let record = self.records.read(&self.name).await?;
        let revision = record.as_ref().map_or(0, |record| record.revision);
        Ok((parse(record)?, revision))
    }

    /// The check that the plan allows a raise.
    async fn permission(&self) -> Result<Option<RecordWrite<'_>>, LockError> {
        let Some(prefix) = &self.plan else {
            return Ok(None);
        };
        let record = self.records.read(Plans::RECORD).await?;
        let plans = Plans::parse(record.as_ref().map(|record| &*record.value))?;
        let plan = plans.plan(prefix);
        if !plan.is_some_and(|plan| plan.allows(Phase::Dual)) {
            let message = "the plan has left the phase dual, in which the floor may be raised";
            return Err(LockError::new(ErrorKind::Lost, message));
        }
        Ok(Some(RecordWrite {
            name: Plans::RECORD,
            if_revision: record.map_or(0, |record| record.revision),
            write: Write::Check,
        }))
    }
}

#[async_trait]
impl FloorStore for RecordFloor {
    async fn read_at(&self, owned_at: FencingToken) -> Result<u64, LockError> {
        parse(self.records.read_at(&self.name, owned_at).await?)
    }

    async fn read(&self) -> Result<u64, LockError> {
        self.latest().await.map(|(floor, _)| floor)
    }

    async fn raise(&self, at_least: u64) -> Result<u64, LockError> {
        loop {
            let (floor, written) = self.latest().await?;
            if floor >= at_least {
                return Ok(floor);
            }
            let value = at_least.to_string();
            let raise = RecordWrite {
                name: &self.name,
                if_revision: written,
                write: Write::Put(value.as_bytes()),
            };
            let writes: Vec<_> = [raise]
                .into_iter()
                .chain(self.permission().await?)
                .collect();
            // If somebody else was first, theirs may do.
            if self.records.write(&writes).await?.is_some() {
                return Ok(at_least);
            }
        }
    }
}

fn parse(record: Option<Record>) -> Result<u64, LockError> {
    let Some(record) = record else {
        return Ok(0);
    };
    let floor = str::from_utf8(&record.value)
        .ok()
        .and_then(|text| text.parse().ok());
    floor.ok_or_else(|| {
        let message = "the floor's record is no number; somebody else has written it";
        LockError::new(ErrorKind::Protocol, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemRecords, coordination::Plan};

    #[tokio::test]
    async fn a_floor_is_raised_only_while_its_plan_allows_dual() {
        let records = MemRecords::new();
        let floor = RecordFloor::of_plan(Arc::new(records.clone()), "orders/");
        let error = floor.raise(5).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
        for (phase, may_raise) in [
            (Phase::Dual, true),
            (Phase::TargetOnly, false),
            (Phase::Final, false),
        ] {
            let mut plans = Plans::default();
            let mut plan = Plan::new("orders/", 1);
            (plan.phase, plan.from) = (phase, phase);
            plans.add(plan).unwrap();
            let before = RecordStore::read(&records, Plans::RECORD).await.unwrap();
            let write = RecordWrite {
                name: Plans::RECORD,
                if_revision: before.map_or(0, |record| record.revision),
                write: Write::Put(&plans.to_bytes().unwrap()),
            };
            assert!(
                RecordStore::write(&records, &[write])
                    .await
                    .unwrap()
                    .is_some()
            );
            let to = floor.read().await.unwrap() + 5;
            assert_eq!(floor.raise(to).await.is_ok(), may_raise, "{phase}");
        }
        assert_eq!(floor.read().await.unwrap(), 5);
    }

    #[test]
    fn no_floor_looks_like_the_entry_of_a_lock() {
        assert_eq!(floor_name(""), "lock-migrate/floor");
        assert_eq!(floor_name("orders/"), "lock-migrate/floor:orders%2f");
        assert_eq!(floor_name("a%2f/beef"), "lock-migrate/floor:a%252f%2fbeef");
    }
}
