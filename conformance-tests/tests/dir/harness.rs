use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::Harness;
use lock_core::{Capabilities, DistributedLock, ErrorKind, LockError, LockName};
use tempfile::TempDir;

use crate::{backend::DirLock, table::Table};

/// A directory, and the clients that were made for it.
#[derive(Debug)]
pub(crate) struct DirHarness {
    directory: PathBuf,
    clients: Mutex<Vec<Arc<DirLock>>>,
    _removed_on_drop: Option<TempDir>,
}

impl DirHarness {
    /// A directory of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        Ok(Self {
            directory: directory.path().into(),
            clients: Mutex::default(),
            _removed_on_drop: Some(directory),
        })
    }

    /// Somebody else's directory.
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self {
            directory,
            clients: Mutex::default(),
            _removed_on_drop: None,
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Table, Duration) -> R) -> Result<R, LockError> {
        Table::with(&self.directory, change)
            .map_err(|error| LockError::new(ErrorKind::Unavailable, error.to_string()))
    }
}

#[async_trait]
impl Harness for DirHarness {
    fn capabilities(&self) -> Capabilities {
        DirLock::declared()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let client = Arc::new(DirLock::open(self.directory.clone()));
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&client));
        Ok(client)
    }

    fn child_address(&self) -> Option<String> {
        self.directory.to_str().map(str::to_owned)
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let own = Self::new()
            .map_err(|error| LockError::new(ErrorKind::Unavailable, error.to_string()))?;
        Ok(Some(Arc::new(own)))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        self.change(|table, now| {
            Some(
                table
                    .held(name.as_str(), now)
                    .iter()
                    .filter_map(|row| row.owner.clone())
                    .collect(),
            )
        })
    }

    async fn client_residue(&self) -> Option<usize> {
        Some(
            self.clients
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .map(|client| client.residue())
                .sum(),
        )
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        self.change(|table, now| {
            table
                .held(name.as_str(), now)
                .map(|row| row.owner = None)
                .is_some()
        })
    }
}
