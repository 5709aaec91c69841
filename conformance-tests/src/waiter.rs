use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, LockError, LockGuard, LockName};
use tokio::task::JoinHandle;

use crate::{
    case::{Outcome, PROMPT, Stop},
    context::{Client, Ctx, eventually, tick, within},
};

/// An acquire that runs in a task of its own; given up when dropped.
#[derive(Debug)]
pub(crate) struct Waiter(JoinHandle<Result<LockGuard, LockError>>);

impl Waiter {
    pub(crate) fn start(client: &Client, name: &LockName, options: AcquireOptions) -> Self {
        let client = client.clone();
        let name = name.clone();
        Self(tokio::spawn(async move {
            client.acquire_with(&name, options).await
        }))
    }

    pub(crate) fn is_pending(&self) -> bool {
        !self.0.is_finished()
    }

    /// Waits for the outcome of the acquire; fails if there is none within the bound.
    pub(crate) async fn outcome_within(
        &mut self,
        bound: Duration,
    ) -> Result<Result<LockGuard, LockError>, Stop> {
        match within(bound, &mut self.0).await {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(error)) => Err(Stop::Fail(format!("the acquire panicked: {error}"))),
            None => Err(Stop::Fail(format!(
                "the acquire had not ended after {bound:?}"
            ))),
        }
    }

    /// Waits for the guard; fails if the lock is not granted within the bound.
    pub(crate) async fn granted_within(mut self, bound: Duration) -> Result<LockGuard, Stop> {
        self.outcome_within(bound)
            .await?
            .map_err(|error| Stop::Fail(format!("the waiter failed: {error}")))
    }

    /// Waits for the guard, for as long as a store may take to wake a waiter.
    pub(crate) async fn granted(self) -> Result<LockGuard, Stop> {
        self.granted_within(PROMPT).await
    }

    /// Drops the acquire, and waits until it is dropped.
    pub(crate) async fn give_up(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the store knows of `count` waiters, as far as that can be seen.
pub(crate) async fn queued(ctx: &Ctx, client: &Client, name: &LockName, count: usize) -> Outcome {
    let capabilities = ctx.capabilities();
    let sees_queue = capabilities.inspect && capabilities.queue_length;
    let sees_entries = capabilities.fifo && ctx.harness().entries(name).await?.is_some();
    if !sees_queue && !sees_entries {
        // Nothing depends on the arrival where waiting leaves no trace in the store: this gives
        // the waiter time to ask once.
        tokio::time::sleep(Duration::from_millis(100)).await;
        return Ok(());
    }
    let arrived = within(PROMPT, async {
        loop {
            let seen = if sees_queue {
                client
                    .inspect(name)
                    .await?
                    .and_then(|info| info.waiters)
                    .unwrap_or_default() as usize
            } else {
                ctx.entries(name).await?.len().saturating_sub(1)
            };
            if seen == count {
                return Ok(());
            }
            tick().await;
        }
    });
    arrived.await.unwrap_or_else(|| {
        Err(Stop::Fail(format!(
            "the store never knew of {count} waiters"
        )))
    })
}

/// Starts an acquire, and waits until the store knows of it as its `place`th waiter.
pub(crate) async fn enqueue(
    ctx: &Ctx,
    client: &Client,
    name: &LockName,
    options: AcquireOptions,
    place: usize,
) -> Result<Waiter, Stop> {
    let waiter = Waiter::start(client, name, options);
    queued(ctx, client, name, place).await?;
    if !waiter.is_pending() {
        return Err(Stop::Fail("an acquire of a held lock did not wait".into()));
    }
    Ok(waiter)
}

/// Takes a lock that must be free.
pub(crate) async fn take(client: &Client, name: &LockName) -> Result<LockGuard, Stop> {
    client
        .try_acquire(name)
        .await?
        .ok_or_else(|| Stop::Fail(format!("`{name}` should be free, and was refused")))
}

/// Takes a lock that must be free, with options.
pub(crate) async fn take_with(
    client: &Client,
    name: &LockName,
    options: AcquireOptions,
) -> Result<LockGuard, Stop> {
    client
        .try_acquire_with(name, options)
        .await?
        .ok_or_else(|| Stop::Fail(format!("`{name}` should be free, and was refused")))
}

/// Checks that a lock is refused.
pub(crate) async fn refused(client: &Client, name: &LockName) -> Outcome {
    match client.try_acquire(name).await? {
        None => Ok(()),
        Some(guard) => Err(Stop::Fail(format!(
            "`{name}` is held, and was granted again: {guard:?}"
        ))),
    }
}

/// Takes a lock that is being cleaned up: polls until it is free, which must be promptly.
pub(crate) async fn becomes_free(
    client: &Client,
    name: &LockName,
    bound: Duration,
) -> Result<LockGuard, Stop> {
    let taken = within(bound, async {
        loop {
            if let Some(guard) = client.try_acquire(name).await? {
                return Ok(guard);
            }
            tick().await;
        }
    });
    taken
        .await
        .unwrap_or_else(|| Err(Stop::Fail(format!("`{name}` was not free after {bound:?}"))))
}

/// Waits until a guard is lost.
pub(crate) async fn loses(guard: &LockGuard, bound: Duration) -> Outcome {
    eventually("the guard is lost", bound, || guard.is_lost()).await
}
