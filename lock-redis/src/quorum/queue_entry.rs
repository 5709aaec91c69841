use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::backend::{Clock, Moment, locked};
use redis::Value;

use crate::{
    error::Failure,
    keys::Keys,
    queue_entry::RENEW_INTERVAL,
    quorum::{acquire::Core, attempt::QueuePart},
    scripts::{self, Holder},
    transport::reconnect::Connection,
};

const CLOCK: Clock = Clock::Suspend;

/// The server whose queue this client has entered for a lock, and over which connection: what
/// leaves the queue goes the same way, so that it comes last.
pub(crate) type Entered = Mutex<HashMap<Arc<str>, (usize, Connection)>>;

/// The entry that its client has in the queue of a lock, on one server of the quorum.
///
/// The queue tells who competes, and nothing else: a majority grants the lock. Clients that can
/// reach different servers stand in different queues, whose first ones then compete.
///
/// When the last of the client's waiters is dropped the entry is removed in the background.
pub(crate) struct QuorumQueueEntry {
    core: Arc<Core>,
    keys: Keys,
    entry: String,
    renewed: Option<Moment>,
    /// The entry that came before this client's when it asked last, and when to ask again if
    /// nothing is reported.
    before: Option<(scripts::Entry, Moment)>,
}

/// A client's place in a queue.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) before: Option<scripts::Entry>,
    /// Whoever has the lock on this server.
    pub(crate) holder: Option<Holder>,
    /// Time after which to ask again; while the lock is free, for whoever is first to take it.
    pub(crate) again_in: Option<Duration>,
}

impl QuorumQueueEntry {
    pub(crate) fn new(core: &Arc<Core>, keys: &Keys) -> Self {
        Self {
            core: Arc::clone(core),
            keys: keys.clone(),
            entry: keys.entry(&core.id),
            renewed: None,
            before: None,
        }
    }

    /// Returns whether the entry has been in a queue before.
    pub(crate) fn has_entered(&self) -> bool {
        self.renewed.is_some()
    }

    /// Returns whether to ask for the place in the queue: it is not known, or has not been renewed
    /// lately, or whoever comes before has not been heard of.
    pub(crate) fn is_due(&self) -> bool {
        let now = CLOCK.now();
        let fresh = |at: Moment| now.saturating_since(at) < RENEW_INTERVAL / 2;
        !self.renewed.is_some_and(fresh) || self.before.as_ref().is_some_and(|(_, at)| *at <= now)
    }

    /// The entry before this one has ended; says whether there was one.
    pub(crate) fn moved_up(&mut self) -> bool {
        self.before.take().is_some()
    }

    /// An attempt has failed, which may have removed the entry.
    pub(crate) fn competed(&mut self) {
        (self.renewed, self.before) = (None, None);
    }

    /// Sleeps on the entry `before` its own until this instant.
    pub(crate) fn follow(&mut self, before: scripts::Entry, until: Moment) {
        self.before = Some((before, until));
    }

    /// Returns what an attempt tells the server with the queue.
    pub(crate) fn part(&self) -> Option<QueuePart> {
        let (server, _) = *locked(&self.core.entered).get(&self.keys.lock)?;
        let entry = self.entry.clone();
        Some(QueuePart { server, entry })
    }

    /// Enters the queue, or renews the entry, on the first server that answers.
    pub(crate) async fn enter(&mut self) -> Option<Position> {
        for server in self.core.quorum.queue_order(&self.keys.lock) {
            match self.enter_on(server).await {
                Ok(position) => return Some(position),
                Err(failure) => tracing::debug!(
                    lock = &*self.keys.lock,
                    server = self.core.quorum.server(server).address,
                    ?failure,
                    "its queue could not be entered"
                ),
            }
        }
        None
    }

    async fn enter_on(&mut self, server: usize) -> Result<Position, Failure> {
        let member = Arc::clone(self.core.quorum.server(server));
        let connection = member.connection(&self.keys.lock).await?;
        let sent = CLOCK.now();
        self.entering(server, &connection);
        let answer = connection
            .run_script(&scripts::ACQUIRE, &self.keys, |command| {
                scripts::add_entering(command, &self.entry);
            })
            .await;
        let answer = member.heard(answer)?;
        let again_in = scripts::parse_acquired(&answer)?.err().flatten();
        self.renewed = Some(sent);
        Ok(Position {
            before: scripts::parse_entry_before(&answer),
            holder: scripts::parse_holder(&answer),
            again_in,
        })
    }

    /// A request that enters the queue of this server is about to be sent: the client leaves that
    /// of another one.
    fn entering(&self, server: usize, connection: &Connection) {
        let entered = (server, connection.clone());
        let left = locked(&self.core.entered).insert(Arc::clone(&self.keys.lock), entered);
        if let Some((left, connection)) = left
            && left != server
        {
            self.leave_in_background(left, connection);
        }
    }

    /// Reads the entry `before`, whose end the server then reports; returns whether it is there,
    /// and whether its end is reported.
    pub(crate) async fn look_at(&self, before: &scripts::Entry) -> Result<(bool, bool), Failure> {
        let entered = locked(&self.core.entered)
            .get(&self.keys.lock)
            .map(|(server, _)| *server);
        let Some(server) = entered else {
            return Ok((false, false));
        };
        let member = Arc::clone(self.core.quorum.server(server));
        let (connection, tracked) = member.tracking_or_commands(&self.keys.lock).await?;
        let read = redis::cmd("GET").arg(&before.key).take();
        let value = member.heard(connection.run(&read).await)?;
        let is_there = matches!(value, Value::BulkString(arrival) if arrival == before.arrival);
        Ok((is_there, tracked))
    }

    /// Leaves the queue, for the lock has been granted: the next one is told only now, so that it
    /// finds the lock taken by a majority.
    pub(crate) async fn granted(&self) {
        let entered = locked(&self.core.entered).remove(&self.keys.lock);
        if let Some((server, connection)) = entered {
            let mut leaving = Box::pin(self.leave(server, connection));
            tokio::select! {
                biased;
                () = &mut leaving => {}
                // Sent by now: the next of the client's waiters enters after it.
                () = std::future::ready(()) => drop(self.core.guards.tasks().spawn(leaving)),
            }
        }
    }

    /// Removes the entry; if that fails it ends by itself when it has not been renewed.
    fn leave(
        &self,
        server: usize,
        connection: Connection,
    ) -> impl Future<Output = ()> + Send + use<> {
        let member = Arc::clone(self.core.quorum.server(server));
        let keys = self.keys.clone();
        let entry = self.entry.clone();
        async move {
            let once = async |connection: Connection| {
                connection
                    .run_script(&scripts::LEAVE, &keys, |command| {
                        command.arg(&entry);
                    })
                    .await
            };
            let again = async || once(member.connection(&keys.lock).await?).await;
            if once(connection).await.is_err()
                && let Err(failure) = again().await
            {
                tracing::debug!(
                    lock = &*keys.lock,
                    server = member.address,
                    ?failure,
                    "an entry could not be removed from the queue, it ends by itself"
                );
            }
        }
    }

    fn leave_in_background(&self, server: usize, connection: Connection) {
        let leaving = self.leave(server, connection);
        self.core.guards.tasks().spawn(leaving);
    }
}

impl Drop for QuorumQueueEntry {
    fn drop(&mut self) {
        if !self.core.watcher.nobody_waits(&self.keys.lock) {
            return;
        }
        let entered = locked(&self.core.entered).remove(&self.keys.lock);
        if let Some((server, connection)) = entered {
            self.leave_in_background(server, connection);
        }
    }
}
