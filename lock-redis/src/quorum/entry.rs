use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{ErrorKind, LockError, backend::Entry};

use crate::quorum::{acquire::Core, attempt::Attempt, capabilities::BACKEND};

/// A guard's entries on the servers.
#[derive(Debug)]
pub(crate) struct QuorumEntry {
    core: Arc<Core>,
    attempt: Attempt,
}

impl QuorumEntry {
    pub(crate) fn new(core: &Arc<Core>, attempt: Attempt) -> Self {
        Self {
            core: Arc::clone(core),
            attempt,
        }
    }

    fn unwatch(&self) {
        self.core
            .watcher
            .leave(&self.attempt.stored.keys.lock, &self.attempt.stored.owner);
    }
}

#[async_trait]
impl Entry for QuorumEntry {
    /// The requests are repeated until they are answered, and all answers count together: who asks
    /// again is told the same.
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        self.attempt.released().await.ok_or_else(|| {
            LockError::new(
                ErrorKind::Unavailable,
                "no majority of the servers answered the release",
            )
            .on(BACKEND)
            .indeterminate()
        })
    }
}

impl Drop for QuorumEntry {
    fn drop(&mut self) {
        self.unwatch();
    }
}
