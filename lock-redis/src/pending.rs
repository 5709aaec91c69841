use std::{fmt, sync::Arc, time::Duration};

use lock_core::{
    FencingToken, LockError, LockGuard, LockName, OwnerId, Terms,
    backend::{Clock, Grant, Moment, deadline},
};
use redis::{Cmd, Value};

use crate::{
    acquire::Core,
    entry::{self, RedisEntry},
    error::Failure,
    keys::Keys,
    orphan::undo,
    renewal::StoredEntry,
    scripts::{self, Holder, millis},
    transport::reconnect::Connection,
};

/// One acquisition on its way: requests of the same owner id until one is granted, or given up.
///
/// Dropped before it became a guard, it undoes in the background whatever may have taken effect.
pub(crate) struct PendingEntry {
    core: Arc<Core>,
    name: LockName,
    keys: Keys,
    owner: OwnerId,
    terms: Terms,
    /// Connections with a request that has taken effect, or of which that is not known.
    pending: Vec<Connection>,
    /// Holder of the lock when it was asked for last.
    holder: Option<Holder>,
}

/// The server's answer to one request.
#[derive(Debug)]
pub(crate) enum Answer {
    Granted(Granted),
    /// Somebody else holds the lock, or is to have it; when the lease ends, if it does.
    Busy {
        expires_in: Option<Duration>,
        /// The entry that comes before this client's in the queue.
        before: Option<scripts::Entry>,
    },
    /// Granted, but the answer took longer than the lease, or its caller was not polled for so
    /// long.
    Late,
}

