//! The backends that this program is built with.

use std::{process::ExitCode, sync::Arc};

use async_trait::async_trait;
use lock_conformance::{Backend, backend};
use lock_core::{Capabilities, Connector, DistributedLock, LockError, LockUrl, Registry};

/// Any of the backends, by the scheme of the URL.
#[derive(Debug)]
struct AnyConnector(Registry);

#[async_trait]
impl Connector for AnyConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &[]
    }

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        self.0.capabilities(url)
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        self.0.open(url).await
    }
}

/// The suite for the store behind a URL; the error says why there is none.
pub(crate) fn suite(url: &str) -> Result<Backend, String> {
    let registry = polylock::registry();
    let parsed: LockUrl = url.parse().map_err(|error: LockError| error.to_string())?;
    registry
        .capabilities(&parsed)
        .map_err(|error| error.to_string())?;
    if parsed.scheme() == "mem" && parsed.endpoints().is_empty() {
        return Err(
            "each client of mem:// has a store of its own; give it a name, as in mem://test".into(),
        );
    }
    Ok(backend(AnyConnector(registry)).url(url))
}

/// Does what a case of another process asks for, if this process was started by one.
pub(crate) fn serve_child() -> Option<ExitCode> {
    backend(AnyConnector(polylock::registry()))
        .suite()
        .serve_child()
}
