use std::sync::Arc;

use lock_core::{DistributedLock, LockError, Registry};

/// Opens the locks behind a URL, with the backends that are compiled in.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = lock::connect("zookeeper://localhost").await.unwrap_err();
/// assert_eq!(error.kind(), lock::ErrorKind::UnknownScheme);
/// # }
/// ```
///
/// # Errors
///
/// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl) for a URL that cannot be used,
/// [`UnknownScheme`](lock_core::ErrorKind::UnknownScheme) if there is no such backend or its Cargo feature is off,
/// [`Unavailable`](lock_core::ErrorKind::Unavailable) if no server answers within the backend's connect timeout, and
/// [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied) if the credentials are refused.
///
/// # Cancel safety
///
/// Dropping the future closes what it has opened.
pub async fn connect(url: &str) -> Result<Arc<dyn DistributedLock>, LockError> {
    registry().connect(url).await
}

/// The backends that are compiled in; add your own with [`Registry::with`].
#[must_use]
pub fn registry() -> Registry {
    let registry = Registry::new();
    #[cfg(feature = "mem")]
    let registry = registry.with(lock_mem::MemConnector);
    #[cfg(not(feature = "mem"))]
    let registry = registry.with_hint("mem", "enable the feature: lock = { features = [\"mem\"] }");
    #[cfg(feature = "etcd")]
    let registry = registry.with(lock_etcd::EtcdConnector);
    #[cfg(not(feature = "etcd"))]
    let registry = registry
        .with_hint("etcd", "enable the feature: lock = { features = [\"etcd\"] }")
        .with_hint("etcds", "enable the feature: lock = { features = [\"etcd\"] }");
    #[cfg(feature = "redis")]
    let registry = registry.with(lock_redis::RedisConnector).with(lock_redis::RedisQuorumConnector);
    #[cfg(not(feature = "redis"))]
    let registry = registry
        .with_hint("redis", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("rediss", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("redis+sentinel", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("rediss+sentinel", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("redis+cluster", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("rediss+cluster", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("redis+quorum", "enable the feature: lock = { features = [\"redis\"] }")
        .with_hint("rediss+quorum", "enable the feature: lock = { features = [\"redis\"] }");
    registry
}
