//! A complete small backend: locks in a directory, among the processes of one machine. Explained in
//! `docs/backend-author.md`.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, Consistency, DistributedLock, ErrorKind, FencingToken, LockError, LockGuard, LockInfo, LockName,
    Operation, OwnerId, Terms, TokenDurability,
    backend::{Clock, Contact, Entry, Grant, Holds, Keeper, Patience, RenewOutcome, Renewer, Tasks, bounded},
};

use crate::table::Table;

/// How long a waiter sleeps between two looks: files do not push.
const POLL: Duration = Duration::from_millis(10);

/// Locks kept in a directory.
#[derive(Debug)]
pub(crate) struct DirLock {
    directory: PathBuf,
    holds: Arc<Holds>,
    keeper: Arc<Keeper<Renewals>>,
}

impl DirLock {
    pub(crate) fn open(directory: PathBuf) -> Self {
        let renewals = Renewals { directory: directory.clone() };
        let holds = Holds::new("dir", Tasks::current());
        Self { directory, holds, keeper: Keeper::new(Clock::Suspend, renewals, Tasks::current()) }
    }

    pub(crate) fn declared() -> Capabilities {
        let mut dir = Capabilities::new("dir", Consistency::Linearizable);
        dir.ttl.min = Duration::from_millis(100);
        dir.fencing = Some(TokenDurability::StoreData);
        dir.inspect = true;
        dir.crash_bound = Duration::from_millis(500);
        dir
    }

    /// How many guards are live and leases kept, for leak checks.
    pub(crate) fn residue(&self) -> usize {
        self.holds.live() + self.holds.tasks().running() + self.keeper.kept()
    }

    fn terms(&self, options: AcquireOptions) -> Result<Terms, LockError> {
        self.holds.ensure_open()?;
        options.resolve(&self.capabilities(), Duration::from_secs(30))
    }

    /// The guard, or who has the lock.
    fn take(&self, name: &LockName, terms: &Terms) -> Result<Result<LockGuard, OwnerId>, LockError> {
        let sent = Clock::Suspend.now();
        let owner = OwnerId::random();
        let taken = Table::with(&self.directory, |table, now| {
            if let Some(holder) = table.held(name.as_str(), now).and_then(|row| row.owner.as_deref()) {
                return Err(OwnerId::new(holder));
            }
            let row = table.row(name.as_str());
            (row.token, row.owner, row.expires) = (row.token + 1, Some(owner.to_string()), now + terms.ttl);
            Ok(FencingToken::new(row.token))
        });
        let token = match taken.map_err(unavailable)? {
            Ok(token) => token,
            Err(holder) => return Ok(Err(holder)),
        };
        let held = Held { directory: self.directory.clone(), name: name.clone(), owner: owner.clone(), ttl: terms.ttl };
        let (lease, keep) = self.keeper.keep(Arc::new(held.clone()), sent, terms.ttl, terms);
        let entry = Arc::new(held);
        Ok(Ok(self.holds.grant(Grant { name: name.clone(), owner, token: Some(token), lease, keep: Some(keep), entry })))
    }

    async fn wait(&self, name: &LockName, terms: &Terms, patience: &Patience) -> Result<LockGuard, LockError> {
        loop {
            patience.asked();
            match self.take(name, terms) {
                Ok(Ok(guard)) => return Ok(guard),
                Ok(Err(holder)) => {
                    patience.answered();
                    patience.held_by(&holder, None);
                }
                Err(failure) => patience.failed(failure)?,
            }
            tokio::time::sleep(POLL.mul_f64(0.5 + rand::random::<f64>())).await;
        }
    }
}

#[async_trait]
impl DistributedLock for DirLock {
    fn capabilities(&self) -> Capabilities {
        Self::declared()
    }

    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
        let acquired = match self.terms(options) {
            Ok(terms) => {
                let patience = Patience::new(Contact::new(Clock::Suspend), &terms, Duration::from_secs(1));
                bounded(&self.holds, Some(&patience), self.wait(name, &terms, &patience)).await
            }
            Err(error) => Err(error),
        };
        acquired.map_err(|error| error.during(Operation::Acquire).on("dir").of(name))
    }

    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError> {
        let taken = self.terms(options).and_then(|terms| self.take(name, &terms));
        taken.map(Result::ok).map_err(|error| error.during(Operation::TryAcquire).on("dir").of(name))
    }

    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let told = self.holds.ensure_open().and_then(|()| {
            Table::with(&self.directory, |table, now| {
                let row = table.held(name.as_str(), now)?;
                let mut info = LockInfo::new(OwnerId::new(row.owner.as_deref()?));
                (info.token, info.expires_in) = (Some(FencingToken::new(row.token)), Some(row.expires - now));
                Some(info)
            })
            .map_err(unavailable)
        });
        told.map_err(|error| error.during(Operation::Inspect).on("dir").of(name))
    }

    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        let refused = LockError::new(ErrorKind::Unsupported, "dir cannot force a release; wait for the TTL");
        Err(refused.during(Operation::ForceRelease).on("dir").of(name))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.holds.shutdown().await
    }
}

/// One acquisition in the table.
#[derive(Clone, Debug)]
struct Held {
    directory: PathBuf,
    name: LockName,
    owner: OwnerId,
    ttl: Duration,
}

#[async_trait]
impl Entry for Held {
    async fn release(&self) -> Result<bool, LockError> {
        let released = Table::with(&self.directory, |table, now| {
            let row = table.held(self.name.as_str(), now).filter(|row| row.owner.as_deref() == Some(self.owner.as_str()));
            // The row stays, for the token's sake.
            row.map(|row| row.owner = None).is_some()
        });
        released.map_err(unavailable)
    }
}

#[derive(Debug)]
struct Renewals {
    directory: PathBuf,
}

#[async_trait]
impl Renewer for Renewals {
    type Item = Held;

    async fn renew(&self, batch: &[Arc<Held>]) -> Vec<RenewOutcome> {
        let renewed = Table::with(&self.directory, |table, now| {
            let renew = |held: &Arc<Held>| match table.held(held.name.as_str(), now) {
                Some(row) if row.owner.as_deref() == Some(held.owner.as_str()) => {
                    row.expires = now + held.ttl;
                    RenewOutcome::Renewed(held.ttl)
                }
                _ => RenewOutcome::NotHeld,
            };
            batch.iter().map(renew).collect()
        });
        renewed.unwrap_or_else(|_| batch.iter().map(|_| RenewOutcome::Failed(unavailable(io::Error::other("unreadable")))).collect())
    }
}

/// A file system that fails half-way may have done what it was asked for.
fn unavailable(error: io::Error) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the lock directory cannot be used").caused_by(error).indeterminate()
}
