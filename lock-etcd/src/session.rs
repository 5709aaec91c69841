use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::LeaseGrantOptions;
use lock_core::{
    ErrorKind, LockError, LossReason, Operation, Terms,
    backend::{Clock, Keep, Keeper, Lease, Left, Moment, Removal, RenewOutcome, Renewer, Tasks, locked},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    error::Failure,
    ghosts::Ghosts,
    grants::{Grants, Kind},
    history::Known,
    places::Places,
    strays,
};

/// A lease in etcd that keeps any number of entries, and that is renewed as one.
///
/// Revoked, and with it every entry that is left, when the last user is gone.
#[derive(Debug)]
pub(crate) struct Session {
    granted: Granted,
    /// What was known of the store when the lease was granted: it is of no use once the store has gone back.
    known: Known,
    lease: Arc<Lease>,
    keep: Mutex<Option<Keep>>,
    places: Places,
    ghosts: Ghosts,
    /// The lease has been revoked, and with it every entry.
    revoked: AtomicBool,
    home: Arc<Home>,
}

/// What all sessions of a client share.
#[derive(Debug)]
pub(crate) struct Home {
    cluster: Arc<Cluster>,
    keeper: Arc<Keeper<LeaseRenewer>>,
    tasks: Tasks,
    closing: CancellationToken,
    /// All sessions, by the ids of their leases.
    all: Mutex<HashMap<i64, Weak<Session>>>,
    /// The store went back: until then guards may be valid whose clients cannot be told.
    unsettled_until: Mutex<Option<Moment>>,
}

impl Session {
    /// The lease's id in etcd.
    pub(crate) fn id(&self) -> i64 {
        self.granted.id
    }

    /// What keeps the guards of this session valid.
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// The numbers of this session's entries.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// What requests without an answer may still make.
    pub(crate) fn ghosts(&self) -> &Ghosts {
        &self.ghosts
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.lease.deadline().is_ok()
    }

    /// Whether the store has not gone back since the lease was granted.
    pub(crate) fn is_current(&self) -> bool {
        self.home.cluster.history().continues(self.known)
    }

    /// Turns the renewal of a session of one's own from waiting to holding: from now on as `terms` say.
    ///
    /// # Errors
    ///
    /// If the lease is gone, or could not be renewed in time.
    pub(crate) async fn hold(&self, terms: &Terms) -> Result<(Arc<Lease>, Keep), LockError> {
        let sent = Clock::Suspend.now();
        renew(&self.home.cluster, self.granted.id, self.granted.ttl).await.map_err(|failure| failure.error)?;
        let held = self.home.keeper.keep(Arc::new(self.granted), sent, self.granted.ttl, terms);
        drop(locked(&self.keep).take());
        Ok(held)
    }

    /// Revokes the lease, and takes note if that is done.
    async fn end(&self) {
        let revoked = matches!(revoke(&self.home.cluster, self.granted.id).await, Ok(true));
        self.revoked.store(revoked, Ordering::Release);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ghosts.lay_to_rest();
        locked(&self.home.all).remove(&self.granted.id);
        if self.is_revoked() {
            return;
        }
        let revocation = Revocation { home: Arc::clone(&self.home), id: self.granted.id, lease: Arc::clone(&self.lease) };
        if self.places.are_free() {
            // Nothing is locked by it: if its runtime ends before, the lease may as well run out.
            self.home.tasks.spawn(async move { revocation.remove().await });
        } else {
            self.home.tasks.remove(Arc::new(revocation));
        }
    }
}

/// The end of a lease, and of whatever entries are left of it.
struct Revocation {
    home: Arc<Home>,
    id: i64,
    lease: Arc<Lease>,
}

#[async_trait]
impl Removal for Revocation {
    async fn remove(&self) {
        // Nobody is waiting for it, and entries that are left block their locks until it is done.
        while revoke(&self.home.cluster, self.id).await.is_err() && self.lease.deadline().is_ok() && !self.home.closing.is_cancelled() {
            tokio::time::sleep(REVOKE_PAUSE).await;
        }
    }

    fn left(&self) -> Left {
        Left { what: format!("what has the lease {:x} in etcd", self.id), ends_in: self.lease.remaining() }
    }
}

/// After all the attempts of one request.
const REVOKE_PAUSE: Duration = Duration::from_secs(1);
/// After this the server has dropped a request that was in flight: its limit is 5 s plus two election timeouts.
const LATE_REQUEST: Duration = Duration::from_secs(8);

