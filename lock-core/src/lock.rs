use std::{fmt::Debug, pin::Pin, sync::Arc};

use async_trait::async_trait;

use crate::{AcquireOptions, Capabilities, LockError, LockGuard, LockInfo, LockName};

/// A store of named locks: one trait, implemented once per backend and once per layer, used as
/// `Arc<dyn DistributedLock>`.
///
/// Few methods, all required, for implementors; callers find shorter ones in
/// [`DistributedLockExt`](crate::DistributedLockExt).
///
/// # Cancel safety
///
/// Every method may be dropped at any await point: an entry that was made in the store on the way is removed in the
/// background, or ends with its lease.
#[async_trait]
pub trait DistributedLock: Debug + Send + Sync + 'static {
    /// What this backend can do. Needs no connection.
    fn capabilities(&self) -> Capabilities;

    /// Waits until the lock is free and takes it.
    ///
    /// An outage of the store does not end the wait as long as the place in the queue may still be good: until the store
    /// has not answered for one TTL, or for as long as one request may take if that is more. (Redis with sentinels or as a
    /// cluster: a minute at least, for a failover takes its time.) After a shorter outage the wait goes on, at the end of the
    /// queue if the place has been lost.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::ErrorKind::TimedOut) when [`AcquireOptions::with_timeout`] has passed and the lock was held by
    /// somebody else. [`Unavailable`](crate::ErrorKind::Unavailable), with the last failure as its cause, when the store
    /// did not answer: an outage never looks like contention. [`InvalidOptions`](crate::ErrorKind::InvalidOptions) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for options that the backend cannot honour, and what else the store
    /// refuses, at once. After an error nothing is held: what may have taken effect is undone in the background.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue. A lock that had just been granted is released.
    async fn acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError>;

    /// Takes the lock if it is free; `None` if somebody holds it, or, where grants are [FIFO](Capabilities::fifo), waits
    /// for it. Never waits for a holder, and never leaves an entry in a queue; for the store's answer it waits as long as
    /// the backend's timeouts allow.
    ///
    /// # Errors
    ///
    /// As [`acquire_with`](Self::acquire_with), without `TimedOut`; `Unavailable` when the store has not answered for as long
    /// as a request may take.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_with`](Self::acquire_with).
    async fn try_acquire_with(&self, name: &LockName, options: AcquireOptions) -> Result<Option<LockGuard>, LockError>;

    /// Tells who holds the lock; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without [`Capabilities::inspect`]; errors of the store.
    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError>;

    /// Takes the lock away from its holder, whoever that is: an operator's tool. The old guard is lost, the next
    /// waiter is granted. Says whether there was a holder.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without [`Capabilities::force_release`]; errors of the store.
    async fn force_release(&self, name: &LockName) -> Result<bool, LockError>;

    /// Ends this client: its guards are lost and released, its waiters fail, and later calls report
    /// [`Shutdown`](crate::ErrorKind::Shutdown). Idempotent; other clients of the store are not touched. If the store
    /// cannot be reached it gives up after some ten seconds ([`SHUTDOWN_LIMIT`](crate::backend::SHUTDOWN_LIMIT)), or
    /// when the guards would have ended anyway.
    ///
    /// # Errors
    ///
    /// Those of the store, if something could not be released; it then ends with its lease.
    ///
    /// # Cancel safety
    ///
    /// The client stays shut down; releases go on in the background.
    async fn shutdown(&self) -> Result<(), LockError>;
}

type Answer<'f, T> = Pin<Box<dyn Future<Output = Result<T, LockError>> + Send + 'f>>;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<L: DistributedLock + ?Sized> DistributedLock for Arc<L> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    // Written out, so that the inner future need not be boxed a second time.
    fn acquire_with<'s, 'n, 'f>(&'s self, name: &'n LockName, options: AcquireOptions) -> Answer<'f, LockGuard>
    where
        's: 'f,
        'n: 'f,
        Self: 'f,
    {
        (**self).acquire_with(name, options)
    }

    fn try_acquire_with<'s, 'n, 'f>(&'s self, name: &'n LockName, options: AcquireOptions) -> Answer<'f, Option<LockGuard>>
    where
        's: 'f,
        'n: 'f,
        Self: 'f,
    {
        (**self).try_acquire_with(name, options)
    }

    async fn inspect(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        (**self).inspect(name).await
    }

    async fn force_release(&self, name: &LockName) -> Result<bool, LockError> {
        (**self).force_release(name).await
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        (**self).shutdown().await
    }
}
