//! A complete small backend: locks in a directory, among the processes of one machine. Explained in
//! `docs/backend-author.md`.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, Consistency, DistributedLock, ErrorKind, FencingToken, LockError,
    LockGuard, LockHolder, LockInfo, LockName, Operation, OwnerId, Terms, TokenDurability,
    backend::{
        Clock, Entry, Grant, GuardSet, LeaseKeeper, RenewOutcome, Renewer, StoreHealth, Tasks,
        WaitLimit, bounded,
    },
};

use crate::table::Table;

/// Pause between two looks of a waiter: files do not push.
const POLL: Duration = Duration::from_millis(10);

/// Locks kept in a directory.
#[derive(Debug)]
pub(crate) struct DirLock {
    directory: PathBuf,
    guards: Arc<GuardSet>,
    keeper: Arc<LeaseKeeper<Renewals>>,
}

impl DirLock {
    pub(crate) fn open(directory: PathBuf) -> Self {
        let renewals = Renewals {
            directory: directory.clone(),
        };
        let guards = GuardSet::new("dir", Tasks::current());
        Self {
            directory,
            guards,
            keeper: LeaseKeeper::new(Clock::Suspend, renewals, Tasks::current()),
        }
    }

    pub(crate) fn declared() -> Capabilities {
        let mut dir = Capabilities::new("dir", Consistency::Linearizable);
        dir.ttl.min = Duration::from_millis(100);
        dir.fencing = Some(TokenDurability::StoreData);
        dir.inspect = true;
        dir.crash_bound = Duration::from_millis(500);
        dir
    }

    /// Counts live guards, tasks and leases, for leak checks.
    pub(crate) fn residue(&self) -> usize {
        self.guards.live() + self.guards.tasks().running() + self.keeper.registered()
    }

    fn terms(&self, options: AcquireOptions) -> Result<Terms, LockError> {
        options.resolve(&self.capabilities(), Duration::from_secs(30))
    }

    /// Makes the guard, or tells who has the lock.
    fn take(
        &self,
        name: &LockName,
        terms: &Terms,
    ) -> Result<Result<LockGuard, OwnerId>, LockError> {
        let sent = Clock::Suspend.now();
        let owner = OwnerId::random();
        let taken = Table::with(&self.directory, |table, now| {
            if let Some(holder) = table
                .held(name.as_str(), now)
                .and_then(|row| row.owner.as_deref())
            {
                return Err(OwnerId::new(holder));
            }
            let row = table.row(name.as_str());
            row.token += 1;
            row.owner = Some(owner.to_string());
            row.expires = now + terms.ttl;
            Ok(FencingToken::new(row.token))
        });
        let token = match taken.map_err(unavailable)? {
            Ok(token) => token,
            Err(holder) => return Ok(Err(holder)),
        };
        let entry = DirEntry {
            directory: self.directory.clone(),
            name: name.clone(),
            owner: owner.clone(),
            ttl: terms.ttl,
        };
        let (lease, renewal) =
            self.keeper
                .register(Arc::new(entry.clone()), sent, terms.ttl, terms);
        Ok(Ok(self.guards.grant(
            Grant::new(name.clone(), owner, lease, Arc::new(entry))
                .with_token(token)
                .with_renewal(renewal),
        )))
    }

    async fn wait(
        &self,
        name: &LockName,
        terms: &Terms,
        wait_limit: &WaitLimit,
    ) -> Result<LockGuard, LockError> {
        loop {
            wait_limit.asked();
            match self.take(name, terms) {
                Ok(Ok(guard)) => return Ok(guard),
                Ok(Err(holder)) => {
                    wait_limit.answered();
                    wait_limit.held_by(&holder, None);
                }
                Err(failure) => wait_limit.failed(failure)?,
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

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let acquire = async {
            let terms = self.terms(options)?;
            let health = StoreHealth::new(Clock::Suspend);
            let wait_limit = WaitLimit::new(health, &terms, Duration::from_secs(1));
            let wait = self.wait(name, &terms, &wait_limit);
            bounded(&self.guards, Some(&wait_limit), wait).await
        };
        self.guards.call(Operation::Acquire, name, acquire).await
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let take = async {
            let terms = self.terms(options)?;
            Ok(self.take(name, &terms)?.ok())
        };
        self.guards.call(Operation::TryAcquire, name, take).await
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let look = async {
            let told = Table::with(&self.directory, |table, now| {
                let row = table.held(name.as_str(), now)?;
                let mut holder = LockHolder::new(OwnerId::new(row.owner.as_deref()?));
                holder.token = Some(FencingToken::new(row.token));
                holder.expires_in = Some(row.expires - now);
                Some(LockInfo::new(name.clone(), holder))
            });
            told.map_err(unavailable)
        };
        self.guards.call(Operation::Inspect, name, look).await
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.guards.shutdown().await
    }
}

/// One acquisition in the table.
#[derive(Clone, Debug)]
struct DirEntry {
    directory: PathBuf,
    name: LockName,
    owner: OwnerId,
    ttl: Duration,
}

#[async_trait]
impl Entry for DirEntry {
    async fn release(&self) -> Result<bool, LockError> {
        let released = Table::with(&self.directory, |table, now| {
            let row = table
                .held(self.name.as_str(), now)
                .filter(|row| row.owner.as_deref() == Some(self.owner.as_str()));
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
    type Item = DirEntry;

    async fn renew(&self, batch: &[Arc<DirEntry>]) -> Vec<RenewOutcome> {
        let renewed = Table::with(&self.directory, |table, now| {
            let renew = |entry: &Arc<DirEntry>| match table.held(entry.name.as_str(), now) {
                Some(row) if row.owner.as_deref() == Some(entry.owner.as_str()) => {
                    row.expires = now + entry.ttl;
                    RenewOutcome::Renewed(entry.ttl)
                }
                _ => RenewOutcome::NotHeld,
            };
            batch.iter().map(renew).collect()
        });
        renewed.unwrap_or_else(|_| {
            batch
                .iter()
                .map(|_| RenewOutcome::Failed(unavailable(io::Error::other("unreadable"))))
                .collect()
        })
    }
}

/// A file system that fails half-way may have done what it was asked for.
fn unavailable(error: io::Error) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the lock directory cannot be used")
        .caused_by(error)
        .indeterminate()
}
