//! The conformance suite in memory, under paused time.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::{Badge, Harness, Level, Need, Start, Suite};
use lock_core::{Capabilities, DistributedLock, LockError, LockName};
use lock_mem::{MemLock, MemStore};
use lock_migrate::{FloorStore, MemFloor, MemRecords, MigratingLock, Operator, Order, Phase};

/// Runs the suite in a phase that the configuration says.
pub(crate) fn run(phase: Phase) -> ExitCode {
    suite(phase, false)
}

/// Runs the suite in a phase that a coordinator says.
pub(crate) fn run_coordinated(phase: Phase) -> ExitCode {
    suite(phase, true)
}

fn suite(phase: Phase, is_coordinated: bool) -> ExitCode {
    Suite::new("migrate", move |_| async move {
        let harness = MemHarness::start(phase, is_coordinated).await?;
        Ok(Start::Ready(Arc::new(harness)))
    })
    .with_capabilities(declared(phase, is_coordinated))
    .without(Need::OtherProcess, "the stores are in one process")
    .without(Need::Stop, "the stores end with their process")
    .without(Need::Restart, "the stores end with their process")
    .claims(Level::Local)
    .claims(Badge::Clean)
    .run()
}

fn declared(phase: Phase, is_coordinated: bool) -> Capabilities {
    // Under a coordinator it can do what all phases can.
    let phase = if is_coordinated { Phase::Dual } else { phase };
    let mem = lock_mem::capabilities();
    lock_migrate::capabilities(phase, Some(&mem), Some(&mem)).unwrap()
}

#[derive(Debug)]
struct MemHarness {
    phase: Phase,
    stores: [MemStore; 2],
    floor: Arc<MemFloor>,
    /// The coordinator's, if there is one.
    records: Option<MemRecords>,
    clients: Mutex<Vec<Client>>,
}

/// For a change of phase.
const LIMIT: Duration = Duration::from_secs(60);

/// With its clients of the stores.
type Client = (Arc<MemLock>, Arc<MemLock>, MigratingLock);

impl MemHarness {
    async fn start(phase: Phase, is_coordinated: bool) -> Result<Self, LockError> {
        let harness = Self {
            phase,
            stores: Default::default(),
            floor: Arc::default(),
            records: is_coordinated.then(MemRecords::new),
            clients: Mutex::default(),
        };
        if let Some(records) = &harness.records {
            let [source, target] = harness.stores.each_ref().map(|it| Arc::new(it.client()));
            let operator = Operator::new(source, target, Arc::new(records.clone()), "suite")
                .without_members(true)
                .with_foreign_window(Duration::ZERO);
            operator.plan("", false).await?;
            for _ in 0..phase as usize {
                operator.order("", Order::Advance, LIMIT, false).await?;
            }
            operator.shutdown().await?;
        }
        Ok(harness)
    }

    /// Those that the phase uses.
    fn stores(&self) -> &[MemStore] {
        match self.phase {
            Phase::SourceOnly => &self.stores[..1],
            Phase::Dual => &self.stores,
            Phase::TargetOnly | Phase::Final => &self.stores[1..],
        }
    }
}

#[async_trait]
impl Harness for MemHarness {
    fn capabilities(&self) -> Capabilities {
        declared(self.phase, self.records.is_some())
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let source = Arc::new(self.stores[0].client());
        let target = Arc::new(self.stores[1].client());
        let client = match &self.records {
            Some(records) => {
                let records = Arc::new(records.clone());
                MigratingLock::coordinated(source.clone(), target.clone(), records).build()?
            }
            None => {
                let floor: Arc<dyn FloorStore> = self.floor.clone();
                MigratingLock::builder(self.phase)
                    .with_source(source.clone())
                    .with_target(target.clone(), floor)
                    .build()?
            }
        };
        client.joined().await?;
        self.clients
            .lock()
            .unwrap()
            .push((source, target, client.clone()));
        Ok(Arc::new(client))
    }

    fn paused_time(&self) -> bool {
        true
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let other = Self::start(self.phase, self.records.is_some()).await?;
        Ok(Some(Arc::new(other)))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        // What is in both stores is one entry.
        let entries = self.stores().iter().map(|store| store.entries(name)).max();
        Ok(Some(
            (0..entries.unwrap_or_default())
                .map(|at| format!("{name}: place {at}"))
                .collect(),
        ))
    }

    async fn client_residue(&self) -> Option<usize> {
        let clients = self.clients.lock().unwrap();
        let of_clients: usize = clients
            .iter()
            .map(|(source, target, client)| source.residue() + target.residue() + client.residue())
            .sum();
        Some(of_clients + self.stores.iter().map(MemStore::names).sum::<usize>())
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        for store in self.stores() {
            store.evict(name);
        }
        Ok(true)
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        for store in self.stores() {
            store.evict_waiters(name);
        }
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        self.stores()
            .iter()
            .for_each(|store| store.delay_replies(by));
        Ok(true)
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.stores().iter().for_each(MemStore::freeze);
        Ok(true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.stores().iter().for_each(MemStore::thaw);
        Ok(())
    }
}