/// Part that the queue in the store has in a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Queueing<'a> {
    /// Takes the lock if nobody waits for it.
    Respect,
    /// Enters the queue unless it takes the lock, and renews what is there if that is due.
    Wait { entry: &'a str, renew: bool },
    /// Follows a release of the same client, and goes before those who wait elsewhere.
    HandOver { entry: &'a str },
}

/// The server's grant, to be made a guard.
#[derive(Debug)]
pub(crate) struct Granted {
    sent: Moment,
    token: FencingToken,
    /// Since when this client has had the lock, if it was handed over within it.
    pub(crate) handed_over_since: Option<Moment>,
}

impl PendingEntry {
    pub(crate) fn new(core: &Arc<Core>, name: &LockName, terms: Terms) -> Self {
        let keys = Keys::new(&core.prefix, name);
        Self {
            core: Arc::clone(core),
            name: name.clone(),
            keys,
            owner: OwnerId::random(),
            terms,
            pending: Vec::new(),
            holder: None,
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.keys.lock
    }

    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    pub(crate) fn owner(&self) -> &OwnerId {
        &self.owner
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.terms.ttl
    }

    fn validity(&self) -> Duration {
        self.core.validity.of(self.terms.ttl)
    }

    /// Asks once.
    pub(crate) async fn request(
        &mut self,
        connection: Connection,
        queueing: Queueing<'_>,
    ) -> Result<Answer, Failure> {
        // Of those that owe nothing by now the requests have been executed, before the one that is
        // sent here.
        let settled: Vec<_> = self
            .pending
            .iter()
            .filter(|pending| !pending.has_unanswered())
            .cloned()
            .collect();
        let is_first = !self.pending.iter().any(|pending| pending.is(&connection));
        if is_first {
            self.pending.push(connection.clone());
        }
        let sent = Clock::Suspend.now();
        let answer = self.ask(&connection, queueing).await;
        if is_first && answer.as_ref().is_err_and(Failure::had_no_effect) {
            self.pending.pop();
        }
        let answer = answer?;
        self.holder = scripts::parse_holder(&answer).or_else(|| self.holder.take());
        match scripts::parse_acquired(&answer)? {
            Ok(token) if Clock::Suspend.now() < deadline(sent, self.validity()) => {
                Ok(Answer::Granted(Granted {
                    sent,
                    token: FencingToken::new(token),
                    handed_over_since: None,
                }))
            }
            Ok(_) => Ok(Answer::Late),
            Err(expires_in) => {
                // Earlier requests over this connection took effect earlier, and are over. So are
                // those over others that had answered before: they are not kept open for as long as
                // this waits.
                self.pending.retain(|pending| {
                    !pending.is(&connection) && settled.iter().all(|settled| !settled.is(pending))
                });
                self.pending
                    .iter()
                    .for_each(|pending| pending.probe(self.core.guards.tasks()));
                Ok(Answer::Busy {
                    expires_in,
                    before: scripts::parse_entry_before(&answer),
                })
            }
        }
    }

    async fn ask(&self, connection: &Connection, queueing: Queueing<'_>) -> Result<Value, Failure> {
        let metadata = self
            .terms
            .metadata
            .as_ref()
            .map_or(String::new(), |text| format!("={text}"));
        let args = |command: &mut Cmd| {
            command
                .arg(self.owner.as_str())
                .arg(millis(self.terms.ttl))
                .arg(millis(self.terms.ttl + self.core.counter_ttl));
            command.arg(&metadata);
            let (entry, mode) = match queueing {
                Queueing::Respect => return,
                Queueing::Wait { entry, renew: true } => (entry, "renew"),
                Queueing::Wait { entry, .. } => (entry, "wait"),
                Queueing::HandOver { entry } => (entry, "pass"),
            };
            command.arg("").arg(entry).arg(mode);
        };
        match connection
            .run_script(&scripts::ACQUIRE, &self.keys, args)
            .await
        {
            Err(failure) if failure.is_try_again() => {
                connection
                    .run_script(&scripts::ACQUIRE_UNQUEUED, &self.keys, args)
                    .await
            }
            answer => answer,
        }
    }

    /// Returns what keeps the lock, if it is granted.
    pub(crate) fn stored(&self) -> Arc<StoredEntry> {
        Arc::new(StoredEntry {
            keys: self.keys.clone(),
            owner: self.owner.clone(),
            ttl: self.terms.ttl,
            counter_ttl: self.core.counter_ttl,
            validity: self.validity(),
        })
    }

    /// Returns whether the lease has not ended on the way.
    pub(crate) fn is_in_time(&self, granted: &Granted) -> bool {
        Clock::Suspend.now() < deadline(granted.sent, self.validity())
    }

    /// Gives back what `connection` brought, because replicas did not confirm it.
    pub(crate) async fn give_back(
        mut self,
        cause: LockError,
        connection: &Connection,
    ) -> LockError {
        let released = entry::release(connection, &self.keys, &self.owner)
            .await
            .is_ok();
        // A server that has taken over since may have got the lock from this one: the undo goes
        // there as well.
        if released && connection.leads_to_who_is_in_charge() {
            self.pending.retain(|pending| !pending.is(connection));
        }
        let error = LockError::new(
            cause.kind(),
            "the lock was given back, for too few replicas confirmed it",
        );
        let error = error.of(&self.name).caused_by(cause);
        if self.pending.is_empty() {
            error
        } else {
            error.indeterminate()
        }
    }

    /// Makes the guard; `connection` is the one that brought the grant.
    pub(crate) fn guard(mut self, granted: Granted, connection: &Connection) -> LockGuard {
        let Granted {
            sent,
            token,
            handed_over_since,
        } = granted;
        let core = Arc::clone(&self.core);
        let mut unsettled = std::mem::take(&mut self.pending);
        unsettled.retain(|pending| !pending.is(connection));
        let stored = self.stored();
        let (lease, renewal) =
            core.keeper
                .register(Arc::clone(&stored), sent, stored.validity, &self.terms);
        let entry = Arc::new(RedisEntry::new(&core, stored, unsettled, handed_over_since));
        let name = self.name.clone();
        let owner = self.owner.clone();
        let grant = Grant::new(name, owner, lease, entry)
            .with_token(token)
            .with_renewal(renewal);
        let (guard, trigger) = core.guards.grant_watched(grant);
        core.watcher.hold(
            &self.keys.lock,
            self.owner.clone(),
            trigger,
            Arc::clone(&core.servers) as _,
        );
        guard
    }

    /// The error of an acquisition that failed for good.
    pub(crate) fn error(&self, failure: Failure) -> LockError {
        let error = LockError::from(failure).of(&self.name);
        if self.pending.is_empty() {
            error
        } else {
            error.indeterminate()
        }
    }
}

impl Drop for PendingEntry {
    fn drop(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.core
                .guards
                .tasks()
                .spawn(undo(Arc::clone(&self.core), self.stored(), pending));
        }
    }
}

impl fmt::Debug for PendingEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
