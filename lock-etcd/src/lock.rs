use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, TxnOp};
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, FencingToken, LockError, LockGuard, LockInfo, LockName, Operation, OwnerId,
    Terms,
    backend::{Patience, bounded},
};

use crate::{
    BACKEND,
    batch::{self, Company},
    capabilities,
    claim::{Glance, enqueue, enqueue_if_free},
    cluster::kv,
    config::EtcdLockBuilder,
    core::Core,
    entry::hold,
    keys::Prefix,
    listing::{Listing, is_revision_gone},
    note::Note,
    queue::Verdict,
    view::{Seen, Waiter},
};

/// Locks in etcd.
///
/// Clones share the connection, the session and the watches. Dropping the last clone while guards are live leaves them
/// valid; when they are gone too, the session's lease is revoked.
#[derive(Clone)]
pub struct EtcdLock(pub(crate) Arc<Core>);

impl EtcdLock {
    /// Configures a connection.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), lock_core::LockError> {
    /// use lock_core::DistributedLockExt;
    /// use lock_etcd::EtcdLock;
    /// use std::time::Duration;
    ///
    /// let locks = EtcdLock::builder(["127.0.0.1:2379"]).with_ttl(Duration::from_secs(10)).connect().await?;
    /// locks.acquire("orders").await?.release().await
    /// # }
    /// ```
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdLockBuilder {
        EtcdLockBuilder::new(endpoints.into_iter().map(Into::into).collect())
    }

    /// Guards, queue views, leases and background tasks that this client has: returns to its baseline when nothing is
    /// held or waited for, and to zero after [`shutdown`](DistributedLock::shutdown). For leak checks.
    #[must_use]
    pub fn residue(&self) -> usize {
        self.0.residue()
    }

    async fn acquire(&self, name: &LockName, terms: &Terms, patience: &Arc<Patience>) -> Result<LockGuard, LockError> {
        let asked = Arc::new((name.clone(), terms.clone()));
        let attempt = || {
            let (locks, asked, patience) = (self.clone(), Arc::clone(&asked), Arc::clone(patience));
            async move { locks.wait(&asked.0, &asked.1, &patience).await }
        };
        self.0.attended.run(terms.ttl, attempt).await
    }

    async fn try_acquire(&self, name: &LockName, terms: &Terms) -> Result<Option<LockGuard>, LockError> {
        let asked = Arc::new((name.clone(), terms.clone()));
        let attempt = || {
            let (locks, asked) = (self.clone(), Arc::clone(&asked));
            async move { locks.try_once(&asked.0, &asked.1).await }
        };
        self.0.attended.run(terms.ttl, attempt).await
    }

