use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::{Harness, Need, Start, Suite};
use lock_core::{Capabilities, DistributedLock, LockError, LockName};
use lock_layers::Stack;
use lock_mem::{MemLock, MemStore};

use super::Layered;

/// The suite through layers that change the capabilities in this way.
pub(crate) fn suite(
    name: &'static str,
    stack: fn() -> Stack,
    change: fn(&mut Capabilities),
) -> Suite {
    let mut capabilities = lock_mem::capabilities();
    change(&mut capabilities);
    let declared = capabilities.clone();
    Suite::new(name, move |_| {
        let harness = Layered::new(Arc::new(MemHarness::default()), stack(), declared.clone());
        async { Ok(Start::Ready(harness)) }
    })
    .with_capabilities(capabilities)
    .without(Need::OtherProcess, "the store is in one process")
    .without(Need::Stop, "the store ends with its process")
    .without(Need::Restart, "the store ends with its process")
}

/// A store in memory, under paused time.
#[derive(Debug, Default)]
pub(crate) struct MemHarness {
    store: MemStore,
    clients: Mutex<Vec<Arc<MemLock>>>,
}

#[async_trait]
impl Harness for MemHarness {
    fn capabilities(&self) -> Capabilities {
        lock_mem::capabilities()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let client = Arc::new(self.store.client());
        self.clients.lock().unwrap().push(Arc::clone(&client));
        Ok(client)
    }

    fn paused_time(&self) -> bool {
        true
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        Ok(Some(Arc::new(Self::default())))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        let entries = 0..self.store.entries(name);
        Ok(Some(entries.map(|at| format!("{name}: {at}")).collect()))
    }

    async fn client_residue(&self) -> Option<usize> {
        let clients = self.clients.lock().unwrap();
        let residue: usize = clients.iter().map(|client| client.residue()).sum();
        Some(residue + self.store.names())
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        self.store.evict(name);
        Ok(true)
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        self.store.evict_waiters(name);
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        self.store.delay_replies(by);
        Ok(true)
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.store.freeze();
        Ok(true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.store.thaw();
        Ok(())
    }
}
