use std::{future::Future, pin::pin, time::Duration};

use crate::{AcquireOptions, DistributedLock, GuardState, LockError, LockGuard, LockName, Operation, guard::Hold};

/// Shorter ways to call a [`DistributedLock`], on every implementation.
///
/// Names may be given as `&str`, `&&str`, `String`, `&String`, `Cow<str>`, `Box<str>`, `Arc<str>`, `&LockName` or
/// [`LockName`].
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
    /// As [`DistributedLock::acquire_with`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_with`].
    fn acquire<N>(&self, name: N) -> impl Future<Output = Result<LockGuard, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Acquire);
        async move { self.acquire_with(&name?, AcquireOptions::new()).await }
    }

    /// Waits at most `timeout` for the lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`TimedOut`](crate::ErrorKind::TimedOut): somebody else held the lock. A store that
    /// does not answer is [`Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_with`].
    fn acquire_timeout<N>(&self, name: N, timeout: Duration) -> impl Future<Output = Result<LockGuard, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::Acquire);
        async move { self.acquire_with(&name?, AcquireOptions::new().with_timeout(timeout)).await }
    }

    /// Takes the lock if it is free, without waiting.
    ///
    /// Keep what it returns: a guard that is dropped releases its lock at once. Rust warns of a statement that throws
    /// a guard away, but not of one that throws away an `Option` with a guard in it, as `locks.try_acquire("a").await?;`
    /// does, nor of `let _ = ...`.
    ///
    /// # Errors
    ///
    /// As [`DistributedLock::try_acquire_with`], and [`InvalidName`](crate::ErrorKind::InvalidName).
    ///
    /// # Cancel safety
    ///
    /// As [`DistributedLock::acquire_with`].
    fn try_acquire<N>(&self, name: N) -> impl Future<Output = Result<Option<LockGuard>, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
    {
        let name = named(name, Operation::TryAcquire);
        async move { self.try_acquire_with(&name?, AcquireOptions::new()).await }
    }

    /// Acquires, runs `work`, and releases; drops `work` unfinished the moment the lock is lost.
    ///
    /// `work` gets a [`Hold`], which tells the token and whether the lock is still held.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::{AcquireOptions, DistributedLockExt};
    ///
    /// let rows = locks
    ///     .with_lock("orders/42", AcquireOptions::new(), |hold| async move {
    ///         // ... write, stamped with hold.token() ...
    ///         # let _ = hold;
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
    /// As [`acquire`](Self::acquire); [`Lost`](crate::ErrorKind::Lost) if the lock was lost before `work` was done, or
    /// was found lost at its release; an error of the store if the release failed. In the latter cases `work` may have completed,
    /// and its result is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work` and releases in the background.
    fn with_lock<N, F, W>(&self, name: N, options: AcquireOptions, work: F) -> impl Future<Output = Result<W::Output, LockError>> + Send
    where
        N: TryInto<LockName> + Send,
        LockError: From<N::Error>,
        F: FnOnce(Hold) -> W + Send,
        W: Future + Send,
        W::Output: Send,
    {
        let name = named(name, Operation::Acquire);
        async move {
            let guard = self.acquire_with(&name?, options).await?;
            let output = {
                let mut lost = pin!(guard.lost());
                let mut work = pin!(work(guard.hold()));
                std::future::poll_fn(|cx| {
                    // The state is read before every step of the work, so that a runtime that was stalled past the
                    // deadline does not take one more.
                    if matches!(guard.state(), GuardState::Lost(_)) || lost.as_mut().poll(cx).is_ready() {
                        return std::task::Poll::Ready(None);
                    }
                    work.as_mut().poll(cx).map(Some)
                })
                .await
            };
            match output {
                Some(output) => guard.release().await.map(|()| output),
                None => Err(guard.ensure_held().err().unwrap_or_else(|| unreachable!("a lost guard stays lost"))),
            }
        }
    }
}

fn named<N: TryInto<LockName>>(name: N, operation: Operation) -> Result<LockName, LockError>
where
    LockError: From<N::Error>,
{
    name.try_into().map_err(|error| LockError::from(error).during(operation))
}

impl<L: DistributedLock + ?Sized> DistributedLockExt for L {}
