use std::{
    env::{self, VarError},
    sync::Arc,
};

use lock_core::{DistributedLock, ErrorKind, LockError, Operation, Registry};

/// Opens the locks behind a URL, with the backends that are compiled in.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = polylock::connect("zookeeper://localhost").await.unwrap_err();
/// assert_eq!(error.kind(), polylock::ErrorKind::UnknownScheme);
/// # }
/// ```
///
/// # Errors
///
/// [`InvalidUrl`](lock_core::ErrorKind::InvalidUrl) for a URL that cannot be used,
/// [`UnknownScheme`](lock_core::ErrorKind::UnknownScheme) if there is no such backend or its Cargo
/// feature is off, [`Unavailable`](lock_core::ErrorKind::Unavailable) if no server answers within
/// the backend's connect timeout, and [`PermissionDenied`](lock_core::ErrorKind::PermissionDenied)
/// if the credentials are refused.
///
/// # Cancel safety
///
/// Dropping the future closes what it has opened.
pub async fn connect(url: &str) -> Result<Arc<dyn DistributedLock>, LockError> {
    registry().connect(url).await
}

/// Opens the locks behind the URL in the environment variable `LOCK_URL`.
///
/// ```no_run
/// # async fn example() -> Result<(), polylock::LockError> {
/// use polylock::prelude::*;
///
/// let locks = polylock::from_env().await?;
/// let guard = locks.acquire("orders/42").await?;
/// guard.release().await
/// # }
/// ```
///
/// # Errors
///
/// [`InvalidConfig`](lock_core::ErrorKind::InvalidConfig) if the variable is not set or is no text;
/// as [`connect`].
///
/// # Cancel safety
///
/// As [`connect`].
pub async fn from_env() -> Result<Arc<dyn DistributedLock>, LockError> {
    connect(&url_of(env::var("LOCK_URL"))?).await
}

fn url_of(variable: Result<String, VarError>) -> Result<String, LockError> {
    let message = match variable {
        Ok(url) if !url.is_empty() => return Ok(url),
        Ok(_) | Err(VarError::NotPresent) => {
            "LOCK_URL is not set; set it to the locks' URL, such as mem://, redis://host or etcd://host"
        }
        Err(VarError::NotUnicode(_)) => "LOCK_URL is no text; set it to the locks' URL",
    };
    Err(LockError::new(ErrorKind::InvalidConfig, message).during(Operation::Connect))
}

/// The backends that are compiled in; add your own with [`Registry::with`].
#[must_use]
pub fn registry() -> Registry {
    let registry = Registry::new();
    #[cfg(feature = "mem")]
    let registry = registry.with(lock_mem::MemConnector);
    #[cfg(not(feature = "mem"))]
    let registry = registry.with_hint(
        "mem",
        "enable the feature: polylock = { features = [\"mem\"] }",
    );
    #[cfg(feature = "etcd")]
    let registry = registry.with(lock_etcd::EtcdConnector);
    #[cfg(not(feature = "etcd"))]
    let registry = registry
        .with_hint(
            "etcd",
            "enable the feature: polylock = { features = [\"etcd\"] }",
        )
        .with_hint(
            "etcds",
            "enable the feature: polylock = { features = [\"etcd\"] }",
        );
    #[cfg(feature = "redis")]
    let registry = registry
        .with(lock_redis::RedisConnector)
        .with(lock_redis::RedisQuorumConnector);
    #[cfg(not(feature = "redis"))]
    let registry = registry
        .with_hint(
            "redis",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "rediss",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "redis+sentinel",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "rediss+sentinel",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "redis+cluster",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "rediss+cluster",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "redis+quorum",
            "enable the feature: polylock = { features = [\"redis\"] }",
        )
        .with_hint(
            "rediss+quorum",
            "enable the feature: polylock = { features = [\"redis\"] }",
        );
    #[cfg(feature = "migrate")]
    let registry = {
        let sources = registry.clone();
        registry.with(lock_migrate::MigrateConnector::new(sources))
    };
    #[cfg(not(feature = "migrate"))]
    let registry = registry.with_hint(
        "migrate+redis",
        "enable the feature: polylock = { features = [\"migrate\"] }",
    );
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_environment_is_told() {
        assert_eq!(url_of(Ok("mem://".into())).unwrap(), "mem://");
        for unset in [
            Ok(String::new()),
            Err(VarError::NotPresent),
            Err(VarError::NotUnicode("x".into())),
        ] {
            let error = url_of(unset).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains("LOCK_URL"), "{error}");
        }
    }
}
