use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl};

use crate::{MemLock, MemStore, lock};

/// Opens `mem://`.
///
/// | URL | store |
/// | --- | --- |
/// | `mem://` | a new one for each connect: two tests do not interfere |
/// | `mem://name` | the process's [`MemStore::named`] of that name: two connects share their locks |
///
/// The parameter `ttl`, such as `mem://?ttl=5s`, is the TTL of acquisitions that do not ask for one; default: 30 s. With
/// `background_thread=true` a thread renews, see [`MemLockBuilder::with_background_thread`](crate::MemLockBuilder::with_background_thread).
///
/// ```
/// use lock_core::{DistributedLockExt, Registry};
/// use lock_mem::MemConnector;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let registry = Registry::new().with(MemConnector);
/// let (one, other) = (registry.connect("mem://shared").await?, registry.connect("mem://shared").await?);
/// let _guard = one.acquire("orders").await?;
/// assert!(other.try_acquire("orders").await?.is_none());
/// assert!(registry.connect("mem://").await?.try_acquire("orders").await?.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MemConnector;

#[async_trait]
impl Connector for MemConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["mem"]
    }

    fn capabilities(&self) -> Capabilities {
        lock::capabilities()
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        url.check_params(&["ttl", "background_thread"])?;
        let mut builder = MemLock::builder();
        if let Some(ttl) = url.duration("ttl")? {
            builder = builder.with_ttl(ttl);
        }
        if let Some(background_thread) = url.flag("background_thread")? {
            builder = builder.with_background_thread(background_thread);
        }
        match url.endpoints() {
            [] if url.path().is_empty() => {}
            [store] if store.port.is_none() && url.path().is_empty() => builder = builder.with_store(MemStore::named(&store.host)),
            _ => return Err(invalid("write mem:// for a store of its own, or mem://name for one that this process shares")),
        }
        match builder.build() {
            Ok(locks) => Ok(Arc::new(locks)),
            Err(error) if error.kind() == ErrorKind::InvalidOptions => Err(invalid("`ttl` is out of range").caused_by(error)),
            Err(error) => Err(error),
        }
    }
}

fn invalid(message: &'static str) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}