/// Revokes a lease and says whether it was there; if that fails, the lease runs out by itself.
async fn revoke(cluster: &Cluster, id: i64) -> Result<bool, Failure> {
    let outcome = cluster.call(|client| {
        let mut leases = client.lease_client();
        async move { leases.revoke(id).await }
    });
    match outcome.await {
        Ok(_) => Ok(true),
        Err(failure) if failure.lease_gone => Ok(false),
        Err(failure) => {
            tracing::debug!(error = %failure.error, "lease not revoked, it runs out with its TTL");
            Err(failure)
        }
    }
}

/// The sessions of one client: one for each TTL that is asked for, and one for each acquisition whose lease must end by
/// itself.
#[derive(Debug)]
pub(crate) struct Sessions {
    home: Arc<Home>,
    default_ttl: Duration,
    shared: Arc<Mutex<Shared>>,
    grants: Grants,
}

#[derive(Debug, Default)]
struct Shared {
    by_ttl: HashMap<Duration, Weak<Session>>,
    /// The session for the default TTL stays while the client lives, so that single acquisitions need no grant.
    default: Option<Arc<Session>>,
    /// Out of use, and alive as long as their guards and waiters are.
    retired: Vec<Weak<Session>>,
}

impl Shared {
    /// Those in use, and those that were.
    fn all(&self) -> Vec<Weak<Session>> {
        self.by_ttl.values().chain(&self.retired).cloned().collect()
    }
}

impl Sessions {
    pub(crate) fn new(cluster: Arc<Cluster>, tasks: Tasks, closing: CancellationToken, default_ttl: Duration) -> Self {
        let keeper = Keeper::new(Clock::Suspend, LeaseRenewer { cluster: Arc::clone(&cluster) }, tasks.apart());
        Self {
            home: Arc::new(Home { cluster, keeper, tasks, closing, all: Mutex::default(), unsettled_until: Mutex::default() }),
            default_ttl,
            shared: Arc::default(),
            grants: Grants::default(),
        }
    }

    /// Whether an acquisition needs a lease of its own, because it is not renewed like the others.
    pub(crate) fn needs_own(terms: &Terms) -> bool {
        !terms.renew || terms.max_hold.is_some()
    }

    /// A live session to acquire with.
    ///
    /// # Errors
    ///
    /// Those of the store, if a lease must be granted.
    pub(crate) async fn session(&self, terms: &Terms) -> Result<Arc<Session>, LockError> {
        let kind = Kind { ttl: terms.ttl, shared: !Self::needs_own(terms) };
        loop {
            if let Some(session) = self.shared(kind) {
                return Ok(session);
            }
            let session = self.grants.session(&self.home, kind, terms).await?;
            if !kind.shared || self.share(kind.ttl, &session)? {
                return Ok(session);
            }
        }
    }

    /// Has a session used by all who ask for its TTL, unless it has been taken out of use.
    fn share(&self, ttl: Duration, session: &Arc<Session>) -> Result<bool, LockError> {
        let mut shared = locked(&self.shared);
        // Whoever closes the sessions after this finds the new one; who did so before will not come again.
        if self.home.closing.is_cancelled() {
            return Err(LockError::new(ErrorKind::Shutdown, "this client has been shut down; connect again"));
        }
        if shared.is_retired(session) {
            return Ok(false);
        }
        shared.by_ttl.retain(|_, session| session.strong_count() > 0);
        shared.by_ttl.insert(ttl, Arc::downgrade(session));
        if ttl == self.default_ttl {
            shared.default = Some(Arc::clone(session));
        }
        Ok(true)
    }

    /// Takes a session out of use, for there is, or may come to be, an entry of it that cannot be removed: with the last
    /// guard and waiter that have it its lease ends, and the entry. The session of a client that goes on would keep it for ever.
    pub(crate) fn retire(&self, session: &Arc<Session>) {
        let mut shared = locked(&self.shared);
        shared.retired.retain(|other| other.strong_count() > 0);
        if !shared.is_retired(session) {
            shared.retired.push(Arc::downgrade(session));
        }
        shared.by_ttl.retain(|_, other| !std::ptr::eq(other.as_ptr(), &**session));
        let retired = shared.default.take_if(|default| Arc::ptr_eq(default, session));
        drop(shared);
        drop(retired);
    }

    fn shared(&self, kind: Kind) -> Option<Arc<Session>> {
        let shared = locked(&self.shared);
        shared.by_ttl.get(&kind.ttl).filter(|_| kind.shared)?.upgrade().filter(|session| session.is_alive() && session.is_current())
    }

