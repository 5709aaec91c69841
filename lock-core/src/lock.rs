use std::{fmt::Debug, future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;

use crate::{
    AcquireOptions, Capabilities, ErrorKind, LockError, LockGuard, LockHolder, LockInfo, LockList,
    LockName, LockWatch, Operation, OwnerId,
};

/// A store of named locks: one trait, implemented once per backend and once per layer, used as
/// `Arc<dyn DistributedLock>`.
///
/// These methods are for implementors. Callers use those of
/// [`DistributedLockExt`](crate::DistributedLockExt), which take a name as any text and have the
/// shorter names. A method with a default body is optional: a backend without it says so in its
/// [`Capabilities`]. A layer must not rely on the default bodies, which do not ask the lock below:
/// it forwards what it does not change with [`forward_lock!`](crate::forward_lock), and has
/// `#[deny(clippy::missing_trait_methods)]` find what it forgot.
///
/// # Cancel safety
///
/// Every method may be dropped at any await point: an entry that was made in the store on the way
/// is removed in the background, or ends with its lease.
#[async_trait]
pub trait DistributedLock: Debug + Send + Sync + 'static {
    /// Capabilities of this backend. Needs no connection.
    fn capabilities(&self) -> Capabilities;

    /// Waits until the lock is free and takes it.
    ///
    /// An outage of the store does not end the wait as long as the place in the queue may still be
    /// good: until the store has not answered for one TTL, or for as long as one request may take
    /// if that is more. (Redis with sentinels or as a cluster: a minute at least, because a
    /// failover takes time.) After a shorter outage the wait goes on, at the end of the queue if
    /// the place has been lost.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](crate::ErrorKind::TimedOut) when [`AcquireOptions::with_timeout`] has passed
    /// and the lock was held by somebody else. [`Unavailable`](crate::ErrorKind::Unavailable), with
    /// the last failure as its cause, when the store did not answer: an outage never looks like
    /// contention. [`InvalidOptions`](crate::ErrorKind::InvalidOptions) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for options that the backend cannot honour,
    /// and other refusals of the store, at once. After an error nothing is held: a request that may
    /// have taken effect is undone in the background.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue. A lock that had just been granted is
    /// released.
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError>;

    /// Takes the lock if it is free; `None` if somebody holds it, or, where grants are
    /// [FIFO](Capabilities::fifo), waits for it. Never waits for a holder, and never leaves an
    /// entry in a queue; for the store's answer it waits as long as the backend's timeouts allow.
    ///
    /// # Errors
    ///
    /// As [`acquire_named`](Self::acquire_named), without `TimedOut`; `Unavailable` when the store
    /// has not answered for as long as a request may take.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire_named`](Self::acquire_named).
    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError>;

    /// Tells who holds the lock; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) without [`Capabilities::inspect`]; errors of the
    /// store.
    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        Err(unsupported(&self.capabilities(), Operation::Inspect).of(name))
    }

    /// Takes the lock away from its holder, or only from this one: an operator's tool. The old
    /// guard is lost, the next waiter is granted. Returns the holders that it has removed; none if
    /// nobody held the lock, or only somebody else did.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) without [`Capabilities::force_release`]; errors of
    /// the store, also where something other than a lock's entry is in the way, which is not
    /// removed.
    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let _ = only;
        Err(unsupported(&self.capabilities(), Operation::ForceRelease).of(name))
    }

    /// Tells who holds the lock, now and whenever that changes; see [`LockWatch`].
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) without [`Capabilities::watch`]; errors of the
    /// store.
    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        Err(unsupported(&self.capabilities(), Operation::Watch).of(name))
    }

    /// Returns all locks whose name begins with `prefix` and that somebody holds; see [`LockList`].
    /// An operator's tool: the store may have to look at everything it has.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) without [`Capabilities::list`]; errors of the store.
    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let _ = prefix;
        Err(unsupported(&self.capabilities(), Operation::List))
    }

    /// Ends this client: its guards are lost and released, its waiters fail, and later calls report
    /// [`Shutdown`](crate::ErrorKind::Shutdown). Idempotent; other clients of the store are not
    /// touched. If the store cannot be reached it gives up after some ten seconds
    /// ([`SHUTDOWN_LIMIT`](crate::backend::SHUTDOWN_LIMIT)), or when the guards would have ended
    /// anyway.
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

fn unsupported(capabilities: &Capabilities, operation: Operation) -> LockError {
    let backend = capabilities.backend.clone();
    LockError::new(
        ErrorKind::Unsupported,
        format!("{backend} cannot {operation}"),
    )
    .during(operation)
    .on(backend)
}

