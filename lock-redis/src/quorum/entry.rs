use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{ErrorKind, LockError, backend::Entry};

use crate::quorum::{capabilities::BACKEND, core::Core, stake::Stake};

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
    /// The requests are repeated until they are answered, and all answers count together: who asks again is told the same.
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        self.stake.released().await.ok_or_else(|| {
            LockError::new(ErrorKind::Unavailable, "no majority of the servers answered the release").on(BACKEND).indeterminate()
        })
    }
}

impl Drop for QuorumHolding {
    fn drop(&mut self) {
        self.unwatch();
    }
}