    /// Ends the sessions that are shared, or were, and waits until their leases are revoked.
    pub(crate) async fn close(&self) {
        self.grants.clear();
        let sessions: Vec<_> = {
            let mut shared = locked(&self.shared);
            shared.default = None;
            let retired = std::mem::take(&mut shared.retired);
            shared.by_ttl.drain().map(|(_, session)| session).chain(retired).filter_map(|session| session.upgrade()).collect()
        };
        for session in &sessions {
            session.lease.lose(LossReason::Shutdown);
            // A guard that is kept although it is lost would have it renewed.
            drop(locked(&session.keep).take());
        }
        futures_util::future::join_all(sessions.iter().map(|session| session.end())).await;
    }

    /// Ends all sessions of a store that went back: their leases, which may have come back with entries that had been removed, are not
    /// renewed any more, and are revoked. Nothing is acquired for a while, see [`settled`](Self::settled).
    pub(crate) fn abandon(&self) {
        let sessions: Vec<_> = locked(&self.home.all).values().filter_map(Weak::upgrade).collect();
        let longest = sessions.iter().map(|session| session.granted.ttl).max().unwrap_or_default().max(self.default_ttl);
        let until = Some(Clock::Suspend.now() + longest);
        let mut unsettled = locked(&self.home.unsettled_until);
        // Of before an earlier return there may have been sessions with a longer TTL.
        *unsettled = until.max(*unsettled);
        drop(unsettled);
        for session in sessions {
            session.lease.lose(LossReason::Removed);
            drop(locked(&session.keep).take());
            let home = Arc::clone(&self.home);
            self.home.tasks.spawn(async move { home.revoke_in_time(session.granted).await });
        }
    }

    /// Looks again and again for entries that are back, in all sessions that may outlive their entries.
    pub(crate) fn look_for_strays(&self, namespace: String) -> impl Future<Output = ()> + Send + use<> {
        let (home, shared) = (Arc::clone(&self.home), Arc::clone(&self.shared));
        async move {
            loop {
                tokio::time::sleep(strays::PERIOD).await;
                let sessions = locked(&shared).all();
                for session in sessions.iter().filter_map(Weak::upgrade).filter(|session| session.is_alive()) {
                    strays::look(&home.cluster, &namespace, &session).await;
                }
            }
        }
    }

    /// How long guards may still be valid that were granted before the store went back, by clients that it cannot tell: as long as the
    /// longest TTL of this client. What they hold is free in the store, and a new guard might even get the same token.
    pub(crate) fn unsettled(&self) -> Option<Duration> {
        let mut until = locked(&self.home.unsettled_until);
        let left = (*until)?.saturating_since(Clock::Suspend.now());
        if left.is_zero() {
            *until = None;
        }
        Some(left).filter(|left| !left.is_zero())
    }

    /// Waits until no such guard can be valid any more.
    pub(crate) async fn settled(&self) {
        while let Some(left) = self.unsettled() {
            Clock::Suspend.sleep_until(Clock::Suspend.now() + left).await;
        }
    }

    /// How many leases are kept alive.
    pub(crate) fn kept(&self) -> usize {
        self.home.keeper.kept()
    }
}

impl Shared {
    fn is_retired(&self, session: &Session) -> bool {
        self.retired.iter().any(|other| std::ptr::eq(other.as_ptr(), session))
    }
}

impl Home {
    /// Where grants run.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Fires when the client is shut down.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Grants a lease, and leaves none behind if it gets no answer.
    pub(crate) async fn grant_anew(self: &Arc<Self>, terms: &Terms) -> Result<Arc<Session>, LockError> {
        // The id is ours, so that a repeated request does not leave a second lease behind.
        let id = (rand::random::<u64>() >> 1).max(1) as i64;
        let outcome = self.grant(id, terms).await;
        if matches!(&outcome, Err(error) if error.is_indeterminate()) {
            let home = Arc::clone(self);
            self.tasks.spawn(async move { home.revoke_for_sure(id).await });
        }
        outcome
    }

    /// Grants a lease; it is renewed while its acquisition waits, whatever the terms say of its hold.
    async fn grant(self: &Arc<Self>, id: i64, terms: &Terms) -> Result<Arc<Session>, LockError> {
        let (known, sent) = (self.cluster.history().known(), Clock::Suspend.now());
        let seconds = i64::try_from(terms.ttl.as_secs()).unwrap_or(i64::MAX);
        let answer = self.cluster.call(|client| {
            let mut leases = client.lease_client();
            let options = LeaseGrantOptions::new().with_id(id);
            async move { leases.grant(seconds, Some(options)).await }
        });
        let ttl = match answer.await {
            Ok(answer) => seconds_of(answer.ttl())?,
            // An attempt whose answer was lost has granted it.
            Err(failure) if already_exists(&failure) => granted_ttl(&self.cluster, id).await.map_err(LockError::indeterminate)?,
            Err(failure) => return Err(failure.error),
        };
        let granted = Granted { id, ttl };
        let mut waiting = terms.clone();
        (waiting.renew, waiting.max_hold) = (true, None);
        let (lease, keep) = self.keeper.keep(Arc::new(granted), sent, ttl, &waiting);
        let session = Arc::new(Session {
            granted,
            known,
            lease,
            keep: Mutex::new(Some(keep)),
            places: Places::default(),
            ghosts: Ghosts::default(),
            revoked: AtomicBool::new(false),
            home: Arc::clone(self),
        });
        locked(&self.all).insert(id, Arc::downgrade(&session));
        Ok(session)
    }