/// Return type of an `async fn` of [`DistributedLock`], written out.
pub type Answer<'f, T> = Pin<Box<dyn Future<Output = Result<T, LockError>> + Send + 'f>>;

/// Implements those methods of [`DistributedLock`] that a layer does not change, by a call of the
/// same method of an inner lock, without another box: `forward_lock!(field: method, method, ...);`
/// in the `impl`, or `forward_lock!(getter(): method, ...);`.
///
/// ```
/// use async_trait::async_trait;
/// use lock_core::{AcquireOptions, Capabilities, DistributedLock, LockError, LockGuard, LockName, forward_lock};
/// use std::sync::Arc;
///
/// /// Counts attempts.
/// #[derive(Debug)]
/// struct Counting {
///     inner: Arc<dyn DistributedLock>,
///     attempts: std::sync::atomic::AtomicU64,
/// }
///
/// #[async_trait]
/// #[deny(clippy::missing_trait_methods)]
/// impl DistributedLock for Counting {
///     async fn acquire_named(&self, name: &LockName, options: AcquireOptions) -> Result<LockGuard, LockError> {
///         self.attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///         self.inner.acquire_named(name, options).await
///     }
///
///     forward_lock!(inner: capabilities, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
/// }
/// ```
#[macro_export]
macro_rules! forward_lock {
    ($field:ident: $($method:ident),+ $(,)?) => { $($crate::forward_lock!(@ [$field] $method);)+ };
    ($getter:ident(): $($method:ident),+ $(,)?) => { $($crate::forward_lock!(@ [$getter()] $method);)+ };
    (@ [$($inner:tt)+] capabilities) => {
        fn capabilities(&self) -> $crate::Capabilities {
            self.$($inner)+.capabilities()
        }
    };
    (@ [$($inner:tt)+] acquire_named) => {
        fn acquire_named<'s, 'n, 'f>(
            &'s self,
            name: &'n $crate::LockName,
            options: $crate::AcquireOptions,
        ) -> $crate::Answer<'f, $crate::LockGuard>
        where
            's: 'f,
            'n: 'f,
            Self: 'f,
        {
            self.$($inner)+.acquire_named(name, options)
        }
    };
    (@ [$($inner:tt)+] try_acquire_named) => {
        fn try_acquire_named<'s, 'n, 'f>(
            &'s self,
            name: &'n $crate::LockName,
            options: $crate::AcquireOptions,
        ) -> $crate::Answer<'f, ::core::option::Option<$crate::LockGuard>>
        where
            's: 'f,
            'n: 'f,
            Self: 'f,
        {
            self.$($inner)+.try_acquire_named(name, options)
        }
    };
    (@ [$($inner:tt)+] inspect_named) => {
        fn inspect_named<'s, 'n, 'f>(
            &'s self,
            name: &'n $crate::LockName,
        ) -> $crate::Answer<'f, ::core::option::Option<$crate::LockInfo>>
        where
            's: 'f,
            'n: 'f,
            Self: 'f,
        {
            self.$($inner)+.inspect_named(name)
        }
    };
    (@ [$($inner:tt)+] force_release_named) => {
        fn force_release_named<'s, 'n, 'o, 'f>(
            &'s self,
            name: &'n $crate::LockName,
            only: ::core::option::Option<&'o $crate::OwnerId>,
        ) -> $crate::Answer<'f, ::std::vec::Vec<$crate::LockHolder>>
        where
            's: 'f,
            'n: 'f,
            'o: 'f,
            Self: 'f,
        {
            self.$($inner)+.force_release_named(name, only)
        }
    };
    (@ [$($inner:tt)+] watch_named) => {
        fn watch_named<'s, 'n, 'f>(&'s self, name: &'n $crate::LockName) -> $crate::Answer<'f, $crate::LockWatch>
        where
            's: 'f,
            'n: 'f,
            Self: 'f,
        {
            self.$($inner)+.watch_named(name)
        }
    };
    (@ [$($inner:tt)+] list) => {
        fn list<'s, 'p, 'f>(&'s self, prefix: &'p str) -> $crate::Answer<'f, $crate::LockList>
        where
            's: 'f,
            'p: 'f,
            Self: 'f,
        {
            self.$($inner)+.list(prefix)
        }
    };
    (@ [$($inner:tt)+] shutdown) => {
        fn shutdown<'s, 'f>(&'s self) -> $crate::Answer<'f, ()>
        where
            's: 'f,
            Self: 'f,
        {
            self.$($inner)+.shutdown()
        }
    };
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<L: DistributedLock + ?Sized> DistributedLock for Arc<L> {
    forward_lock!(as_ref(): capabilities, acquire_named, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
}
