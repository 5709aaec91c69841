use std::{fmt, sync::Arc};

use lock_core::{DistributedLock, LockError, LockUrl, Registry};
use tokio::sync::OnceCell;

/// An operator's source, which is connected when it is needed first: most commands do not need it.
pub(super) struct Source {
    connected: OnceCell<Arc<dyn DistributedLock>>,
    url: Option<(Registry, LockUrl)>,
}

impl Source {
    pub(super) fn connected(source: Arc<dyn DistributedLock>) -> Self {
        Self {
            connected: OnceCell::new_with(Some(source)),
            url: None,
        }
    }

    #[cfg(feature = "etcd")]
    pub(super) fn at(registry: Registry, url: LockUrl) -> Self {
        Self {
            connected: OnceCell::new(),
            url: Some((registry, url)),
        }
    }

    pub(super) async fn get(&self) -> Result<&Arc<dyn DistributedLock>, LockError> {
        let open = async {
            match &self.url {
                Some((registry, url)) => registry.open(url).await,
                // It has been connected from the beginning.
                None => Err(super::seen::invalid("there is no source".to_owned())),
            }
        };
        self.connected.get_or_try_init(|| open).await
    }

    /// Shuts it down, if it has been connected.
    pub(super) async fn shutdown(&self) -> Result<(), LockError> {
        match self.connected.get() {
            Some(source) => source.shutdown().await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_tuple("Source")
            .field(&self.connected.get())
            .finish()
    }
}