    /// Revokes a lease that nobody renews any more, as long as it may be there.
    async fn revoke_in_time(&self, lease: Granted) {
        let gone_by = Clock::Suspend.now() + lease.ttl;
        while revoke(&self.cluster, lease.id).await.is_err() && Clock::Suspend.now() < gone_by && !self.closing.is_cancelled() {
            tokio::time::sleep(REVOKE_PAUSE).await;
        }
    }

    /// Revokes a lease that a request may still grant: now, or when that request cannot take effect any more.
    async fn revoke_for_sure(&self, id: i64) {
        let late_until = Clock::Suspend.now() + LATE_REQUEST;
        if matches!(revoke(&self.cluster, id).await, Ok(true)) {
            return;
        }
        tokio::select! {
            () = Clock::Suspend.sleep_until(late_until) => {
                let _ = revoke(&self.cluster, id).await;
            }
            // Nobody waits this long at a shutdown: a lease without entries runs out by itself.
            () = self.closing.cancelled() => {}
        }
    }
}

fn already_exists(failure: &Failure) -> bool {
    failure.error.to_string().contains("lease already exists")
}

fn seconds_of(ttl: i64) -> Result<Duration, LockError> {
    match u64::try_from(ttl) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(LockError::new(ErrorKind::Protocol, format!("the server granted a lease of {ttl} seconds"))),
    }
}

/// Extends a lease by its TTL.
///
/// A stream per renewal: one in a third of a TTL, and none that can hang unnoticed between two of them.
async fn renew(cluster: &Cluster, id: i64, time: Duration) -> Result<(), Failure> {
    cluster
        .call_within(time, |client| {
            let mut leases = client.lease_client();
            // Waits for the server's answer; a lease that is gone is an error.
            async move { leases.keep_alive(id).await.map(drop) }
        })
        .await
}

async fn granted_ttl(cluster: &Cluster, id: i64) -> Result<Duration, LockError> {
    let answer = cluster.call(|client| {
        let mut leases = client.lease_client();
        async move { leases.time_to_live(id, None).await }
    });
    seconds_of(answer.await.map_err(|failure| failure.error)?.granted_ttl())
}

/// Renews leases for the keeper.
#[derive(Debug)]
struct LeaseRenewer {
    cluster: Arc<Cluster>,
}

/// A lease as the store granted it.
#[derive(Clone, Copy, Debug)]
struct Granted {
    id: i64,
    ttl: Duration,
}

#[async_trait]
impl Renewer for LeaseRenewer {
    type Item = Granted;

    async fn renew(&self, batch: &[Arc<Granted>]) -> Vec<RenewOutcome> {
        futures_util::future::join_all(batch.iter().map(|lease| self.renew_one(**lease))).await
    }
}

impl LeaseRenewer {
    async fn renew_one(&self, lease: Granted) -> RenewOutcome {
        // The keeper waits no longer, so that the next renewal counts from a later instant.
        match renew(&self.cluster, lease.id, lease.ttl / 3).await {
            Ok(()) => RenewOutcome::Renewed(lease.ttl),
            Err(failure) if failure.lease_gone => RenewOutcome::NotHeld,
            Err(failure) => RenewOutcome::Failed(failure.error.during(Operation::Renew)),
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::ConnectOptions;

    use super::*;
    use crate::cluster::Times;

    const TTL: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_store_that_goes_back_once_more_makes_nobody_wait_less() {
        let (tasks, times) = (Tasks::current(), Times { request: Duration::from_secs(6) });
        let cluster = Cluster::new(vec!["127.0.0.1:1".into()], &ConnectOptions::new(), times, &tasks);
        let sessions = Sessions::new(Arc::new(cluster), tasks, CancellationToken::new(), TTL);
        *locked(&sessions.home.unsettled_until) = Some(Clock::Suspend.now() + TTL * 3);
        sessions.abandon();
        assert!(sessions.unsettled().unwrap() > TTL * 2);
    }
}
