use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64},
};

use crate::FloorStore;
use lock_core::{DistributedLock, ErrorKind, LockError, OwnerId};

/// The two stores of a migration, as far as the phase needs them, and the floor.
#[derive(Debug)]
pub(crate) struct Stores {
    pub(crate) source: Option<Arc<dyn DistributedLock>>,
    pub(crate) target: Option<Arc<dyn DistributedLock>>,
    pub(crate) floor: Arc<dyn FloorStore>,
    pub(crate) head_room: u64,
    /// Entries of the target can tell which of the source they belong to.
    pub(crate) links: bool,
    /// The member whose entries in the source are marked, so that a verifier knows them.
    pub(crate) member: Option<OwnerId>,
    /// The floor that was read last.
    pub(crate) last_floor: AtomicU64,
    pub(crate) final_floor: OnceLock<u64>,
    pub(crate) is_prepared: AtomicBool,
}

impl Stores {
    pub(crate) fn source(&self) -> Result<&Arc<dyn DistributedLock>, LockError> {
        self.source.as_ref().ok_or_else(|| missing("source"))
    }

    pub(crate) fn target(&self) -> Result<&Arc<dyn DistributedLock>, LockError> {
        self.target.as_ref().ok_or_else(|| missing("target"))
    }

    /// The floor that nobody raises any more.
    pub(crate) async fn final_floor(&self) -> Result<u64, LockError> {
        // Whoever is first reads it, and so does whoever comes before it has: nobody waits for
        // another caller.
        match self.final_floor.get() {
            Some(floor) => Ok(*floor),
            None => {
                let floor = self.floor.read().await?;
                Ok(*self.final_floor.get_or_init(|| floor))
            }
        }
    }
}

fn missing(what: &'static str) -> LockError {
    LockError::new(
        ErrorKind::InvalidConfig,
        format!("the {what} was not connected; connect again with it"),
    )
}
