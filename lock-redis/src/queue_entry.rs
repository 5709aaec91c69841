use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::backend::{Clock, Moment, locked};

use crate::{
    acquire::Core,
    keys::Keys,
    pending::Queueing,
    scripts,
    transport::reconnect::Connection,
    waiters::{local::Limits, tracking::Place},
};

/// How often a waiter renews its client's entry at least, while it is polled. Entries that are not
/// renewed for 6 s end.
pub(crate) const RENEW_INTERVAL: Duration = Duration::from_secs(2);

const CLOCK: Clock = Clock::Suspend;

/// The connections over which this client has entered queues, by the lock's key: what leaves a
/// queue goes the same way, so that it comes last.
pub(crate) type Entered = Mutex<HashMap<Arc<str>, Connection>>;

/// One waiter's part in the entry that its client has in the queue of a lock.
///
/// When the last of the client's waiters is dropped the entry is removed in the background.
pub(crate) struct QueueEntry {
    core: Arc<Core>,
    keys: Keys,
    entry: String,
    renewed: Option<Moment>,
    /// The entry that came before this client's when it asked last.
    pub(crate) before: Option<scripts::Entry>,
    /// Given up before it is seen that nobody waits any more.
    place: Option<Place>,
}

impl QueueEntry {
    pub(crate) fn new(core: &Arc<Core>, keys: &Keys, limits: Limits) -> Self {
        Self {
            core: Arc::clone(core),
            keys: keys.clone(),
            entry: keys.entry(&core.id),
            renewed: None,
            before: None,
            place: Some(core.watcher.join(&keys.lock, limits)),
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn place(&self) -> &Place {
        match &self.place {
            Some(place) => place,
            None => unreachable!("the place is given up by the drop alone"),
        }
    }

    /// True if the entry has not been renewed lately.
    pub(crate) fn is_due(&self) -> bool {
        let fresh = |at: Moment| CLOCK.now().saturating_since(at) < RENEW_INTERVAL / 2;
        !self.renewed.is_some_and(fresh)
    }

    pub(crate) fn to_wait(&self) -> Queueing<'_> {
        Queueing::Wait {
            entry: &self.entry,
            renew: self.is_due(),
        }
    }

    pub(crate) fn to_hand_over(&self) -> Queueing<'_> {
        Queueing::HandOver { entry: &self.entry }
    }

    /// A request that may enter the queue is about to be sent.
    pub(crate) fn entering(&self, connection: &Connection) {
        locked(&self.core.entered).insert(Arc::clone(&self.keys.lock), connection.clone());
    }

    /// A request sent at this instant has renewed the entry.
    pub(crate) fn renewed(&mut self, at: Moment) {
        self.renewed = Some(at);
    }

    /// The script that granted the lock has removed the entry.
    pub(crate) fn granted(&self) {
        locked(&self.core.entered).remove(&self.keys.lock);
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        drop(self.place.take());
        if !self.core.watcher.nobody_waits(&self.keys.lock) {
            return;
        }
        let entered = locked(&self.core.entered).remove(&self.keys.lock);
        if let Some(connection) = entered {
            self.core.guards.tasks().spawn(leave(
                Arc::clone(&self.core),
                self.keys.clone(),
                std::mem::take(&mut self.entry),
                connection,
            ));
        }
    }
}

/// Removes the client's entry; if that fails it ends by itself when it has not been renewed.
async fn leave(core: Arc<Core>, keys: Keys, entry: String, connection: Connection) {
    let once = async |connection: Connection| {
        connection
            .run_script(&scripts::LEAVE, &keys, |command| {
                command.arg(&entry);
            })
            .await
    };
    if once(connection).await.is_err()
        && let Err(failure) = core.servers.at(&keys.lock, once).await
    {
        tracing::debug!(
            lock = &*keys.lock,
            ?failure,
            "an entry could not be removed from the queue, it ends by itself"
        );
    }
}
