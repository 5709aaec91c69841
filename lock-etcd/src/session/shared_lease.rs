use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, LockError, LossReason, Terms,
    backend::{
        Clock, Lease, LeaseKeeper, Leftover, Moment, Removal, RenewalHandle, Signal, Tasks, locked,
    },
};

use super::lease::{self, GrantedLease, LeaseRenewer, renew, revoke};
use crate::{
    entry_numbers::EntryNumbers,
    orphans::Orphans,
    transport::{Cluster, KnownStore},
};

/// A lease in etcd that keeps any number of entries and is renewed for all of them at once.
///
/// It is revoked, and with it every entry that is left, when its last user drops it.
#[derive(Debug)]
pub(crate) struct Session {
    granted: GrantedLease,
    /// The store when the lease was granted: once it has gone back the session is of no use.
    known: KnownStore,
    lease: Arc<Lease>,
    renewal: Mutex<Option<Arc<RenewalHandle>>>,
    /// The validity of the guard, in a session with a single acquisition.
    held: OnceLock<Arc<Lease>>,
    numbers: EntryNumbers,
    orphans: Arc<Orphans>,
    /// The outcome of the revocation at a shutdown. A store that does not answer is not asked for
    /// anything again.
    end: OnceLock<Result<bool, LockError>>,
    context: Arc<SessionContext>,
}

/// The state that all sessions of a client share.
#[derive(Debug)]
pub(super) struct SessionContext {
    pub(super) cluster: Arc<Cluster>,
    pub(super) keeper: Arc<LeaseKeeper<LeaseRenewer>>,
    pub(super) tasks: Tasks,
    pub(super) closing: Signal,
    /// The sessions for new acquisitions; gone with the client.
    pub(super) in_use: Weak<Mutex<InUse>>,
    /// All sessions, by the ids of their leases.
    pub(super) all: Mutex<HashMap<i64, Weak<Session>>>,
    /// No lock is taken before this instant: the store went back, and until then guards may be
    /// valid whose clients cannot be told.
    pub(super) blocked_until: Mutex<Option<Moment>>,
}

/// The sessions that new acquisitions may use.
#[derive(Debug, Default)]
pub(super) struct InUse {
    pub(super) by_ttl: HashMap<Duration, Weak<Session>>,
    /// The session for the default TTL stays while the client lives, so that single acquisitions
    /// need no grant.
    pub(super) default: Option<Arc<Session>>,
    /// Out of use, and alive as long as their guards and waiters are.
    retired: Vec<Weak<Session>>,
}

impl InUse {
    /// All shared sessions, retired ones included.
    pub(super) fn all(&self) -> Vec<Weak<Session>> {
        self.by_ttl.values().chain(&self.retired).cloned().collect()
    }

    pub(super) fn is_retired(&self, session: &Session) -> bool {
        self.retired
            .iter()
            .any(|other| std::ptr::eq(other.as_ptr(), session))
    }

    /// Takes a session out of use, and returns the handle that kept it alive, if any.
    fn retire(&mut self, session: &Arc<Session>) -> Option<Arc<Session>> {
        self.retired.retain(|other| other.strong_count() > 0);
        if !self.is_retired(session) {
            self.retired.push(Arc::downgrade(session));
        }
        self.by_ttl
            .retain(|_, other| !std::ptr::eq(other.as_ptr(), &**session));
        self.default
            .take_if(|default| Arc::ptr_eq(default, session))
    }
}

impl Session {
    /// The lease's id in etcd.
    pub(crate) fn id(&self) -> i64 {
        self.granted.id
    }

    /// The lease that keeps the guards of this session valid.
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// The numbers of this session's entries.
    pub(crate) fn numbers(&self) -> &EntryNumbers {
        &self.numbers
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.context.cluster
    }

    /// Runs the tasks of the client.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.context.tasks
    }

    /// Tells whether the lease has been revoked, and with it every entry.
    pub(crate) fn is_revoked(&self) -> bool {
        matches!(self.end.get(), Some(Ok(true)))
    }

    /// The error of a store that did not answer when the lease was to be revoked.
    pub(crate) fn end_failed(&self) -> Option<&LockError> {
        self.end
            .get()?
            .as_ref()
            .err()
            .filter(|error| error.kind() == ErrorKind::Unavailable)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.lease.deadline().is_ok()
    }

    /// Tells whether the store has not gone back since the lease was granted.
    pub(crate) fn is_current(&self) -> bool {
        self.context.cluster.history().continues(self.known)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.granted.ttl
    }

    /// The renewal of the lease, while it goes on.
    pub(crate) fn renewal(&self) -> Option<Weak<RenewalHandle>> {
        locked(&self.renewal).as_ref().map(Arc::downgrade)
    }

    /// Switches the renewal of a session with a single acquisition from waiting to holding: from
    /// now on it follows `terms`.
    ///
    /// # Errors
    ///
    /// If the lease is gone, or could not be renewed in time.
    pub(crate) async fn hold(
        &self,
        terms: &Terms,
    ) -> Result<(Arc<Lease>, RenewalHandle), LockError> {
        let sent = Clock::Suspend.now();
        renew(&self.context.cluster, self.granted.id, self.granted.ttl)
            .await
            .map_err(|failure| failure.error)?;
        let granted = Arc::new(self.granted);
        let keeper = &self.context.keeper;
        let (lease, renewal) = keeper.register(granted, sent, self.granted.ttl, terms);
        let _ = self.held.set(Arc::clone(&lease));
        drop(locked(&self.renewal).take());
        Ok((lease, renewal))
    }

    /// Takes the session out of use: its lease then ends with its last guard and waiter, and with
    /// it an entry that could not be removed, or that a delayed request may still make. The session
    /// of a client that goes on would keep such an entry for ever.
    pub(crate) fn retire(self: &Arc<Self>) {
        let Some(in_use) = self.context.in_use.upgrade() else {
            return;
        };
        let retired = locked(&in_use).retire(self);
        drop(retired);
    }

    /// Removes the entry under a key that nobody uses any more, now and whenever a delayed request
    /// makes it again, until the session ends.
    pub(crate) fn remove_orphan(self: &Arc<Self>, key: &str) {
        self.retire();
        if self.orphans.add(key) {
            let cluster = Arc::clone(&self.context.cluster);
            let removal = self.orphans.remove(cluster, Arc::clone(&self.lease));
            let closing = self.context.closing.clone();
            self.context.tasks.spawn(async move {
                tokio::select! {
                    () = removal => {}
                    // The leases are revoked then, and every entry goes with them.
                    () = closing.fired() => {}
                }
            });
        }
    }

    pub(super) fn lose(&self, reason: LossReason) {
        self.lease.lose(reason);
        if let Some(held) = self.held.get() {
            held.lose(reason);
        }
        // An application may keep a lost guard, which must not renew the lease.
        drop(locked(&self.renewal).take());
    }

    /// Revokes the lease and records the outcome.
    pub(super) async fn end(&self) {
        let outcome = revoke(&self.context.cluster, self.granted.id)
            .await
            .map_err(|failure| failure.error);
        let _ = self.end.set(outcome);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.orphans.session_ended();
        locked(&self.context.all).remove(&self.granted.id);
        if self.is_revoked() || self.end_failed().is_some() {
            return;
        }
        let revocation = Revocation {
            context: Arc::clone(&self.context),
            id: self.granted.id,
            lease: Arc::clone(&self.lease),
        };
        if self.numbers.is_idle() {
            // Nothing is locked by it: if its runtime ends before, the lease may as well run out.
            self.context
                .tasks
                .spawn(async move { revocation.remove().await });
        } else {
            self.context.tasks.remove(Arc::new(revocation));
        }
    }
}