    async fn wait(&self, name: &LockName, terms: &Terms, patience: &Patience) -> Result<LockGuard, LockError> {
        let history = self.0.cluster.history();
        let known = history.known();
        loop {
            match self.queue(name, terms, patience).await {
                Ok(Some(guard)) => return Ok(guard),
                // The entry or its lease was lost while it waited. The wait goes on with a new entry.
                Ok(None) => {}
                // No outage to sit out: whoever asks for a lock is to know.
                Err(failure) if !history.continues(known) => return Err(failure),
                Err(failure) => {
                    patience.failed(failure)?;
                    tokio::time::sleep(OUTAGE_PAUSE.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                }
            }
        }
    }

    async fn queue(&self, name: &LockName, terms: &Terms, patience: &Patience) -> Result<Option<LockGuard>, LockError> {
        let core = &self.0;
        core.sessions.settled().await;
        let session = core.sessions.session(terms).await?;
        let look = core.views.look(name);
        let mut claim = match enqueue(core, Arc::clone(&session), name, terms, look).await {
            Err(error) if error.kind() == ErrorKind::Lost => return Ok(None),
            claim => claim?,
        };
        patience.answered();
        let seen = match std::mem::replace(&mut claim.glance, Glance::None) {
            Glance::Owner { revision } => return hold(claim, revision, terms).await,
            Glance::Near(snapshot) => {
                if let Some((key, created)) = snapshot.entries.iter().min_by_key(|(_, created)| *created) {
                    patience.held_by(&claim.entry.prefix.owner(key, *created), None);
                }
                Seen::All(snapshot)
            }
            Glance::Deep { older } => Seen::Far { older },
            Glance::None => Seen::None,
        };
        let mut waiter = Waiting { waiter: core.views.join(name, &claim.entry, seen), patience };
        let verdict = tokio::select! {
            // A store that went back ends both, and the verdict says why.
            biased;
            verdict = waiter.waiter.verdict() => verdict?,
            () = session.lease().ended().cancelled() => return Ok(None),
        };
        // Before the entry's key may be used again, for waiters are known by their keys.
        drop(waiter);
        match verdict {
            Verdict::Granted { revision } => hold(claim, revision, terms).await,
            Verdict::Evicted => {
                claim.gone();
                Ok(None)
            }
        }
    }

    /// An acquire that had to wait because the store went back did not meet contention.
    fn explain(&self, error: LockError) -> LockError {
        match self.ensure_settled() {
            Err(unsettled) if error.kind() == ErrorKind::TimedOut => unsettled,
            _ => error,
        }
    }

    /// Whether locks can be taken, or the store has gone back so lately that guards of before may be valid.
    fn ensure_settled(&self) -> Result<(), LockError> {
        let Some(left) = self.0.sessions.unsettled() else { return Ok(()) };
        let message = format!("the store went back; guards of before may be valid for another {left:?}, and until then no lock is taken");
        Err(LockError::new(ErrorKind::Unavailable, message))
    }

    async fn try_once(&self, name: &LockName, terms: &Terms) -> Result<Option<LockGuard>, LockError> {
        loop {
            self.ensure_settled()?;
            let session = self.0.sessions.session(terms).await?;
            let claim = match enqueue_if_free(&self.0, session, name, terms).await {
                Err(error) if error.kind() == ErrorKind::Lost => continue,
                claim => claim?,
            };
            let Some(claim) = claim else { return Ok(None) };
            let owned_at = claim.entry.created;
            if let Some(guard) = hold(claim, owned_at, terms).await? {
                return Ok(Some(guard));
            }
        }
    }

    async fn list(&self, prefix: &Prefix) -> Result<Listing, LockError> {
        Listing::read(&self.0.cluster, prefix, None).await.map_err(|failure| failure.error)
    }

    async fn look(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let prefix = self.0.prefix(name);
        let listing = self.list(&prefix).await?;
        let Some(holder) = listing.first() else { return Ok(None) };
        let entries = listing.entries.iter().filter(|entry| prefix.stranger(entry).is_none()).count() as u64;
        let (mut info, waiters) = match prefix.stranger(holder) {
            Some(stranger) => (LockInfo::new(OwnerId::new(stranger)), entries),
            None => (self.holder(&prefix, holder, listing.revision).await?, entries - 1),
        };
        info.waiters = Some(waiters);
        info.expires_in = self.expiry(holder.lease()).await?;
        Ok(Some(info))
    }

    async fn holder(&self, prefix: &Prefix, holder: &KeyValue, revision: i64) -> Result<LockInfo, LockError> {
        let note = self.note(holder, revision).await?;
        let mut info = LockInfo::new(prefix.owner(&String::from_utf8_lossy(holder.key()), holder.create_revision()));
        info.token = match note.token() {
            Some(token) => Some(token),
            None => self.token_of(prefix, holder).await,
        };
        info.since = note.since();
        info.metadata = note.into_metadata();
        Ok(info)
    }

    /// What an entry said at a revision; nothing if that has been compacted.
    async fn note(&self, entry: &KeyValue, revision: i64) -> Result<Note, LockError> {
        let answer = self.0.cluster.call(|etcd| {
            let (mut kv, key) = (kv(etcd), entry.key().to_vec());
            async move { kv.get(key, Some(GetOptions::new().with_revision(revision))).await }
        });
        match answer.await {
            Ok(found) => Ok(found.kvs().first().map(|kv| Note::decode(kv.value())).unwrap_or_default()),
            Err(failure) if is_revision_gone(&failure) => Ok(Note::default()),
            Err(failure) => Err(failure.error),
        }
    }

    /// The token of a holder that wrote none: if it was alone when it was created, that is its token. Else it waited,
    /// and only itself knows since when it owns the lock.
    async fn token_of(&self, prefix: &Prefix, holder: &KeyValue) -> Option<FencingToken> {
        let created = holder.create_revision();
        // A revision that has been compacted tells nothing.
        let listing = Listing::read(&self.0.cluster, prefix, Some(created)).await.ok()?;
        (listing.entries.len() == 1).then(|| FencingToken::new(created.unsigned_abs()))
    }

    async fn expiry(&self, lease: i64) -> Result<Option<Duration>, LockError> {
        if lease == 0 {
            return Ok(None);
        }
        let answer = self.0.cluster.call(|etcd| {
            let mut leases = etcd.lease_client();
            async move { leases.time_to_live(lease, None).await }
        });
        let left = answer.await.map_err(|failure| failure.error)?.ttl();
        Ok(u64::try_from(left).ok().map(Duration::from_secs))
    }

    async fn force(&self, name: &LockName) -> Result<bool, LockError> {
        let prefix = self.0.prefix(name);
        let listing = self.list(&prefix).await?;
        let Some(holder) = listing.first() else { return Ok(false) };
        if let Some(stranger) = prefix.stranger(holder) {
            let message = format!("the lock is blocked by {stranger}; nothing was removed: remove it if nobody needs it");
            return Err(LockError::new(ErrorKind::Protocol, message));
        }
        let same = Compare::create_revision(holder.key(), CompareOp::Equal, holder.create_revision());
        let then = vec![TxnOp::delete(holder.key(), None)];
        // A holder that went by itself in between was there to be released all the same.
        self.0
            .txn(&batch::Request { when: same, then, otherwise: Vec::new(), company: Company::None, expects_others: false })
            .await
            .map_err(|failure| failure.error)?;
        Ok(true)
    }
}

/// A wait that names the holder if it ends in vain.
struct Waiting<'a> {
    waiter: Waiter,
    patience: &'a Patience,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(holder) = self.waiter.holder() {
            self.patience.held_by(&holder, None);
        }
    }
}

