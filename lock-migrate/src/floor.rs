use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use lock_core::{FencingToken, LockError};

/// A number beside the target's locks that is added to their tokens, so that these continue the
/// source's. It never decreases. One serves all names of a migration.
#[async_trait]
pub trait FloorStore: Debug + Send + Sync + 'static {
    /// The floor at an instant at which the caller owned a lock of the target: when its token was
    /// `owned_at`, or, where the store cannot tell, now.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn read_at(&self, owned_at: FencingToken) -> Result<u64, LockError>;

    /// The floor now.
    ///
    /// # Errors
    ///
    /// Those of the store.
    async fn read(&self) -> Result<u64, LockError>;

    /// Makes the floor at least this high, and returns what it is then.
    ///
    /// # Errors
    ///
    /// Those of the store; the floor may have been raised.
    async fn raise(&self, at_least: u64) -> Result<u64, LockError>;
}

/// A floor in memory: for tests, where the target is in memory too.
#[derive(Debug, Default)]
pub struct MemFloor(AtomicU64);

impl MemFloor {
    /// A floor at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl FloorStore for MemFloor {
    async fn read_at(&self, _owned_at: FencingToken) -> Result<u64, LockError> {
        self.read().await
    }

    async fn read(&self) -> Result<u64, LockError> {
        Ok(self.0.load(Ordering::SeqCst))
    }

    async fn raise(&self, at_least: u64) -> Result<u64, LockError> {
        Ok(self.0.fetch_max(at_least, Ordering::SeqCst).max(at_least))
    }
}
