//! The conformance suite over memory, through all layers but the local queue, under paused time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{AcquireOptions, DistributedLock, LockError, LockGuard, LockName, forward_lock};
use lock_layers::{
    ConcurrencyLimit, DefaultOptions, Faults, Layer, Metrics, Namespace, ReentrantOwner, Retry,
    Stack, Trace,
};

mod layered;
use layered::{NAMESPACE, mem};

fn main() -> ExitCode {
    layered::listen();
    mem::suite("mem through layers", stack, |_| {}).run()
}

fn stack() -> Stack {
    Stack::new()
        .with(Trace::new())
        .with(Metrics::new().with_lock_names())
        .with(DefaultOptions::new(AcquireOptions::new()))
        .with(Retry::new().with_time_limit(Duration::from_millis(100)))
        .with(ConcurrencyLimit::new(10_000))
        .with(OneOwnerEach)
        .with(Namespace::new(NAMESPACE).unwrap())
        .with(Faults::new())
}

/// Makes each acquisition one of an owner of its own, so that none is nested.
#[derive(Debug)]
struct OneOwnerEach;

impl Layer for OneOwnerEach {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(OneOwnerEachLock { inner })
    }
}

#[derive(Debug)]
struct OneOwnerEachLock {
    inner: Arc<dyn DistributedLock>,
}

#[async_trait]
impl DistributedLock for OneOwnerEachLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let owner = ReentrantOwner::new(Arc::clone(&self.inner));
        owner.acquire_named(name, options).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let owner = ReentrantOwner::new(Arc::clone(&self.inner));
        owner.try_acquire_named(name, options).await
    }

    forward_lock!(inner: capabilities, inspect_named, force_release_named, watch_named, list, shutdown);
}
