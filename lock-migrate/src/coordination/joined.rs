use lock_core::{ErrorKind, LockError, OwnerId};
use serde::{Deserialize, Serialize};

use super::{MemberReport, Plans, RecordLease, RecordStore, RecordWrite, Write, plans};

/// A member's record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub(super) format: u32,
    /// The process, for people.
    pub(super) label: String,
    /// The mark of its entries in the source; empty if they have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) mark: String,
    #[serde(flatten)]
    pub(super) report: MemberReport,
}

pub(super) const MEMBERS: &str = "lock-migrate/member:";

/// A member's place in the store.
pub(super) struct Joined {
    name: String,
    label: String,
    mark: String,
    pub(super) lease: RecordLease,
    revision: i64,
}

impl Joined {
    pub(super) fn new(lease: RecordLease, label: &str, mark: Option<&OwnerId>) -> Self {
        Self {
            name: format!("{MEMBERS}{}", OwnerId::random()),
            label: label.to_owned(),
            mark: mark.map(ToString::to_string).unwrap_or_default(),
            lease,
            revision: 0,
        }
    }

    pub(super) async fn write(
        &mut self,
        records: &dyn RecordStore,
        report: MemberReport,
    ) -> Result<(), LockError> {
        let record = MemberRecord {
            format: Plans::FORMAT,
            label: self.label.clone(),
            mark: self.mark.clone(),
            report,
        };
        let value = serde_json::to_vec(&record).map_err(plans::unreadable)?;
        let write = RecordWrite {
            name: &self.name,
            if_revision: self.revision,
            write: Write::PutUnder(&self.lease, &value),
        };
        if let Some(revision) = records.write(&[write]).await? {
            self.revision = revision;
            return Ok(());
        }
        // Nobody else writes it; but an earlier write may have had no answer.
        let Some(record) = records.read(&self.name).await? else {
            let message = "somebody has removed this member's record";
            return Err(LockError::new(ErrorKind::Lost, message));
        };
        self.revision = record.revision;
        let message = "an earlier write of this member's record was late";
        Err(LockError::new(ErrorKind::Unavailable, message))
    }

    pub(super) async fn leave(self, records: &dyn RecordStore) -> Result<(), LockError> {
        let removal = RecordWrite {
            name: &self.name,
            if_revision: self.revision,
            write: Write::Delete,
        };
        records.write(&[removal]).await.map(drop)
    }
}
