use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{FencingToken, LockError};
use lock_etcd::EtcdLock;

use crate::{
    FloorStore,
    coordination::{RecordFloor, floor_name},
};

/// A floor in etcd, as the record `lock-migrate/floor` in the namespace of the target's locks.
///
/// It is read as it was at the store's revision that is the acquisition's token: at that instant
/// the lock was owned, so whatever an earlier holder had raised is in it, and nothing that a later
/// one does.
#[derive(Clone, Debug)]
pub struct EtcdFloor(RecordFloor);

impl EtcdFloor {
    /// The floor of a target. Floors with different names are independent: give each of several
    /// migrations into one namespace its own.
    #[must_use]
    pub fn new(target: &EtcdLock) -> Self {
        Self::named(target, "")
    }

    /// As [`new`](Self::new), for one of several migrations into one namespace.
    #[must_use]
    pub fn named(target: &EtcdLock, name: &str) -> Self {
        let records = Arc::new(target.records());
        Self(RecordFloor::named(records, floor_name(name)))
    }
}

#[async_trait]
impl FloorStore for EtcdFloor {
    async fn read_at(&self, owned_at: FencingToken) -> Result<u64, LockError> {
        self.0.read_at(owned_at).await
    }

    async fn read(&self) -> Result<u64, LockError> {
        self.0.read().await
    }

    async fn raise(&self, at_least: u64) -> Result<u64, LockError> {
        self.0.raise(at_least).await
    }
}
