use std::time::Duration;

use lock_core::LockError;
use serde::{Deserialize, Serialize};

use super::keys;

/// Layers over the store, from the outermost to the innermost; all are off unless they are asked
/// for. They need the feature `layers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default)]
#[non_exhaustive]
pub struct LayersConfig {
    /// Spans and events on `tracing`.
    pub trace: bool,
    /// Metrics on the `metrics` facade.
    pub metrics: bool,
    /// Longest wait of acquisitions that have no timeout of their own.
    #[serde(with = "humantime_serde")]
    pub wait: Option<Duration>,
    /// Number of times that a call is repeated which failed, where that is safe.
    pub retries: Option<usize>,
    /// Number of acquisitions that wait or are held at most.
    pub concurrency_limit: Option<usize>,
    /// Lets one waiter for each name reach the store.
    pub local_queue: bool,
}

/// What is put over the store.
#[cfg(feature = "layers")]
pub(super) type Stack = lock_layers::Stack;

impl LayersConfig {
    #[cfg(feature = "layers")]
    pub(super) fn stack(&self) -> Result<Stack, LockError> {
        use lock_core::AcquireOptions;
        use lock_layers::{ConcurrencyLimit, DefaultOptions, LocalQueue, Metrics, Retry, Trace};

        let mut stack = Stack::new();
        if self.trace {
            stack = stack.with(Trace::new());
        }
        if self.metrics {
            stack = stack.with(Metrics::new());
        }
        if let Some(wait) = self.wait {
            let options = AcquireOptions::new().with_timeout(wait);
            stack = stack.with(DefaultOptions::new(options));
        }
        if let Some(retries) = self.retries {
            stack = stack.with(Retry::new().with_retries(retries));
        }
        if let Some(permits) = self.concurrency_limit {
            if permits == 0 {
                return Err(super::invalid(
                    "`concurrency_limit` is zero, so that nothing could be locked; leave it out for no limit",
                ));
            }
            stack = stack.with(ConcurrencyLimit::new(permits));
        }
        if self.local_queue {
            stack = stack.with(LocalQueue::new());
        }
        Ok(stack)
    }

    #[cfg(not(feature = "layers"))]
    pub(super) fn stack(&self) -> Result<Stack, LockError> {
        match *self == Self::default() {
            true => Ok(Stack),
            false => Err(super::invalid(
                "layers are not compiled in; enable the feature: polylock = { features = [\"layers\"] }",
            )),
        }
    }
}

/// Nothing.
#[cfg(not(feature = "layers"))]
pub(super) struct Stack;

#[cfg(not(feature = "layers"))]
impl Stack {
    pub(super) fn over<L>(&self, lock: L) -> L {
        lock
    }
}

impl Serialize for LayersConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for LayersConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(keys::KnownKeys(deserializer))
    }
}
