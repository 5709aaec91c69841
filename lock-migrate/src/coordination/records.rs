use std::{any::Any, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use lock_core::{FencingToken, LockError, backend::Lease};

/// Small records in the target store, on which the coordinator stands. Reads see every write that
/// was acknowledged before.
#[async_trait]
pub trait RecordStore: Debug + Send + Sync + 'static {
    /// Reads a record; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn read(&self, name: &str) -> Result<Option<Record>, LockError>;

    /// Reads a record as it was when a lock of the target had this token, or, where the store
    /// cannot tell, as it is now.
    ///
    /// # Errors
    ///
    /// Those of the store; [`Lost`](lock_core::ErrorKind::Lost) if the store has forgotten it.
    async fn read_at(&self, name: &str, token: FencingToken) -> Result<Option<Record>, LockError>;

    /// Tells if [`read_at`](Self::read_at) knows the past; default: it does not.
    fn keeps_history(&self) -> bool {
        false
    }

    /// Reads all records whose names begin with `prefix`, as they were at one instant.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn list(&self, prefix: &str) -> Result<Vec<Record>, LockError>;

    /// Makes all of these changes if every record has its revision, and returns the revision of the
    /// change; none of them otherwise, and returns `None`. The first record's value is one that
    /// nobody else writes.
    ///
    /// # Errors
    ///
    /// Those of the store; [`Lost`](lock_core::ErrorKind::Lost) if a lease is gone.
    async fn write(&self, writes: &[RecordWrite<'_>]) -> Result<Option<i64>, LockError>;

    /// Grants a lease, which is renewed until it is dropped.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn lease(&self) -> Result<RecordLease, LockError>;

    /// Watches a record.
    fn watch(&self, name: &str) -> Box<dyn RecordWatch>;
}

/// One record, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name.
    pub name: String,
    /// What was written.
    pub value: Vec<u8>,
    /// The store's revision when it was written last.
    pub revision: i64,
}

/// A change of one record.
#[derive(Clone, Copy, Debug)]
pub struct RecordWrite<'a> {
    /// The record.
    pub name: &'a str,
    /// The revision at which it was written last, 0 for one that is not there.
    pub if_revision: i64,
    /// The change.
    pub write: Write<'a>,
}

/// The effect of a [`RecordWrite`].
#[derive(Clone, Copy, Debug)]
pub enum Write<'a> {
    /// Changes nothing: the record only has to have its revision.
    Check,
    /// Writes this value.
    Put(&'a [u8]),
    /// Writes this value, and has the record removed when the lease ends.
    PutUnder(&'a RecordLease, &'a [u8]),
    /// Removes the record.
    Delete,
}

/// A lease for records.
#[derive(Clone, Debug)]
pub struct RecordLease {
    /// Its validity, as far as this process knows.
    pub lease: Arc<Lease>,
    /// The store's own handle, which keeps the lease alive.
    pub handle: Arc<dyn LeaseHandle>,
}

/// The store's own handle of a lease.
pub trait LeaseHandle: Any + Debug + Send + Sync {}

impl<T: Any + Debug + Send + Sync> LeaseHandle for T {}

/// Reports that a record may have changed.
#[async_trait]
pub trait RecordWatch: Debug + Send + Sync {
    /// Waits until the record may have changed since the last call; the first call returns once
    /// later changes are reported.
    async fn changed(&self);
}
