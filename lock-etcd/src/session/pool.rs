use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lock_core::{
    ErrorKind, LockError, LossReason, Terms,
    backend::{Clock, LeaseKeeper, Moment, Signal, Tasks, locked},
};

use super::{
    grants::{Grants, SessionKind},
    lease::LeaseRenewer,
    shared_lease::{InUse, Session, SessionContext},
};
use crate::{
    restored_entries::{self, CHECK_PERIOD},
    transport::Cluster,
};

/// The sessions of one client: one for each TTL, and one for each acquisition whose lease must end
/// by itself.
#[derive(Debug)]
pub(crate) struct Sessions {
    context: Arc<SessionContext>,
    default_ttl: Duration,
    in_use: Arc<Mutex<InUse>>,
    grants: Grants,
}

impl Sessions {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        tasks: Tasks,
        closing: Signal,
        default_ttl: Duration,
    ) -> Self {
        let renewer = LeaseRenewer {
            cluster: Arc::clone(&cluster),
        };
        let in_use = Arc::default();
        let context = SessionContext {
            cluster,
            keeper: LeaseKeeper::new(Clock::Suspend, renewer, tasks.apart()),
            tasks,
            closing,
            in_use: Arc::downgrade(&in_use),
            all: Mutex::default(),
            blocked_until: Mutex::default(),
        };
        Self {
            context: Arc::new(context),
            default_ttl,
            in_use,
            grants: Grants::default(),
        }
    }

    /// Tells whether an acquisition needs its own lease, because it is not renewed like the others.
    pub(crate) fn needs_own(terms: &Terms) -> bool {
        !terms.renew || terms.max_hold.is_some()
    }

    /// Returns a live session to acquire with.
    ///
    /// # Errors
    ///
    /// Those of the store, if a lease must be granted.
    pub(crate) async fn session(&self, terms: &Terms) -> Result<Arc<Session>, LockError> {
        let kind = SessionKind {
            ttl: terms.ttl,
            shared: !Self::needs_own(terms),
        };
        loop {
            if let Some(session) = self.shared(kind) {
                return Ok(session);
            }
            let session = self.grants.session(&self.context, kind, terms).await?;
            if !kind.shared {
                return Ok(session);
            }
            if let Some(shared) = self.share(kind.ttl, &session)? {
                return Ok(shared);
            }
        }
    }

    fn shared(&self, kind: SessionKind) -> Option<Arc<Session>> {
        let in_use = locked(&self.in_use);
        in_use
            .by_ttl
            .get(&kind.ttl)
            .filter(|_| kind.shared)?
            .upgrade()
            .filter(|session| session.is_alive() && session.is_current())
    }

    /// Makes a session the one for its TTL, unless it has been retired, and returns that one.
    fn share(
        &self,
        ttl: Duration,
        session: &Arc<Session>,
    ) -> Result<Option<Arc<Session>>, LockError> {
        let mut in_use = locked(&self.in_use);
        // A shutdown that is not seen here is still to take the sessions, this one included.
        if self.context.closing.has_fired() {
            return Err(LockError::new(
                ErrorKind::Shutdown,
                "this client has been shut down; connect again",
            ));
        }
        if in_use.is_retired(session) {
            return Ok(None);
        }
        // A caller that saw neither the grant of another nor its session has had a second granted.
        let other = in_use.by_ttl.get(&ttl).and_then(Weak::upgrade);
        if let Some(other) = other.filter(|other| other.is_alive() && other.is_current()) {
            return Ok(Some(other));
        }
        in_use
            .by_ttl
            .retain(|_, session| session.strong_count() > 0);
        in_use.by_ttl.insert(ttl, Arc::downgrade(session));
        if ttl == self.default_ttl {
            in_use.default = Some(Arc::clone(session));
        }
        Ok(Some(Arc::clone(session)))
    }

    /// Ends all sessions, and waits until their leases are revoked.
    pub(crate) async fn close(&self) {
        self.grants.clear();
        let sessions = self.context.sessions();
        let closed = std::mem::take(&mut *locked(&self.in_use));
        drop(closed);
        for session in &sessions {
            session.lose(LossReason::Shutdown);
        }
        futures_util::future::join_all(sessions.iter().map(|session| session.end())).await;
    }

    /// Ends all sessions of a store that went back. Their leases, which may have come back with
    /// removed entries, are not renewed any more, and are revoked. No lock is taken for a while,
    /// see [`unblocked`](Self::unblocked).
    pub(crate) fn abandon(&self) {
        let sessions = self.context.sessions();
        let longest = sessions
            .iter()
            .map(|session| session.ttl())
            .max()
            .unwrap_or_default()
            .max(self.default_ttl);
        let until = Some(Clock::Suspend.now() + longest);
        let mut blocked_until = locked(&self.context.blocked_until);
        // Before an earlier return there may have been sessions with a longer TTL.
        *blocked_until = until.max(*blocked_until);
        drop(blocked_until);
        for session in sessions {
            session.lose(LossReason::Removed);
            let context = Arc::clone(&self.context);
            // After that time it has run out, because it is not renewed.
            self.context
                .tasks
                .spawn(async move { context.revoke_in_time(session.id(), session.ttl()).await });
        }
    }

    /// Looks periodically for removed entries that are back, in all sessions that may outlive their
    /// entries.
    pub(crate) fn check_for_restored_entries(
        &self,
        namespace: String,
    ) -> impl Future<Output = ()> + Send + use<> {
        let cluster = Arc::clone(&self.context.cluster);
        let in_use = Arc::clone(&self.in_use);
        async move {
            loop {
                tokio::time::sleep(CHECK_PERIOD).await;
                let sessions = locked(&in_use).all();
                for session in sessions
                    .iter()
                    .filter_map(Weak::upgrade)
                    .filter(|session| session.is_alive())
                {
                    restored_entries::check(&cluster, &namespace, session.id(), session.numbers())
                        .await;
                }
            }
        }
    }

    /// The instant until which no lock is taken after the store went back. As long as the longest
    /// TTL of this client, guards may be valid that were granted before by clients which the store
    /// cannot tell. The locks that they hold are free in the store, and a new guard might even get
    /// the same token.
    pub(crate) fn blocked_until(&self) -> Option<Moment> {
        let mut until = locked(&self.context.blocked_until);
        *until = until.filter(|until| *until > Clock::Suspend.now());
        *until
    }

    /// Waits until no such guard can be valid any more.
    pub(crate) async fn unblocked(&self) {
        while let Some(until) = self.blocked_until() {
            Clock::Suspend.sleep_until(until).await;
        }
    }

    /// The number of leases that are kept alive.
    pub(crate) fn registered(&self) -> usize {
        self.context.keeper.registered()
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::ConnectOptions;

    use super::*;
    use crate::transport::Times;

    const TTL: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_second_return_of_the_store_does_not_shorten_the_wait() {
        let tasks = Tasks::current();
        let times = Times {
            request: Duration::from_secs(6),
        };
        let cluster = Cluster::new(
            vec!["127.0.0.1:1".into()],
            &ConnectOptions::new(),
            times,
            &tasks,
        );
        let sessions = Sessions::new(Arc::new(cluster), tasks, Signal::new(), TTL);
        *locked(&sessions.context.blocked_until) = Some(Clock::Suspend.now() + TTL * 3);
        sessions.abandon();
        assert!(sessions.blocked_until().unwrap() > Clock::Suspend.now() + TTL * 2);
    }
}
