//! The conformance suite, under paused time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::{Badge, Harness, Level, Need, Start, Suite};
use lock_core::{Capabilities, DistributedLock, LockError, LockName};
use lock_mem::{MemLock, MemStore};

fn main() -> ExitCode {
    Suite::new("mem", |_| async {
        Ok(Start::Ready(Arc::new(MemHarness::default())))
    })
    .with_capabilities(lock_mem::capabilities())
    .without(Need::OtherProcess, "the store is in one process")
    .without(Need::Stop, "the store ends with its process")
    .without(Need::Restart, "the store ends with its process")
    .claims(Level::Local)
    .claims(Badge::Clean)
    .run()
}

#[derive(Debug, Default)]
struct MemHarness {
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
        let entries = self.store.entries(name);
        Ok(Some(
            (0..entries)
                .map(|at| format!("{name}: place {at}"))
                .collect(),
        ))
    }

    async fn client_residue(&self) -> Option<usize> {
        let clients: usize = self
            .clients
            .lock()
            .unwrap()
            .iter()
            .map(|client| client.residue())
            .sum();
        Some(clients + self.store.names())
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
