//! Locks for programs without a runtime: the same as everywhere else, with calls that block.
//!
#![cfg_attr(feature = "mem", doc = "```")]
#![cfg_attr(not(feature = "mem"), doc = "```no_run")]
//! use polylock::blocking;
//!
//! # fn main() -> Result<(), polylock::LockError> {
//! let locks = blocking::connect("mem://")?;
//! let guard = locks.acquire("orders/42")?;
//! println!("holding with token {:?}", guard.token());
//! guard.release()?;
//!
//! if let Some(guard) = locks.try_acquire("orders/42")? {
//!     guard.ensure_held()?;
//!     // Dropping the guard releases the lock as well, in the background.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Connections, renewals and releases are on a background thread, so a guard is renewed whatever
//! the program's own threads do. The thread ends with the last clone of the locks and the last
//! guard; that waits for releases that are on their way, for at most half a second
//! ([`EXIT_LIMIT`](crate::backend::EXIT_LIMIT)).
//!
//! Inside a Tokio runtime every call is an error, because it would stop the runtime's thread: use
//! the asynchronous [`connect`](crate::connect) there, and in `spawn_blocking` the same through
//! `Handle::block_on`.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, DistributedLockExt, ErrorKind, FencingToken,
    GuardState, GuardView, LockError, LockGuard, LockHolder, LockInfo, LockName, LockWatch,
    LossReason, Operation, OwnerId,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// Opens the locks behind a URL, as [`connect`](crate::connect) does.
///
/// # Errors
///
/// As [`connect`](crate::connect), and [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
pub fn connect(url: &str) -> Result<Locks, LockError> {
    Locks::open(crate::connect(url))
}

/// Opens the locks behind the URL in the environment variable `LOCK_URL`, as
/// [`from_env`](crate::from_env) does.
///
/// # Errors
///
/// As [`from_env`](crate::from_env), and [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
pub fn from_env() -> Result<Locks, LockError> {
    Locks::open(crate::from_env())
}

/// Opens the locks that a configuration describes.
///
/// # Errors
///
/// As [`LockConfig::connect`](crate::LockConfig::connect), and
/// [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
#[cfg(feature = "serde")]
pub fn connect_config(config: &crate::LockConfig) -> Result<Locks, LockError> {
    Locks::open(config.connect())
}

/// A store of named locks; a clone is the same client.
#[derive(Clone)]
pub struct Locks(Arc<Client>);

struct Client {
    locks: Arc<dyn DistributedLock>,
    background: Background,
}

/// The runtime of a client.
struct Background(Option<Runtime>);

impl Background {
    fn new() -> Result<Self, LockError> {
        refuse_inside_runtime()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("polylock")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| {
            LockError::new(
                ErrorKind::Unavailable,
                "no background thread can be started",
            )
            .caused_by(error)
        })?;
        Ok(Self(Some(runtime)))
    }

    fn run<T>(&self, call: impl Future<Output = Result<T, LockError>>) -> Result<T, LockError> {
        refuse_inside_runtime()?;
        match &self.0 {
            Some(runtime) => runtime.block_on(call),
            None => Err(LockError::new(ErrorKind::Shutdown, "the client has ended")),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take()
            && Handle::try_current().is_ok()
        {
            // Its end may not be waited for there.
            runtime.shutdown_background();
        }
    }
}

fn refuse_inside_runtime() -> Result<(), LockError> {
    match Handle::try_current() {
        Err(_) => Ok(()),
        Ok(_) => Err(LockError::new(
            ErrorKind::Unsupported,
            "polylock::blocking was called inside a Tokio runtime, whose thread it would block; use the asynchronous polylock::connect there, or a thread of your own",
        )),
    }
}

impl Locks {
    fn open(
        connecting: impl Future<Output = Result<Arc<dyn DistributedLock>, LockError>>,
    ) -> Result<Self, LockError> {
        let opened = Background::new().and_then(|background| {
            let locks = background.run(connecting)?;
            Ok(Self(Arc::new(Client { locks, background })))
        });
        opened.map_err(|error| error.during(Operation::Connect))
    }

    fn run<T>(&self, call: impl Future<Output = Result<T, LockError>>) -> Result<T, LockError> {
        self.0.background.run(call)
    }

    fn guard(&self, guard: LockGuard) -> Guard {
        Guard {
            guard,
            locks: self.clone(),
        }
    }

