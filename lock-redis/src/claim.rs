use std::{fmt, sync::Arc, time::Duration};

use lock_core::{
    FencingToken, LockError, LockGuard, LockName, OwnerId, Terms,
    backend::{Clock, Grant, LossTrigger, Moment, deadline},
};
use redis::{Cmd, Value};

use crate::{
    core::Core,
    entry::{self, Holding},
    error::Failure,
    keys::Keys,
    link::Connection,
    renewal::Kept,
    scripts::{self, millis},
    undo::undo,
};

/// One acquisition on its way: requests of the same owner id until one is granted, or given up.
///
/// Dropped before it became a guard, it undoes in the background whatever may have taken effect.
pub(crate) struct Claim {
    core: Arc<Core>,
    name: LockName,
    keys: Keys,
    owner: OwnerId,
    terms: Terms,
    /// Connections with a request that has taken effect, or of which that is not known.
    pending: Vec<Connection>,
    /// Who held the lock when it was asked for last.
    holder: Option<OwnerId>,
}

/// What the server said to one request.
#[derive(Debug)]
pub(crate) enum Answer {
    Granted(Granted),
    /// Somebody else holds the lock; when the lease ends, if it does.
    Busy(Option<Duration>),
    /// Granted, but the answer took longer than the lease, or its caller was not polled for so long.
    Late,
}

/// The server's grant, to be made a guard.
#[derive(Debug)]
pub(crate) struct Granted {
    sent: Moment,
    token: FencingToken,
    /// Since when the lock has gone from hand to hand within this client, if this was not the first.
    pub(crate) handed_on_since: Option<Moment>,
}

impl Claim {
    pub(crate) fn new(core: &Arc<Core>, name: &LockName, terms: Terms) -> Self {
        let keys = Keys::new(&core.prefix, name);
        Self { core: Arc::clone(core), name: name.clone(), keys, owner: OwnerId::random(), terms, pending: Vec::new(), holder: None }
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.keys.lock
    }

    pub(crate) fn holder(&self) -> Option<&OwnerId> {
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

    /// Asks once. With `track`, over a tracking connection, the server reports the lock's next change.
    pub(crate) async fn request(&mut self, connection: Connection, track: bool) -> Result<Answer, Failure> {
        // Of those that owe nothing by now the requests have been executed, before the one that is sent here.
        let settled: Vec<_> = self.pending.iter().filter(|pending| !pending.owes()).cloned().collect();
        let is_first = !self.pending.iter().any(|pending| pending.is(&connection));
        if is_first {
            self.pending.push(connection.clone());
        }
        let sent = Clock::Suspend.now();
        let answer = self.ask(&connection, track).await;
        if is_first && answer.as_ref().is_err_and(Failure::had_no_effect) {
            self.pending.pop();
        }
        let answer = answer?;
        self.holder = scripts::parse_holder(&answer).or_else(|| self.holder.take());
        match scripts::parse_acquired(&answer)? {
            Ok(token) if Clock::Suspend.now() < deadline(sent, self.validity()) => {
                Ok(Answer::Granted(Granted { sent, token: FencingToken::new(token), handed_on_since: None }))
            }
            Ok(_) => Ok(Answer::Late),
            Err(expires_in) => {
                // Earlier requests over this connection took effect earlier, and are over. So are those over others that had
                // answered before: they are not kept open for as long as this waits.
                self.pending.retain(|pending| !pending.is(&connection) && settled.iter().all(|settled| !settled.is(pending)));
                self.pending.iter().for_each(|pending| pending.probe(self.core.holds.tasks()));
                Ok(Answer::Busy(expires_in))
            }
        }
    }

    async fn ask(&self, connection: &Connection, track: bool) -> Result<Value, Failure> {
        let metadata = self.terms.metadata.as_ref().map_or(String::new(), |text| format!("={text}"));
        let args = |command: &mut Cmd| {
            command.arg(self.owner.as_str()).arg(millis(self.terms.ttl)).arg(scripts::companion_ttl(self.terms.ttl));
            command.arg(&metadata).arg(if track { "1" } else { "0" });
        };
        connection.run_script(&scripts::ACQUIRE, &self.keys, args).await
    }

    /// What keeps the lock, if it is granted.
    pub(crate) fn kept(&self) -> Arc<Kept> {
        Arc::new(Kept { keys: self.keys.clone(), owner: self.owner.clone(), ttl: self.terms.ttl, validity: self.validity() })
    }

    /// Whether the lease has not ended on the way.
    pub(crate) fn is_in_time(&self, granted: &Granted) -> bool {
        Clock::Suspend.now() < deadline(granted.sent, self.validity())
    }

    /// Gives back what `connection` brought, because replicas did not confirm it.
    pub(crate) async fn give_back(mut self, cause: LockError, connection: &Connection) -> LockError {
        let noted = self.terms.metadata.is_some();
        let released = entry::release(connection, &self.keys, &self.owner, noted).await.is_ok();
        // A server that has taken over since may have got the lock from this one: the undo goes there as well.
        if released && connection.leads_to_who_is_in_charge() {
            self.pending.retain(|pending| !pending.is(connection));
        }
        let error = LockError::new(cause.kind(), "the lock was given back, for too few replicas confirmed it");
        let error = error.of(&self.name).caused_by(cause);
        if self.pending.is_empty() { error } else { error.indeterminate() }
    }

    /// Makes the guard; `connection` is the one that brought the grant.
    pub(crate) fn guard(mut self, granted: Granted, connection: &Connection) -> LockGuard {
        let Granted { sent, token, handed_on_since } = granted;
        let core = Arc::clone(&self.core);
        let mut strays = std::mem::take(&mut self.pending);
        strays.retain(|pending| !pending.is(connection));
        let kept = self.kept();
        let (lease, keep) = core.keeper.keep(Arc::clone(&kept), sent, kept.validity, &self.terms);
        let entry = Arc::new(Holding::new(&core, kept, self.terms.metadata.is_some(), strays, handed_on_since));
        let (name, owner) = (self.name.clone(), self.owner.clone());
        let guard = core.holds.grant(Grant { name, owner, token: Some(token), lease, keep: Some(keep), entry });
        core.watcher.hold(&self.keys.lock, self.owner.clone(), LossTrigger::of(&guard), Arc::clone(&core.servers) as _);
        guard
    }

    /// The error of an acquisition that failed for good.
    pub(crate) fn error(&self, failure: Failure) -> LockError {
        let error = LockError::from(failure).of(&self.name);
        if self.pending.is_empty() { error } else { error.indeterminate() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.core.holds.tasks().spawn(undo(Arc::clone(&self.core), self.kept(), pending));
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("name", &self.name).field("owner", &self.owner).finish_non_exhaustive()
    }
}
