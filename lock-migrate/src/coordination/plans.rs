use std::collections::VecDeque;

use lock_core::{ErrorKind, LockError};
use serde::{Deserialize, Serialize};

use super::{Plan, verifier::now_ms};
use crate::Phase;

/// All plans of a namespace, and what operators have done: one record, so that a change of it is
/// atomic, and plans that overlap are never written, by two operators at once either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plans {
    /// The format of this record and of the members'.
    format: u32,
    /// The number of the last change of a phase.
    pub epoch: u64,
    /// In the order of their prefixes, none of which begins with another.
    pub plans: Vec<Plan>,
    /// The latest changes, at most [`HISTORY`](Self::HISTORY), the oldest first.
    #[serde(default)]
    pub history: VecDeque<HistoryEntry>,
}

/// A change that an operator has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HistoryEntry {
    /// Milliseconds since 1970, by the operator's clock.
    pub at_ms: u64,
    /// The operator.
    pub by: String,
    /// The prefix of the plan.
    pub prefix: String,
    /// The change.
    pub what: String,
    /// The phase from then on.
    pub phase: Option<Phase>,
    /// A number that nobody else draws, so that no two writes are equal.
    #[serde(default)]
    nonce: u64,
}

impl HistoryEntry {
    pub(crate) fn new(by: &str, prefix: &str, what: &str, phase: Option<Phase>) -> Self {
        Self {
            at_ms: now_ms(),
            by: by.to_owned(),
            prefix: prefix.to_owned(),
            what: what.to_owned(),
            phase,
            nonce: rand::random(),
        }
    }
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            format: Self::FORMAT,
            epoch: 0,
            plans: Vec::new(),
            history: VecDeque::new(),
        }
    }
}

impl Plans {
    /// The number of changes that are remembered.
    pub const HISTORY: usize = 100;

    /// The format that this version writes, and the latest that it understands.
    pub(crate) const FORMAT: u32 = 1;

    pub(crate) const RECORD: &str = "lock-migrate/plans";

    /// Reads the record's value; none is no plans.
    pub(crate) fn parse(value: Option<&[u8]>) -> Result<Self, LockError> {
        let Some(value) = value else {
            return Ok(Self::default());
        };
        check_format(value)?;
        serde_json::from_slice(value).map_err(unreadable)
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, LockError> {
        serde_json::to_vec(self).map_err(unreadable)
    }

    /// The plan that a name belongs to.
    #[must_use]
    pub fn of_name(&self, name: &str) -> Option<&Plan> {
        // Prefixes do not begin with each other: only the last one before the name can be its own.
        let behind = self.plans.partition_point(|plan| *plan.prefix <= *name);
        let plan = self.plans.get(behind.checked_sub(1)?)?;
        name.starts_with(&plan.prefix).then_some(plan)
    }

    /// The plan with this prefix.
    #[must_use]
    pub fn plan(&self, prefix: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.prefix == prefix)
    }

    /// Adds a plan.
    ///
    /// # Errors
    ///
    /// The plan that is there already and overlaps.
    pub fn add(&mut self, plan: Plan) -> Result<(), Plan> {
        if let Some(other) = self.plans.iter().find(|other| other.overlaps(&plan.prefix)) {
            return Err(other.clone());
        }
        let at = self
            .plans
            .partition_point(|other| other.prefix < plan.prefix);
        self.plans.insert(at, plan);
        Ok(())
    }

    pub(crate) fn remember(&mut self, entry: HistoryEntry) {
        self.history.push_back(entry);
        while self.history.len() > Self::HISTORY {
            self.history.pop_front();
        }
    }
}

/// Tells if the migration of all names is complete: nothing can change any more.
#[cfg(feature = "etcd")]
pub(crate) async fn is_complete(records: &dyn super::RecordStore) -> Result<bool, LockError> {
    let record = records.read(Plans::RECORD).await?;
    let plans = Plans::parse(record.as_ref().map(|record| &*record.value))?;
    Ok(plans.plan("").is_some_and(|plan| plan.complete.is_some()))
}

/// The part of every record that all versions understand.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Refuses what a version has written that this one does not understand.
pub(crate) fn check_format(value: &[u8]) -> Result<(), LockError> {
    let Format { format } = serde_json::from_slice(value).map_err(unreadable)?;
    if format == Plans::FORMAT {
        return Ok(());
    }
    let message = format!(
        "the coordinator's records have the format {format}, and this version understands {}; use the same version everywhere",
        Plans::FORMAT
    );
    Err(LockError::new(ErrorKind::Protocol, message))
}

pub(crate) fn unreadable(error: serde_json::Error) -> LockError {
    let message = "the coordinator's record cannot be read; somebody else has written it";
    LockError::new(ErrorKind::Protocol, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_plan_that_it_begins_with() {
        let mut plans = Plans::default();
        for prefix in ["orders/", "invoices/", "orders-old/", "z"] {
            plans.add(Plan::new(prefix, 1)).unwrap();
        }
        for (name, prefix) in [
            ("orders/1", Some("orders/")),
            ("orders-old/1", Some("orders-old/")),
            ("orders", None),
            ("zebra", Some("z")),
            ("a", None),
            ("orders/", Some("orders/")),
        ] {
            let plan = plans.of_name(name).map(|plan| plan.prefix.as_str());
            assert_eq!(plan, prefix, "{name}");
        }
        for overlapping in ["", "orders/eu/", "o", "orders/"] {
            assert!(
                plans.add(Plan::new(overlapping, 1)).is_err(),
                "{overlapping}"
            );
        }
    }

    #[test]
    fn a_record_comes_back_and_a_newer_one_is_refused() {
        let mut plans = Plans::default();
        plans.add(Plan::new("orders/", 3)).unwrap();
        for _ in 0..Plans::HISTORY + 5 {
            plans.remember(HistoryEntry::new("me", "orders/", "advance", None));
        }
        assert_eq!(plans.history.len(), Plans::HISTORY);
        let bytes = plans.to_bytes().unwrap();
        assert_eq!(Plans::parse(Some(&bytes)).unwrap(), plans);
        let error = Plans::parse(Some(br#"{"format":2,"more":1}"#)).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
        let error = Plans::parse(Some(b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}