    /// Waits until the lock is free and takes it, with default options.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::acquire`], and [`Unsupported`](ErrorKind::Unsupported) inside a
    /// runtime.
    pub fn acquire<N>(&self, name: N) -> Result<Guard, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        self.acquire_with(name, AcquireOptions::new())
    }

    /// Waits until the lock is free and takes it.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn acquire_with<N>(&self, name: N, options: AcquireOptions) -> Result<Guard, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let guard = self.run(self.0.locks.acquire_with(name, options))?;
        Ok(self.guard(guard))
    }

    /// Waits at most `timeout` for the lock.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::acquire_timeout`], and [`Unsupported`](ErrorKind::Unsupported)
    /// inside a runtime.
    pub fn acquire_timeout<N>(&self, name: N, timeout: Duration) -> Result<Guard, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        self.acquire_with(name, AcquireOptions::new().with_timeout(timeout))
    }

    /// Takes the lock if it is free, without waiting.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::try_acquire`], and [`Unsupported`](ErrorKind::Unsupported) inside a
    /// runtime.
    pub fn try_acquire<N>(&self, name: N) -> Result<Option<Guard>, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        self.try_acquire_with(name, AcquireOptions::new())
    }

    /// As [`try_acquire`](Self::try_acquire), with options.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_with<N>(
        &self,
        name: N,
        options: AcquireOptions,
    ) -> Result<Option<Guard>, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let guard = self.run(self.0.locks.try_acquire_with(name, options))?;
        Ok(guard.map(|guard| self.guard(guard)))
    }

    /// Tells who holds the lock; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::inspect`], and [`Unsupported`](ErrorKind::Unsupported) inside a
    /// runtime.
    pub fn inspect<N>(&self, name: N) -> Result<Option<LockInfo>, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        self.run(self.0.locks.inspect(name))
    }

    /// Tells who holds the lock, now and whenever that changes.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::watch`], and [`Unsupported`](ErrorKind::Unsupported) inside a
    /// runtime.
    pub fn watch<N>(&self, name: N) -> Result<Watch, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let watch = self.run(self.0.locks.watch(name))?;
        Ok(Watch {
            watch,
            locks: self.clone(),
        })
    }

    /// Returns the locks whose name begins with `prefix` and that somebody holds.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::list`], and [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
    pub fn list(&self, prefix: &str) -> Result<Vec<LockInfo>, LockError> {
        self.run(async {
            let mut list = self.0.locks.list(prefix).await?;
            let mut infos = Vec::new();
            while let Some(info) = list.next().await {
                infos.push(info?);
            }
            Ok(infos)
        })
    }

    /// Takes the lock away from this holder, and from no other; `None` if it does not hold it.
    ///
    /// # Errors
    ///
    /// As [`DistributedLockExt::force_release_from`], and [`Unsupported`](ErrorKind::Unsupported)
    /// inside a runtime.
    pub fn force_release_from<N>(
        &self,
        name: N,
        owner: &OwnerId,
    ) -> Result<Option<LockHolder>, LockError>
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        self.run(self.0.locks.force_release_from(name, owner))
    }

    /// Capabilities of the backend.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.0.locks.capabilities()
    }

    /// Ends this client, with all clones: its guards are lost and released.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::shutdown`], and [`Unsupported`](ErrorKind::Unsupported) inside a
    /// runtime.
    pub fn shutdown(&self) -> Result<(), LockError> {
        self.run(self.0.locks.shutdown())
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Locks").field(&self.0.locks).finish()
    }
}

/// A live acquisition: see [`LockGuard`]. Dropping it releases the lock in the background.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard {
    // Dropped before the client, which waits for its release.
    guard: LockGuard,
    locks: Locks,
}

impl Guard {
    /// Name of the lock.
    #[must_use]
    pub fn name(&self) -> &LockName {
        self.guard.name()
    }

    /// This acquisition's id in the store.
    #[must_use]
    pub fn owner(&self) -> &OwnerId {
        self.guard.owner()
    }

    /// The number to send to the protected resource.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.guard.token()
    }

    /// Current state of the lock. Reads a clock, never waits.
    #[must_use]
    pub fn state(&self) -> GuardState {
        self.guard.state()
    }

    /// Shorthand for [`GuardState::Held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Time for which the guard stays valid if no renewal succeeds from now on; zero once lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.guard.remaining()
    }

    /// For use with `?` before each protected step.
    ///
    /// # Errors
    ///
    /// [`Lost`](ErrorKind::Lost) if the lock is not held any more.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.guard.ensure_held()
    }

    /// A view of this guard to hand to other threads; it cannot release the lock.
    #[must_use]
    pub fn view(&self) -> GuardView {
        self.guard.view()
    }

    /// Waits for at most this long until the lock is lost, and says why; `None` if it was not.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
    pub fn lost_within(&self, limit: Duration) -> Result<Option<LossReason>, LockError> {
        let lost = self.guard.lost();
        self.locks
            .run(async { Ok(tokio::time::timeout(limit, lost).await.ok()) })
    }

    /// Renews the lease once, now: see [`LockGuard::extend`].
    ///
    /// # Errors
    ///
    /// As [`LockGuard::extend`], and [`Unsupported`](ErrorKind::Unsupported) inside a runtime.
    pub fn extend(&self) -> Result<(), LockError> {
        self.locks.run(self.guard.extend())
    }

    /// Releases the lock and says whether it was still held.
    ///
    /// # Errors
    ///
    /// As [`LockGuard::release`], and [`Unsupported`](ErrorKind::Unsupported) inside a runtime: the
    /// lock is then released in the background.
    pub fn release(self) -> Result<(), LockError> {
        let Self { guard, locks } = self;
        locks.run(guard.release())
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

/// Holders of a lock, now and whenever they change: see [`LockWatch`]. Each `next` blocks until
/// there is something to tell.
#[must_use = "a watch does nothing unless it is asked"]
#[derive(Debug)]
pub struct Watch {
    watch: LockWatch,
    locks: Locks,
}

impl Iterator for Watch {
    type Item = Result<Option<LockInfo>, LockError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.watch.next();
        match self.locks.run(async { Ok(next.await) }) {
            Ok(item) => item,
            Err(error) => Some(Err(error)),
        }
    }
}