/// After all the attempts of one request.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for EtcdLock {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        let context = |error: LockError| error.during(Operation::Acquire).on(BACKEND).of(name);
        let terms = options.resolve(&capabilities(), self.0.default_ttl).map_err(context)?;
        let cluster = &self.0.cluster;
        let patience = Arc::new(Patience::new(Arc::clone(cluster.contact()), &terms, cluster.request_limit()));
        let outcome = bounded(&self.0.holds, Some(&patience), self.acquire(name, &terms, &patience)).await;
        outcome.map_err(|error| self.explain(error)).map_err(context)
    }

    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        let context = |error: LockError| error.during(Operation::TryAcquire).on(BACKEND).of(name);
        let terms = options.resolve(&capabilities(), self.0.default_ttl).map_err(context)?;
        bounded(&self.0.holds, None, self.try_acquire(name, &terms)).await.map_err(context)
    }

    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let context = |error: LockError| error.during(Operation::Inspect).on(BACKEND).of(name);
        bounded(&self.0.holds, None, self.look(name)).await.map_err(context)
    }

    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        let context = |error: LockError| error.during(Operation::ForceRelease).on(BACKEND).of(name);
        bounded(&self.0.holds, None, self.force(name)).await.map_err(context)
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.0.shutdown().await
    }
}

impl fmt::Debug for EtcdLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
