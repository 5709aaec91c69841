use std::{fmt::Debug, sync::Arc};

use lock_core::DistributedLock;

/// Wraps a lock, to add something to all that goes through it.
///
/// ```
/// use lock_core::DistributedLock;
/// use lock_layers::{Layer, Stack};
/// use std::sync::Arc;
///
/// /// A lock that can wrap another: see `lock_core::forward_lock!`.
/// # #[derive(Debug)]
/// struct Audited(Arc<dyn DistributedLock>);
/// # #[async_trait::async_trait]
/// # impl DistributedLock for Audited {
/// #     lock_core::forward_lock!(inner(): capabilities, acquire_named, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
/// # }
/// # impl Audited { fn inner(&self) -> &dyn DistributedLock { &*self.0 } }
///
/// #[derive(Debug)]
/// struct Audit;
///
/// impl Layer for Audit {
///     fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
///         Arc::new(Audited(inner))
///     }
/// }
///
/// let locks = Stack::new().with(Audit).over(Arc::new(lock_mem::MemLock::new()));
/// # let _ = locks;
/// ```
pub trait Layer: Debug + Send + Sync + 'static {
    /// Wraps a lock. Called once for each lock; what one has wrapped shares nothing with another,
    /// unless the layer says so.
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock>;
}

impl<L: Layer + ?Sized> Layer for Arc<L> {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        self.as_ref().layer(inner)
    }
}
