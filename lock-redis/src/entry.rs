use std::{
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use lock_core::{LockError, OwnerId, backend::Entry};
use redis::Value;

use crate::{core::Core, error::Failure, keys::Keys, link::Connection, renewal::Kept, scripts, servers::Servers, sync::locked, undo::undo};

/// A guard's entry in the store.
pub(crate) struct Holding {
    core: Arc<Core>,
    kept: Arc<Kept>,
    /// Whether there is a note of the holder to be removed.
    noted: bool,
    /// Connections with an unanswered request of this acquisition: executed after the release, it would take the lock
    /// once more.
    strays: Mutex<Vec<Connection>>,
}

impl Holding {
    pub(crate) fn new(core: &Arc<Core>, kept: Arc<Kept>, noted: bool, strays: Vec<Connection>) -> Self {
        Self { core: Arc::clone(core), kept, noted, strays: Mutex::new(strays) }
    }

    fn unwatch(&self) {
        self.core.watcher.leave(&self.kept.keys.lock, &self.kept.owner);
    }

    fn undo_strays(&self) {
        let strays = std::mem::take(&mut *locked(&self.strays));
        if !strays.is_empty() {
            let (keys, owner) = (self.kept.keys.clone(), self.kept.owner.clone());
            self.core.holds.tasks().spawn(undo(Arc::clone(&self.core), keys, owner, strays));
        }
    }
}

#[async_trait]
impl Entry for Holding {
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        let held = release_at(&self.core.servers, &self.kept.keys, &self.kept.owner, self.noted).await?;
        self.undo_strays();
        Ok(held)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.unwatch();
        self.undo_strays();
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding").field("kept", &self.kept).finish_non_exhaustive()
    }
}

/// Removes this owner's entry and no other, wherever it is now; says whether it was there.
pub(crate) async fn release_at(servers: &Servers, keys: &Keys, owner: &OwnerId, noted: bool) -> Result<bool, Failure> {
    servers.at(&keys.lock, |connection| async move { release(&connection, keys, owner, noted).await }).await
}

/// The same over one connection.
pub(crate) async fn release(connection: &Connection, keys: &Keys, owner: &OwnerId, noted: bool) -> Result<bool, Failure> {
    let answer = connection
        .run_script(&scripts::RELEASE, keys, |command| {
            command.arg(owner.as_str()).arg(if noted { "1" } else { "0" });
        })
        .await?;
    match answer {
        Value::Int(held @ 0..=1) => Ok(held == 1),
        _ => Err(Failure::unexpected("neither 0 nor 1 from a release")),
    }
}
