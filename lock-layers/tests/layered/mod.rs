//! A harness whose clients are wrapped in layers.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test target uses a part of it"
)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_conformance::Harness;
use lock_core::{Capabilities, DistributedLock, LockError, LockName};
use lock_layers::Stack;

pub(crate) mod mem;

/// Namespace of every stack.
pub(crate) const NAMESPACE: &str = "suite";

/// Name that a lock has in the store.
fn in_store(name: &LockName) -> LockName {
    name.after(&LockName::new(format!("{NAMESPACE}/")).unwrap())
}

#[derive(Debug)]
pub(crate) struct Layered {
    inner: Arc<dyn Harness>,
    stack: Stack,
    capabilities: Capabilities,
}

impl Layered {
    pub(crate) fn new(
        inner: Arc<dyn Harness>,
        stack: Stack,
        capabilities: Capabilities,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            stack,
            capabilities,
        })
    }
}

#[async_trait]
impl Harness for Layered {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        Ok(self.stack.over(self.inner.connect().await?))
    }

    fn short_ttl(&self) -> Duration {
        self.inner.short_ttl()
    }

    fn paused_time(&self) -> bool {
        self.inner.paused_time()
    }

    fn child_address(&self) -> Option<String> {
        self.inner.child_address()
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let isolated = self.inner.isolated().await?;
        Ok(isolated
            .map(|inner| Self::new(inner, self.stack.clone(), self.capabilities.clone()) as _))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        // Those of waiters are missing where the layers keep them from the store.
        if !self.capabilities.queue_length && self.inner.capabilities().queue_length {
            return Ok(None);
        }
        self.inner.entries(&in_store(name)).await
    }

    async fn client_residue(&self) -> Option<usize> {
        self.inner.client_residue().await
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        self.inner.remove_entry(&in_store(name)).await
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        self.inner.evict_waiters(&in_store(name)).await
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        self.inner.delay_replies(by).await
    }

    fn secrets(&self) -> Vec<String> {
        self.inner.secrets()
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.inner.freeze().await
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.inner.thaw().await
    }

    async fn stop(&self) -> Result<bool, LockError> {
        self.inner.stop().await
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.inner.restart().await
    }
}

/// Makes spans and metrics real: somebody listens to all of them.
pub(crate) fn listen() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(std::io::sink)
        .init();
    let _ = metrics_util::debugging::DebuggingRecorder::new().install();
}