/// The end of a lease, and of the entries that it still keeps.
struct Revocation {
    context: Arc<SessionContext>,
    id: i64,
    lease: Arc<Lease>,
}

#[async_trait]
impl Removal for Revocation {
    async fn remove(&self) {
        self.context
            .revoke_in_time(self.id, self.lease.remaining())
            .await;
    }

    fn left(&self) -> Leftover {
        Leftover {
            what: format!("what has the lease {:x} in etcd", self.id),
            ends_in: self.lease.remaining(),
        }
    }
}

/// The pause after all the attempts of one request.
const REVOKE_PAUSE: Duration = Duration::from_secs(1);
/// The time after which the server has dropped a request in flight: its limit is 5 s plus two
/// election timeouts.
const LATE_REQUEST: Duration = Duration::from_secs(8);

impl SessionContext {
    /// Grants a lease, and revokes it if the outcome is unknown.
    pub(super) async fn grant(self: &Arc<Self>, terms: &Terms) -> Result<Arc<Session>, LockError> {
        // The id is ours, so that a repeated request does not leave a second lease behind.
        let id = (rand::random::<u64>() >> 1).max(1) as i64;
        let outcome = self.grant_as(id, terms).await;
        if matches!(&outcome, Err(error) if error.is_indeterminate()) {
            let context = Arc::clone(self);
            self.tasks
                .spawn(async move { context.revoke_for_sure(id).await });
        }
        outcome
    }

    /// Grants a lease with this id. It is renewed while its acquisition waits, whatever the terms
    /// say of the time after.
    async fn grant_as(self: &Arc<Self>, id: i64, terms: &Terms) -> Result<Arc<Session>, LockError> {
        let known = self.cluster.history().known();
        let sent = Clock::Suspend.now();
        let granted = lease::grant(&self.cluster, id, terms.ttl).await?;
        let mut waiting = terms.clone();
        waiting.renew = true;
        waiting.max_hold = None;
        let keeper = &self.keeper;
        let (lease, renewal) = keeper.register(Arc::new(granted), sent, granted.ttl, &waiting);
        let session = Arc::new(Session {
            granted,
            known,
            lease,
            renewal: Mutex::new(Some(Arc::new(renewal))),
            held: OnceLock::new(),
            numbers: EntryNumbers::default(),
            orphans: Arc::default(),
            end: OnceLock::new(),
            context: Arc::clone(self),
        });
        locked(&self.all).insert(id, Arc::downgrade(&session));
        // If the store went back meanwhile, the end of all sessions may have missed this one.
        self.cluster.history().ensure_continues(known)?;
        Ok(session)
    }

    pub(super) fn sessions(&self) -> Vec<Arc<Session>> {
        locked(&self.all)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Revokes a lease that is not renewed any more, trying for as long as it may exist: entries
    /// that it keeps block their locks until then.
    pub(super) async fn revoke_in_time(&self, id: i64, left: Duration) {
        let gone_by = Clock::Suspend.now() + left;
        while revoke(&self.cluster, id).await.is_err()
            && Clock::Suspend.now() < gone_by
            && !self.closing.has_fired()
        {
            tokio::time::sleep(REVOKE_PAUSE).await;
        }
    }

    /// Revokes a lease that a request may still grant: now, or when that request cannot take effect
    /// any more.
    async fn revoke_for_sure(&self, id: i64) {
        let late_until = Clock::Suspend.now() + LATE_REQUEST;
        if matches!(revoke(&self.cluster, id).await, Ok(true)) {
            return;
        }
        tokio::select! {
            () = Clock::Suspend.sleep_until(late_until) => {
                let _ = revoke(&self.cluster, id).await;
            }
            // A shutdown does not wait this long: a lease without entries runs out by itself.
            () = self.closing.fired() => {}
        }
    }
}
