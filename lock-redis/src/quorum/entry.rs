use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{ErrorKind, LockError, backend::Entry};

use crate::quorum::{capabilities::BACKEND, core::Core, majority::Tally, stake::Stake};

/// A guard's entries on the servers.
#[derive(Debug)]
pub(crate) struct QuorumHolding {
    core: Arc<Core>,
    stake: Stake,
}

impl QuorumHolding {
    pub(crate) fn new(core: &Arc<Core>, stake: Stake) -> Self {
        Self { core: Arc::clone(core), stake }
    }

    fn unwatch(&self) {
        self.core.watcher.leave(&self.stake.kept.keys.lock, &self.stake.kept.owner);
    }
}

#[async_trait]
impl Entry for QuorumHolding {
    /// Asked again, it waits for the answers to the requests of the first time, which are repeated until they come.
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        self.stake.returned(self.core.members.limit, Tally::is_complete).await.ok_or_else(|| {
            LockError::new(ErrorKind::Unavailable, "no majority of the servers answered the release").on(BACKEND).indeterminate()
        })
    }
}

impl Drop for QuorumHolding {
    fn drop(&mut self) {
        self.unwatch();
    }
}
