use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64},
};

use lock_core::{DistributedLock, OwnerId};

use crate::{FloorStore, stores::Stores};

/// What every plan's stores have in common.
#[derive(Clone, Debug)]
pub(crate) struct Both {
    pub(crate) source: Arc<dyn DistributedLock>,
    pub(crate) target: Arc<dyn DistributedLock>,
    pub(crate) head_room: u64,
    pub(crate) links: bool,
    /// As [`Stores::member`] has it.
    pub(crate) member: Option<OwnerId>,
}

impl Both {
    pub(super) fn stores(&self, floor: Arc<dyn FloorStore>, complete: Option<u64>) -> Stores {
        Stores {
            source: Some(Arc::clone(&self.source)),
            target: Some(Arc::clone(&self.target)),
            floor,
            head_room: self.head_room,
            links: self.links,
            member: self.member.clone(),
            final_floor: complete.map_or_else(OnceLock::new, OnceLock::from),
            // The operator sees to it that tokens go on.
            last_floor: AtomicU64::new(0),
            is_prepared: AtomicBool::new(true),
        }
    }
}
