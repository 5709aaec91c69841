use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use crate::{
    AcquireOptions, DistributedLock, ErrorKind, GuardState, GuardView, LockError, LockGuard,
    LockHolder, LockInfo, LockName, LockWatch, Operation, OwnerId,
};

/// Methods by which a [`DistributedLock`] is called, whatever implements it.
///
/// Names may be given as `&str`, `&&str`, `String`, `&String`, `Cow<str>`, `Box<str>`, `Arc<str>`,
/// `&LockName` or [`LockName`].
pub trait DistributedLockExt: DistributedLock {
    /// Waits until the lock is free and takes it, with default options.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::DistributedLockExt;
    ///
    /// let guard = locks.acquire("orders/42").await?;
    /// println!("holding with token {:?}", guard.token());
    /// guard.release().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::acquire_named`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_named`].
    fn acquire<N>(&self, name: N) -> impl Future<Output = Result<LockGuard, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Acquire);
        async move { self.acquire_named(&name?, AcquireOptions::new()).await }
    }

    /// Waits until the lock is free and takes it.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    /// use std::time::Duration;
    ///
    /// let options = AcquireOptions::new().with_timeout(Duration::from_secs(2)).with_metadata("host-7");
    /// let guard = locks.acquire_with("orders/42", options).await?;
    /// guard.release().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::acquire_named`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_named`].
    fn acquire_with<N>(
        &self,
        name: N,
        options: AcquireOptions,
    ) -> impl Future<Output = Result<LockGuard, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Acquire);
        async move { self.acquire_named(&name?, options).await }
    }

    /// Waits at most `timeout` for the lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`TimedOut`](crate::ErrorKind::TimedOut): somebody else
    /// held the lock. A store that never answered, or was silent for the last half of the wait, or
    /// for as long as a request may take if that is less, gives
    /// [`Unavailable`](crate::ErrorKind::Unavailable); see [`AcquireOptions::with_timeout`].
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_named`].
    fn acquire_timeout<N>(
        &self,
        name: N,
        timeout: Duration,
    ) -> impl Future<Output = Result<LockGuard, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Acquire);
        async move {
            self.acquire_named(&name?, AcquireOptions::new().with_timeout(timeout))
                .await
        }
    }

    /// Takes the lock if it is free, without waiting.
    ///
    /// Keep the result: a guard that is dropped releases its lock at once. Rust warns of a
    /// statement that throws a guard away, but not of one that throws away an `Option` with a guard
    /// in it, as `locks.try_acquire("a").await?;` does, nor of `let _ = ...`.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::try_acquire_named`], and
    /// [`InvalidName`](crate::ErrorKind::InvalidName).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_named`].
    fn try_acquire<N>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Option<LockGuard>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::TryAcquire);
        async move { self.try_acquire_named(&name?, AcquireOptions::new()).await }
    }

    /// As [`try_acquire`](Self::try_acquire), with options.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_named`].
    fn try_acquire_with<N>(
        &self,
        name: N,
        options: AcquireOptions,
    ) -> impl Future<Output = Result<Option<LockGuard>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::TryAcquire);
        async move { self.try_acquire_named(&name?, options).await }
    }

    /// Tells who holds the lock; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::inspect_named`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    fn inspect<N>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Option<LockInfo>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Inspect);
        async move { self.inspect_named(&name?).await }
    }

    /// Tells who holds the lock, now and whenever that changes.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::DistributedLockExt;
    ///
    /// let mut holders = locks.watch("leader").await?;
    /// while let Some(info) = holders.next().await {
    ///     match info? {
    ///         Some(info) => println!("led by {}", info.holder().owner),
    ///         None => println!("nobody leads"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::watch_named`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    fn watch<N>(&self, name: N) -> impl Future<Output = Result<LockWatch, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Watch);
        async move { self.watch_named(&name?).await }
    }

    /// Takes the lock away from whoever holds it, and returns the holders it was taken from. To
    /// take it only from the holder that was seen, use
    /// [`force_release_from`](Self::force_release_from).
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::force_release_named`], and
    /// [`InvalidName`](crate::ErrorKind::InvalidName).
    fn force_release<N>(
        &self,
        name: N,
    ) -> impl Future<Output = Result<Vec<LockHolder>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::ForceRelease);
        async move { self.force_release_named(&name?, None).await }
    }

    /// Takes the lock away from this holder, and from no other: the holder that an operator has
    /// seen may have released it since. `None` if this owner does not hold it.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::force_release_named`], and
    /// [`InvalidName`](crate::ErrorKind::InvalidName).
    fn force_release_from<N>(
        &self,
        name: N,
        owner: &OwnerId,
    ) -> impl Future<Output = Result<Option<LockHolder>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::ForceRelease);
        async move { Ok(self.force_release_named(&name?, Some(owner)).await?.pop()) }
    }

    /// Acquires, runs `work`, and releases; drops `work` unfinished the moment the lock is lost.
    ///
    /// `work` gets a [`GuardView`], which tells the token and whether the lock is still held. Its
    /// output is returned once it has completed under the lock: a release that fails then is
    /// logged, and goes on in the background. For work that can fail use
    /// [`with_lock_fallible`](Self::with_lock_fallible).
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    ///
    /// let rows = locks
    ///     .with_lock("orders/42", AcquireOptions::new(), |guard| async move {
    ///         // ... write, stamped with guard.token() ...
    ///         # let _ = guard;
    ///         3
    ///     })
    ///     .await?;
    /// assert_eq!(rows, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`acquire_with`](Self::acquire_with); [`Lost`](crate::ErrorKind::Lost) if the lock was
    /// lost before `work` was done.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work` and releases in the background.
    fn with_lock<N, F, W>(
        &self,
        name: N,
        options: AcquireOptions,
        work: F,
    ) -> impl Future<Output = Result<W::Output, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
        F: FnOnce(GuardView) -> W + Send,
        W: Future + Send,
        W::Output: Send,
    {
        async move { run(self.acquire_with(name, options).await?, work).await }
    }

    /// As [`with_lock`](Self::with_lock), for work that returns a `Result`: its errors and those of
    /// the lock come as one.
    ///
    /// ```
    /// # #[derive(Debug)] struct AppError;
    /// # impl From<lock_core::LockError> for AppError { fn from(_: lock_core::LockError) -> Self { Self } }
    /// # async fn ship(_: u32) -> Result<u32, AppError> { Ok(3) }
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), AppError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    ///
    /// let parcels = locks.with_lock_fallible("orders/42", AcquireOptions::new(), |_| ship(42)).await?;
    /// # let _ = parcels;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `work`, and those of [`with_lock`](Self::with_lock).
    ///
    /// # Cancel safety
    ///
    /// As [`with_lock`](Self::with_lock).
    fn with_lock_fallible<N, F, W, T, E>(
        &self,
        name: N,
        options: AcquireOptions,
        work: F,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
        F: FnOnce(GuardView) -> W + Send,
        W: Future<Output = Result<T, E>> + Send,
        T: Send,
        E: From<LockError> + Send,
    {
        async move { self.with_lock(name, options, work).await? }
    }

    /// As [`with_lock`](Self::with_lock), but skips the work and returns `None` if the lock is not
    /// free. For jobs of which one at a time is enough.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    ///
    /// match locks.try_with_lock("reports/nightly", AcquireOptions::new(), |_| async { 17 }).await? {
    ///     Some(pages) => println!("wrote {pages} pages"),
    ///     None => println!("somebody else writes it"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`try_acquire_with`](Self::try_acquire_with); [`Lost`](crate::ErrorKind::Lost) if the
    /// lock was lost before `work` was done.
    ///
    /// # Cancel safety
    ///
    /// As [`with_lock`](Self::with_lock).
    fn try_with_lock<N, F, W>(
        &self,
        name: N,
        options: AcquireOptions,
        work: F,
    ) -> impl Future<Output = Result<Option<W::Output>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
        F: FnOnce(GuardView) -> W + Send,
        W: Future + Send,
        W::Output: Send,
    {
        async move {
            match self.try_acquire_with(name, options).await? {
                Some(guard) => run(guard, work).await.map(Some),
                None => Ok(None),
            }
        }
    }
}

/// Runs work while a guard holds.
async fn run<F, W>(guard: LockGuard, work: F) -> Result<W::Output, LockError>
where
    F: FnOnce(GuardView) -> W,
    W: Future,
{
    let output = {
        let mut lost = pin!(guard.lost());
        let mut work = pin!(work(guard.view()));
        poll_fn(|cx| {
            // The state is read before every step of the work, so that a runtime that was stalled
            // past the deadline does not take one more.
            if matches!(guard.state(), GuardState::Lost(_)) || lost.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    };
    guard.ensure_held()?;
    // A layer's guard may report a loss without a lost state.
    let output = output.ok_or_else(|| {
        LockError::new(
            ErrorKind::Lost,
            "the lock was lost before the work was done",
        )
    })?;
    if let Err(error) = guard.release().await {
        tracing::warn!(%error, "the work is done, but its lock could not be released");
    }
    Ok(output)
}

fn named<N: TryInto<LockName>>(name: N, operation: Operation) -> Result<LockName, LockError>
where
    LockError: From<N::Error>,
{
    name.try_into()
        .map_err(|error| LockError::from(error).during(operation))
}

impl<L: DistributedLock + ?Sized> DistributedLockExt for L {}
