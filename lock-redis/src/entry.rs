use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    LockError, OwnerId,
    backend::{Clock, Entry, Moment, locked},
};
use redis::Value;

use crate::{core::Core, error::Failure, keys::Keys, link::Connection, renewal::Kept, scripts, servers::Servers, undo::undo};

/// A guard's entry in the store.
pub(crate) struct Holding {
    core: Arc<Core>,
    kept: Arc<Kept>,
    /// Whether there is a note of the holder to be removed.
    noted: bool,
    /// Connections with an unanswered request of this acquisition: executed after the release, it would take the lock
    /// once more.
    strays: Mutex<Vec<Connection>>,
    /// Whether the store has said what it had to say to the release.
    settled: AtomicBool,
    /// Since when the lock has gone from hand to hand within this client, if this was not the first.
    handed_on_since: Option<Moment>,
}

/// How long a lock may go from hand to hand within a client, each release with the next waiter's request behind it, until other
/// clients get an equal chance: they learn of a release a round trip later.
const HANDED_ON_MAX: Duration = Duration::from_millis(20);

impl Holding {
    pub(crate) fn new(core: &Arc<Core>, kept: Arc<Kept>, noted: bool, strays: Vec<Connection>, handed_on_since: Option<Moment>) -> Self {
        let (core, strays, settled) = (Arc::clone(core), Mutex::new(strays), AtomicBool::new(false));
        Self { core, kept, noted, strays, settled, handed_on_since }
    }

    /// Releases, and hands on to the next waiter of this client.
    async fn release_and_hand_on(&self) -> Result<bool, Failure> {
        let Self { core, kept, handed_on_since, .. } = self;
        let hand_on = |since| core.watcher.released(&kept.keys.lock, since);
        let mut release = std::pin::pin!(release_at(&core.servers, &kept.keys, &kept.owner, self.noted));
        let now = Clock::Suspend.now();
        let since = handed_on_since.unwrap_or(now);
        if now.saturating_since(since) > HANDED_ON_MAX {
            let held = release.await?;
            hand_on(None);
            return Ok(held);
        }
        tokio::select! {
            biased;
            held = &mut release => {
                hand_on(None);
                return held;
            }
            // Sent by now: what is sent from now on comes after it. If the connection has to be made first, whoever is next finds the
            // lock taken, and asks again.
            () = std::future::ready(()) => hand_on(Some(since)),
        }
        release.await
    }

    fn unwatch(&self) {
        self.core.watcher.leave(&self.kept.keys.lock, &self.kept.owner);
    }

    fn undo_strays(&self) {
        let strays = std::mem::take(&mut *locked(&self.strays));
        if !strays.is_empty() {
            self.core.holds.tasks().spawn(undo(Arc::clone(&self.core), Arc::clone(&self.kept), strays));
        }
    }
}

#[async_trait]
impl Entry for Holding {
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        let held = self.release_and_hand_on().await?;
        self.undo_strays();
        self.settled.store(true, Ordering::Release);
        Ok(held)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if !*self.settled.get_mut() {
            self.unwatch();
            self.undo_strays();
        }
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
