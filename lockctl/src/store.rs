//! The store that a command works on.

use std::{sync::Arc, time::Duration};

use clap::Args;
use polylock::{Consistency, DistributedLock, ErrorKind, LockError, LockUrl};

/// Where the locks are.
#[derive(Debug, Args)]
pub(crate) struct Store {
    /// URL of the locks, such as redis://host:6379 or etcd://h1:2379,h2:2379,h3:2379/namespace
    #[arg(long, env = "LOCK_URL", hide_env_values = true)]
    url: Option<String>,
}

impl Store {
    /// Connects to a store that other processes see.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let url: LockUrl = url(self.url.as_deref())?.parse()?;
        let registry = polylock::registry();
        if registry.capabilities(&url)?.consistency == Consistency::ProcessLocal {
            let message = format!(
                "the locks of {}:// are those of one process, and nobody else sees them; use redis:// or etcd://",
                url.scheme()
            );
            return Err(LockError::new(ErrorKind::InvalidUrl, message));
        }
        registry.open(&url).await
    }
}

/// The URL that was given, if any was.
pub(crate) fn url(given: Option<&str>) -> Result<&str, LockError> {
    given.filter(|url| !url.is_empty()).ok_or_else(|| {
        let message = "there is no URL; set LOCK_URL or give one, such as redis://host:6379 or etcd://host:2379";
        LockError::new(ErrorKind::InvalidUrl, message)
    })
}

/// Reads a duration such as `30s` or `1m 30s`, more than zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("more than zero, such as 30s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 30s or 500ms")),
    }
}
