use std::{fmt, sync::Arc};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, LockError, LockGuard, LockHolder, LockInfo,
    LockList, LockName, LockWatch, Operation, OwnerId,
    backend::{WaitLimit, bounded},
};

use crate::{acquire, capabilities, core::Core, inspect, observe};

/// Locks in etcd.
///
/// Clones share the connection, the session and the watches. Dropping the last clone while guards
/// are live leaves them valid; when they are gone too, the session's lease is revoked.
#[derive(Clone)]
pub struct EtcdLock(pub(crate) Arc<Core>);

impl EtcdLock {
    /// Counts the guards, queue watchers, leases and background tasks of this client, for leak
    /// checks. Returns to its baseline when nothing is held or waited for, and to zero after
    /// [`shutdown`](DistributedLock::shutdown).
    #[must_use]
    pub fn residue(&self) -> usize {
        self.0.residue()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for EtcdLock {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let Self(core) = self;
        let acquire = async {
            let terms = options.resolve(&capabilities(), core.default_ttl)?;
            let health = Arc::clone(core.cluster.health());
            let wait_limit = WaitLimit::new(health, &terms, core.cluster.request_limit());
            let wait_limit = Arc::new(wait_limit);
            let acquire = acquire::acquire(core, name, &terms, &wait_limit);
            bounded(&core.guards, Some(&wait_limit), acquire)
                .await
                .map_err(|error| acquire::explain(core, error))
        };
        core.guards.call(Operation::Acquire, name, acquire).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let Self(core) = self;
        let acquire = async {
            let terms = options.resolve(&capabilities(), core.default_ttl)?;
            bounded(&core.guards, None, acquire::try_acquire(core, name, &terms)).await
        };
        core.guards.call(Operation::TryAcquire, name, acquire).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let Self(core) = self;
        let inspect = bounded(&core.guards, None, inspect::inspect(core, name));
        core.guards.call(Operation::Inspect, name, inspect).await
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let Self(core) = self;
        let watch = async { Ok(observe::watch(core, name)) };
        core.guards.call(Operation::Watch, name, watch).await
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let Self(core) = self;
        let list = async { Ok(observe::list(core, prefix)) };
        core.guards.call(Operation::List, None, list).await
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let Self(core) = self;
        let remove = inspect::force_release(core, name, only);
        let removed = bounded(&core.guards, None, remove);
        let removed = core.guards.call(Operation::ForceRelease, name, removed);
        Ok(removed.await?.into_iter().collect())
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.0.shutdown().await
    }
}

impl fmt::Debug for EtcdLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
