//! Members and operators, with both stores in memory.

use std::sync::Arc;

use lock_core::LockName;
use lock_mem::MemStore;
use lock_migrate::{MemRecords, MigratingLock, Operator};

/// Both stores, and the coordinator's records.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) source: MemStore,
    pub(crate) target: MemStore,
    pub(crate) records: MemRecords,
}

impl World {
    pub(crate) fn member(&self, label: &str) -> MigratingLock {
        MigratingLock::coordinated(
            Arc::new(self.source.client()),
            Arc::new(self.target.client()),
            Arc::new(self.records.clone()),
        )
        .with_head_room(10)
        .with_label(label)
        .build()
        .unwrap()
    }

    pub(crate) fn operator(&self, by: &str) -> Operator {
        Operator::new(
            Arc::new(self.source.client()),
            Arc::new(self.target.client()),
            Arc::new(self.records.clone()),
            by,
        )
        .with_head_room(10)
    }

    pub(crate) async fn has(&self, name: &str) -> (bool, bool) {
        let name: LockName = name.parse().unwrap();
        (
            self.source.entries(&name) > 0,
            self.target.entries(&name) > 0,
        )
    }
}
