use std::{any::Any, sync::Arc};

use async_trait::async_trait;
use lock_core::{ErrorKind, FencingToken, LockError};
use lock_etcd::{
    EtcdRecord, EtcdRecordAction, EtcdRecordLease, EtcdRecordWatch, EtcdRecordWrite, EtcdRecords,
};

use super::{Record, RecordLease, RecordStore, RecordWatch, RecordWrite, Write};

impl From<EtcdRecord> for Record {
    fn from(record: EtcdRecord) -> Self {
        Self {
            name: record.name,
            value: record.value,
            revision: record.revision,
        }
    }
}

#[async_trait]
impl RecordStore for EtcdRecords {
    async fn read(&self, name: &str) -> Result<Option<Record>, LockError> {
        Ok(self.read(name).await?.map(Record::from))
    }

    /// The token of a lock is the store's revision.
    async fn read_at(&self, name: &str, token: FencingToken) -> Result<Option<Record>, LockError> {
        let revision = i64::try_from(token.as_u64()).unwrap_or(i64::MAX);
        if let Some(record) = self.read_at(name, revision).await? {
            return Ok(record.map(Record::from));
        }
        // Compacted; then what is there now will do if it was there at that time.
        match self.read(name).await? {
            Some(record) if record.revision > revision => {
                let message =
                    "a record was written, and its history compacted, since the lock was granted";
                Err(LockError::new(ErrorKind::Lost, message))
            }
            record => Ok(record.map(Record::from)),
        }
    }

    fn keeps_history(&self) -> bool {
        true
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, LockError> {
        let records = self.list(prefix).await?;
        Ok(records.into_iter().map(Record::from).collect())
    }

    async fn write(&self, writes: &[RecordWrite<'_>]) -> Result<Option<i64>, LockError> {
        let writes: Result<Vec<_>, _> = writes.iter().map(of_etcd).collect();
        self.write_all(&writes?).await
    }

    async fn lease(&self) -> Result<RecordLease, LockError> {
        let lease = self.lease().await?;
        Ok(RecordLease {
            lease: Arc::clone(lease.lease()),
            handle: Arc::new(lease),
        })
    }

    fn watch(&self, name: &str) -> Box<dyn RecordWatch> {
        Box::new(self.watch(name))
    }
}

fn of_etcd<'a>(write: &RecordWrite<'a>) -> Result<EtcdRecordWrite<'a>, LockError> {
    let action = match write.write {
        Write::Check => EtcdRecordAction::Check,
        Write::Put(value) => EtcdRecordAction::Put(value),
        Write::Delete => EtcdRecordAction::Delete,
        Write::PutUnder(lease, value) => {
            let handle: &dyn Any = &*lease.handle;
            let lease = handle.downcast_ref::<EtcdRecordLease>().ok_or_else(|| {
                LockError::new(ErrorKind::InvalidConfig, "a lease of another store")
            })?;
            EtcdRecordAction::PutUnder(lease, value)
        }
    };
    Ok(EtcdRecordWrite {
        name: write.name,
        if_revision: Some(write.if_revision),
        action,
    })
}

#[async_trait]
impl RecordWatch for EtcdRecordWatch {
    async fn changed(&self) {
        self.changed().await;
    }
}
