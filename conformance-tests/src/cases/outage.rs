//! An outage never looks like contention, and it ends no wait whose place is not lost yet.

use std::{error::Error, time::Duration};

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, LockError, RetryAdvice};
use tokio::time::Instant;

use crate::{
    case::{Outcome, PROMPT, REQUEST, Stop, cases, ensure, fail},
    context::{Client, Ctx, throughout, within},
    waiter::{Waiter, becomes_free, take, take_with},
};

cases! { "outage";
    contention_names_the_holder [Inspect];
    bounded_wait_on_a_silent_store_is_unavailable [Isolated, Freeze];
    wait_begun_in_a_short_outage_goes_on [Isolated, Freeze];
    wait_without_a_bound_ends_after_the_ttl [Isolated, Freeze, NoFailover];
    store_that_is_down_is_unavailable [Isolated, Stop];
}

fn is_outage(error: &LockError) -> Outcome {
    ensure!(
        error.kind() == ErrorKind::Unavailable,
        "an outage is told as {:?}: {error}",
        error.kind()
    );
    ensure!(
        error.retry() == RetryAdvice::Later,
        "the advice in an outage is {:?}: {error}",
        error.retry()
    );
    Ok(())
}

async fn contention_names_the_holder(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("holder");
    let held = take(&a, &name).await?;
    let Err(error) = b.acquire_timeout(&name, Duration::from_secs(1)).await else {
        fail!("a held lock was granted")
    };
    ensure!(
        error.kind() == ErrorKind::TimedOut,
        "a held lock is told as {:?}: {error}",
        error.kind()
    );
    ensure!(
        error.to_string().contains(held.owner().as_str()),
        "{} is not named: {error}",
        held.owner()
    );
    Ok(held.release().await?)
}

async fn bounded_wait_on_a_silent_store_is_unavailable(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let name = ctx.name("bounded");
    ctx.freeze().await?;
    let timeout = Duration::from_secs(1);
    let outcome = within(
        timeout + ctx.slack(),
        client.acquire_timeout(&name, timeout),
    )
    .await;
    ctx.thaw().await?;
    match outcome {
        Some(Err(error)) => is_outage(&error)?,
        Some(Ok(guard)) => fail!("a frozen store granted {guard:?}"),
        None => fail!("a wait bounded to {timeout:?} did not end while the store was frozen"),
    }
    // The request may take effect now; then it must be undone long before its TTL has passed.
    drop(becomes_free(&client, &name, PROMPT * 2).await?);
    Ok(())
}

/// Longer than any request takes to be answered, and shorter than the TTL.
async fn wait_begun_in_a_short_outage_goes_on(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let name = ctx.name("short");
    ctx.freeze().await?;
    let waiter = Waiter::start(&client, &name, AcquireOptions::new());
    throughout("the acquire goes on", Duration::from_secs(8), || {
        waiter.is_pending()
    })
    .await?;
    ctx.thaw().await?;
    Ok(waiter.granted_within(PROMPT * 2).await?.release().await?)
}

async fn wait_without_a_bound_ends_after_the_ttl(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("unbounded");
    let held = take_with(&a, &name, ctx.short()).await?;
    let mut queued = Waiter::start(&b, &name, ctx.short());
    throughout("the waiter waits", Duration::from_millis(500), || {
        queued.is_pending()
    })
    .await?;
    ctx.freeze().await?;
    let start = Instant::now();
    let mut fresh = Waiter::start(&a, &ctx.name("fresh"), ctx.short());
    // An acquire that is already queued asks on its own only once in a while.
    let bound = ctx.ttl() + REQUEST * 2;
    for waiter in [&mut fresh, &mut queued] {
        let Err(error) = waiter
            .outcome_within(bound.saturating_sub(start.elapsed()))
            .await?
        else {
            fail!("a frozen store granted")
        };
        is_outage(&error)?;
        ensure!(
            start.elapsed() + Duration::from_millis(500) >= ctx.ttl(),
            "an outage of {:?} ended a wait",
            start.elapsed()
        );
    }
    ctx.thaw().await?;
    drop(held);
    Ok(())
}

async fn store_that_is_down_is_unavailable(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let name = ctx.name("down");
    ctx.stop().await?;
    let Some(Err(error)) = within(REQUEST, client.try_acquire(&name)).await else {
        fail!("a try on a store that is down did not fail in time")
    };
    is_outage(&error)?;
    if ctx.capabilities().inspect {
        let Some(Err(error)) = within(REQUEST, client.inspect(&name)).await else {
            fail!("inspecting a store that is down did not fail in time")
        };
        is_outage(&error)?;
    }
    if ctx.capabilities().force_release {
        let Some(Err(error)) = within(REQUEST, client.force_release(&name)).await else {
            fail!("a forced release on a store that is down did not fail in time")
        };
        is_outage(&error)?;
    }
    let timeout = Duration::from_secs(3);
    let Some(Err(error)) = within(
        timeout + ctx.slack(),
        client.acquire_timeout(&name, timeout),
    )
    .await
    else {
        fail!("a bounded wait for a store that is down did not fail in time")
    };
    is_outage(&error)?;
    let Some(cause) = error.source().map(ToString::to_string) else {
        fail!("the store's last failure is not the cause: {error}")
    };
    ensure!(
        cause
            .rsplit(": ")
            .all(|detail| error.to_string().contains(detail)),
        "the message does not say why: {error}, {cause}"
    );
    match within(REQUEST, ctx.connect_now()).await {
        Some(Err(error)) => is_outage(&error)?,
        // A client that needs no connection is told by its first request.
        Some(Ok(client)) => is_outage(&refusal(&client).await?)?,
        None => fail!("connecting to a store that is down did not fail in time"),
    }
    ctx.restart().await
}

async fn refusal(client: &Client) -> Result<LockError, Stop> {
    match within(REQUEST, client.try_acquire("down")).await {
        Some(Err(error)) => Ok(error),
        other => Err(Stop::Fail(format!(
            "a store that is down answered {other:?}"
        ))),
    }
}
