use std::sync::Arc;

use lock_core::DistributedLock;

use crate::Layer;

/// Layers in the order in which they see a call: the one that is added first is the outermost.
///
/// The order matters. Metrics before a retry count what callers see, after it what the store is
/// asked:
///
/// ```
/// # use lock_layers::{Metrics, Namespace, Retry, Stack, Trace};
/// # fn example() -> Result<(), lock_core::LockError> {
/// // Spans and metrics of whole calls, under the names that the application knows.
/// let right = Stack::new()
///     .with(Trace::new())
///     .with(Metrics::new())
///     .with(Retry::new())
///     .with(Namespace::new("prod")?);
/// // Every attempt counts as an acquisition of its own, and spans show `prod/orders`.
/// let other = Stack::new()
///     .with(Retry::new())
///     .with(Namespace::new("prod")?)
///     .with(Trace::new())
///     .with(Metrics::new());
/// # let _ = (right, other);
/// # Ok(())
/// # }
/// ```
///
/// A stack is a layer, too, so that a library can offer one.
#[derive(Clone, Debug, Default)]
#[must_use = "apply it with `over`"]
pub struct Stack(Vec<Arc<dyn Layer>>);

impl Stack {
    /// A stack without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer below those that are there: it sees a call after them.
    pub fn with(mut self, layer: impl Layer) -> Self {
        self.0.push(Arc::new(layer));
        self
    }

    /// Applies the layers to a lock; without layers that is the lock itself.
    #[must_use]
    pub fn over(&self, lock: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        self.0
            .iter()
            .rev()
            .fold(lock, |inner, layer| layer.layer(inner))
    }
}

impl Layer for Stack {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        self.over(inner)
    }
}
