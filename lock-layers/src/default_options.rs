use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{AcquireOptions, DistributedLock, LockError, LockGuard, LockName, forward_lock};

use crate::Layer;

/// Gives acquisitions the options that they leave out, and may bound their wait.
///
/// ```
/// use lock_core::AcquireOptions;
/// use lock_layers::DefaultOptions;
/// use std::time::Duration;
///
/// let options = AcquireOptions::new()
///     .with_timeout(Duration::from_secs(5))
///     .with_max_hold(Duration::from_secs(600));
/// // No request of this service lasts longer than 30 s.
/// let layer = DefaultOptions::new(options).with_longest_timeout(Duration::from_secs(30));
/// # let _ = layer;
/// ```
///
/// Defaults are the TTL, the timeout, the maximum hold and the metadata, each by itself. Whether a
/// lock is renewed, and its mode, are up to the acquisition. Metadata is left out on a backend that
/// has [none](lock_core::Capabilities::metadata). A default that is out of range fails each
/// acquisition that uses it.
#[derive(Clone, Debug)]
pub struct DefaultOptions {
    options: AcquireOptions,
    longest_timeout: Option<Duration>,
}

impl DefaultOptions {
    /// Takes the defaults.
    #[must_use]
    pub fn new(options: AcquireOptions) -> Self {
        Self {
            options,
            longest_timeout: None,
        }
    }

    /// Bounds every wait for a lock, also of acquisitions that ask for a longer one; more than
    /// zero. Default: no such bound.
    #[must_use]
    pub fn with_longest_timeout(mut self, timeout: Duration) -> Self {
        self.longest_timeout = Some(timeout);
        self
    }

    /// Completes the options of one acquisition.
    fn complete(&self, mut options: AcquireOptions) -> AcquireOptions {
        if let (None, Some(ttl)) = (options.ttl(), self.options.ttl()) {
            options = options.with_ttl(ttl);
        }
        if let (None, Some(hold)) = (options.max_hold(), self.options.max_hold()) {
            options = options.with_max_hold(hold);
        }
        if let (None, Some(metadata)) = (options.metadata(), self.options.metadata()) {
            options = options.with_metadata(metadata);
        }
        let timeout = options.timeout().or(self.options.timeout());
        // A timeout of zero is left as it is: the backend refuses it.
        match (timeout, self.longest_timeout) {
            (Some(timeout), Some(longest)) => options.with_timeout(timeout.min(longest)),
            (Some(timeout), None) | (None, Some(timeout)) => options.with_timeout(timeout),
            (None, None) => options,
        }
    }
}

impl Layer for DefaultOptions {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        let mut defaults = self.clone();
        if !inner.capabilities().metadata {
            defaults.options = without_metadata(&self.options);
        }
        Arc::new(DefaultOptionsLock { inner, defaults })
    }
}

/// The defaults but for the metadata.
fn without_metadata(options: &AcquireOptions) -> AcquireOptions {
    let mut rest = AcquireOptions::new();
    if let Some(ttl) = options.ttl() {
        rest = rest.with_ttl(ttl);
    }
    if let Some(timeout) = options.timeout() {
        rest = rest.with_timeout(timeout);
    }
    if let Some(hold) = options.max_hold() {
        rest = rest.with_max_hold(hold);
    }
    rest
}

#[derive(Debug)]
struct DefaultOptionsLock {
    inner: Arc<dyn DistributedLock>,
    defaults: DefaultOptions,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for DefaultOptionsLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let options = self.defaults.complete(options);
        self.inner.acquire_named(name, options).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let options = self.defaults.complete(options);
        self.inner.try_acquire_named(name, options).await
    }

    forward_lock!(inner: capabilities, inspect_named, force_release_named, watch_named, list, shutdown);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_is_asked_for_stays() {
        let defaults = AcquireOptions::new()
            .with_ttl(secs(10))
            .with_timeout(secs(5))
            .with_max_hold(secs(60))
            .with_metadata("default");
        let layer = DefaultOptions::new(defaults.clone());
        assert_eq!(layer.complete(AcquireOptions::new()), defaults);
        let own = AcquireOptions::new()
            .with_ttl(secs(1))
            .with_timeout(secs(2))
            .with_max_hold(secs(3))
            .with_metadata("own")
            .without_renewal();
        assert_eq!(layer.complete(own.clone()), own);
    }

    #[test]
    fn no_wait_is_longer_than_the_longest() {
        let layer = DefaultOptions::new(AcquireOptions::new()).with_longest_timeout(secs(30));
        let timeout = |options| layer.complete(options).timeout();
        assert_eq!(timeout(AcquireOptions::new()), Some(secs(30)));
        for (asked, expected) in [(10, 10), (60, 30), (0, 0)] {
            let options = AcquireOptions::new().with_timeout(secs(asked));
            assert_eq!(timeout(options), Some(secs(expected)));
        }
    }
}
