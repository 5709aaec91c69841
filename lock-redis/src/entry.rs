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
    ErrorKind, FencingToken, LockError, LossReason, OwnerId,
    backend::{Clock, Entry, Moment, bounded, locked},
};
use redis::Value;

use crate::{
    acquire::Core, error::Failure, keys::Keys, orphan::undo, renewal::StoredEntry, scripts,
    transport::reconnect::Connection, transport::routing::Servers,
};

/// A guard's entry in the store.
pub(crate) struct RedisEntry {
    core: Arc<Core>,
    stored: Arc<StoredEntry>,
    /// Connections with an unanswered request of this acquisition: executed after the release, it
    /// would take the lock once more.
    unsettled: Mutex<Vec<Connection>>,
    /// True if the store has said what it had to say to the release.
    settled: AtomicBool,
    /// Since when this client has had the lock, from hand to hand if not in one.
    ours_since: Moment,
}

/// How long a client may have a lock and still hand it on, the next waiter's request behind the
/// release: after that other clients get an equal chance, who learn of a release a round trip
/// later. A lock that is held for longer goes to another client that waits.
const HAND_OVER_MAX: Duration = Duration::from_millis(20);

impl RedisEntry {
    pub(crate) fn new(
        core: &Arc<Core>,
        stored: Arc<StoredEntry>,
        unsettled: Vec<Connection>,
        handed_over_since: Option<Moment>,
    ) -> Self {
        let core = Arc::clone(core);
        let unsettled = Mutex::new(unsettled);
        let settled = AtomicBool::new(false);
        Self {
            core,
            stored,
            unsettled,
            settled,
            ours_since: handed_over_since.unwrap_or_else(|| Clock::Suspend.now()),
        }
    }

    /// Releases, and hands on to the next waiter of this client.
    async fn release_and_hand_over(&self) -> Result<bool, Failure> {
        let Self {
            core,
            stored,
            ours_since,
            ..
        } = self;
        let hand_over = |since| core.watcher.released(&stored.keys.lock, since);
        let mut release = std::pin::pin!(release_at(&core.servers, &stored.keys, &stored.owner));
        if Clock::Suspend.now().saturating_since(*ours_since) > HAND_OVER_MAX {
            let held = release.await?;
            hand_over(None);
            return Ok(held);
        }
        tokio::select! {
            biased;
            held = &mut release => {
                hand_over(None);
                return held;
            }
            // Sent by now: what is sent from now on comes after it. If the connection has to be
            // made first, whoever is next finds the lock taken, and asks again.
            () = std::future::ready(()) => hand_over(Some(*ours_since)),
        }
        release.await
    }

    async fn raise(&self, token: u64) -> Result<Option<u64>, LockError> {
        let Self { core, stored, .. } = self;
        if let Some(replicas) = &core.replicas {
            return replicas.raise(stored, token).await;
        }
        let once = || {
            core.servers.at(&stored.keys.lock, |connection| async move {
                raise(&connection, stored, token).await
            })
        };
        match once().await {
            // The connection may have broken while it was idle. Raised twice is raised once; but
            // the first may yet take effect.
            Err(failure) if failure.found_broken() => once()
                .await
                .map_err(|again| LockError::from(again).indeterminate()),
            answer => Ok(answer?),
        }
    }

    fn unwatch(&self) {
        self.core
            .watcher
            .leave(&self.stored.keys.lock, &self.stored.owner);
    }

    fn undo_unsettled(&self) {
        let unsettled = std::mem::take(&mut *locked(&self.unsettled));
        if !unsettled.is_empty() {
            self.core.guards.tasks().spawn(undo(
                Arc::clone(&self.core),
                Arc::clone(&self.stored),
                unsettled,
            ));
        }
    }
}

#[async_trait]
impl Entry for RedisEntry {
    async fn release(&self) -> Result<bool, LockError> {
        self.unwatch();
        let held = self.release_and_hand_over().await?;
        self.undo_unsettled();
        self.settled.store(true, Ordering::Release);
        Ok(held)
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        if at_least.as_u64() > scripts::LAST_RAISED {
            let message = format!(
                "the token {at_least} is beyond {}, up to which this store's can be raised",
                scripts::LAST_RAISED
            );
            return Err(LockError::new(ErrorKind::InvalidOptions, message));
        }
        let raised = bounded(&self.core.guards, None, self.raise(at_least.as_u64())).await?;
        raised
            .map(FencingToken::new)
            .ok_or_else(|| LockError::new(ErrorKind::Lost, LossReason::Removed.to_string()))
    }
}

impl Drop for RedisEntry {
    fn drop(&mut self) {
        if !*self.settled.get_mut() {
            self.unwatch();
            self.undo_unsettled();
        }
    }
}

impl fmt::Debug for RedisEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding")
            .field("kept", &self.stored)
            .finish_non_exhaustive()
    }
}

/// Removes this owner's entry and no other, wherever it is now; says whether it was there.
pub(crate) async fn release_at(
    servers: &Servers,
    keys: &Keys,
    owner: &OwnerId,
) -> Result<bool, Failure> {
    servers
        .at(&keys.lock, |connection| async move {
            release(&connection, keys, owner).await
        })
        .await
}

/// The same over one connection.
pub(crate) async fn release(
    connection: &Connection,
    keys: &Keys,
    owner: &OwnerId,
) -> Result<bool, Failure> {
    let answer = connection
        .run_script(&scripts::RELEASE, keys, |command| {
            command.arg(owner.as_str());
        })
        .await?;
    match answer {
        Value::Int(held @ 0..=1) => Ok(held == 1),
        _ => Err(Failure::unexpected("neither 0 nor 1 from a release")),
    }
}

/// Raises the counter to the token, and says what it then is; nothing if the lock is not this
/// owner's any more.
pub(crate) async fn raise(
    connection: &Connection,
    stored: &StoredEntry,
    token: u64,
) -> Result<Option<u64>, Failure> {
    let answer = connection.run_script(&scripts::RAISE, &stored.keys, |command| {
        command
            .arg(stored.owner.as_str())
            .arg(token)
            .arg(stored.companion_ttl());
    });
    scripts::parse_raised(&answer.await?)
}
