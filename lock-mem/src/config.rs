use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl, Terms,
    backend::{RuntimeOptions, Tasks},
};

use crate::{
    MemLock, MemStore,
    capabilities::{DEFAULT_TTL, capabilities},
};

/// Settings of a [`MemLock`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct MemLockBuilder {
    store: MemStore,
    default_ttl: Duration,
    background_thread: bool,
}

impl MemLock {
    /// A client with settings.
    pub fn builder() -> MemLockBuilder {
        MemLockBuilder {
            store: MemStore::new(),
            default_ttl: DEFAULT_TTL,
            background_thread: false,
        }
    }
}

impl MemLockBuilder {
    /// The store to be a client of; default: a new one.
    pub fn with_store(mut self, store: MemStore) -> Self {
        self.store = store;
        self
    }

    /// The TTL of acquisitions that do not ask for one; default: 30 s.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// Renews the client's locks on a thread of its own; default: no, tasks on each runtime that
    /// acquires do, while it runs.
    ///
    /// With it a guard is renewed whatever the application's runtimes do: a current-thread runtime
    /// that does no work outside `block_on`, one that is blocked for longer than a TTL, or one that
    /// ends. Not for tests that pause time, which that thread's runtime does not take part in.
    pub fn with_background_thread(mut self, background_thread: bool) -> Self {
        self.background_thread = background_thread;
        self
    }

    /// Makes the client. Needs no runtime, unless it is to have a thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if the default TTL is out of range; [`ErrorKind::Unavailable`]
    /// if there is no runtime, or no thread can be started.
    pub fn build(self) -> Result<MemLock, LockError> {
        let terms = self.check()?;
        let Self {
            store,
            background_thread,
            ..
        } = self;
        let tasks = match background_thread {
            true => Tasks::start(RuntimeOptions {
                background_thread,
                ..RuntimeOptions::default()
            })
            .map_err(|error| error.on("mem"))?,
            false => Tasks::anywhere(),
        };
        Ok(MemLock::with_tasks(store, &tasks, terms.ttl))
    }

    fn check(&self) -> Result<Terms, LockError> {
        AcquireOptions::new()
            .resolve(&capabilities(), self.default_ttl)
            .map_err(|error| {
                LockError::new(ErrorKind::InvalidConfig, error.message().to_owned()).on("mem")
            })
    }
}

/// Opens `mem://`.
///
/// | URL | store |
/// | --- | --- |
/// | `mem://` | a new one for each connect: two tests do not interfere |
/// | `mem://name` | the process's [`MemStore::named`] of that name: two connects share their locks |
///
/// The parameter `ttl`, such as `mem://?ttl=5s`, is the TTL of acquisitions that do not ask for
/// one; default: 30 s. With `background_thread=true` a thread renews, see
/// [`MemLockBuilder::with_background_thread`](crate::MemLockBuilder::with_background_thread).
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

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        builder_of(url)?.check().map_err(LockError::in_url)?;
        Ok(capabilities())
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let locks = builder_of(url)?.build().map_err(LockError::in_url)?;
        Ok(Arc::new(locks))
    }
}

/// Settings that a URL asks for.
fn builder_of(url: &LockUrl) -> Result<MemLockBuilder, LockError> {
    url.check_params(&["ttl", "background_thread"])?;
    let mut builder = MemLock::builder();
    if let Some(ttl) = url.duration("ttl")? {
        builder = builder.with_ttl(ttl);
    }
    if let Some(background_thread) = url.flag("background_thread")? {
        builder = builder.with_background_thread(background_thread);
    }
    match url.endpoints() {
        [] if url.path().is_empty() => Ok(builder),
        [store] if store.port.is_none() && url.path().is_empty() => {
            Ok(builder.with_store(MemStore::named(&store.host)))
        }
        _ => Err(invalid(
            "write mem:// for a store of its own, or mem://name for one that this process shares",
        )),
    }
}

fn invalid(message: &'static str) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}
