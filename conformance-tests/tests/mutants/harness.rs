use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::Harness;
use lock_core::{Capabilities, DistributedLock, LockError, LockName};

use crate::{
    client::{Client, Handle, PASSWORD, capabilities},
    defects::simulated::Defect,
    store::{Store, locked},
};

/// A store with one defect, or none.
#[derive(Debug)]
pub(crate) struct Sim {
    store: Arc<Store>,
    clients: Mutex<Vec<Arc<Client>>>,
}

impl Sim {
    pub(crate) fn new(defect: Defect) -> Arc<Self> {
        Arc::new(Self {
            store: Store::new(defect),
            clients: Mutex::default(),
        })
    }
}

#[async_trait]
impl Harness for Sim {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.store.defect)
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let client = self.store.client();
        locked(&self.clients).push(Arc::clone(&client));
        Ok(Arc::new(Handle(client)))
    }

    fn paused_time(&self) -> bool {
        true
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        Ok(Some(Self::new(self.store.defect)))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        Ok(Some(self.store.apply(|state, _| state.entries(name))))
    }

    async fn client_residue(&self) -> Option<usize> {
        Some(
            locked(&self.clients)
                .iter()
                .map(|client| client.residue())
                .sum(),
        )
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        self.store.apply(|state, _| state.evict_holder(name));
        Ok(true)
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        self.store.apply(|state, _| state.evict_waiters(name));
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        self.store.delay(by);
        Ok(true)
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.into()]
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.store.freeze(true);
        Ok(true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.store.freeze(false);
        Ok(())
    }

    async fn stop(&self) -> Result<bool, LockError> {
        self.store.freeze(true);
        Ok(true)
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.store.freeze(false);
        self.store.restart();
        Ok(true)
    }
}
