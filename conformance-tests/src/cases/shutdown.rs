//! An orderly shutdown releases what its client holds and ends that client, and no other.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LockError, LossReason};

use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure, fail},
    context::{Ctx, within},
    waiter::{enqueue, refused, take, take_with},
};

cases! { "shutdown";
    shutdown_releases_what_is_held [];
    shutdown_loses_the_guards [];
    shutdown_fails_the_waiters [];
    shut_down_waiters_leave_nothing [Entries];
    shutdown_is_idempotent_and_final [];
    shutdown_leaves_other_clients_alone [];
    shutdown_ends_on_a_frozen_store [Isolated, Freeze];
}

async fn shutdown_releases_what_is_held(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let names = ["one", "two", "three"].map(|suffix| ctx.name(suffix));
    let mut guards = Vec::new();
    for name in &names {
        guards.push(take(&a, name).await?);
    }
    a.shutdown().await?;
    for name in &names {
        drop(take(&b, name).await?);
    }
    Ok(())
}

async fn shutdown_loses_the_guards(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("lost")).await?;
    client.shutdown().await?;
    ensure!(
        guard.state() == GuardState::Lost(LossReason::Shutdown),
        "after the shutdown the guard is {:?}",
        guard.state()
    );
    ensure!(
        within(PROMPT, guard.lost()).await == Some(LossReason::Shutdown),
        "the loss signal did not fire"
    );
    let released = guard.release().await;
    ensure!(
        released
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Lost),
        "its release said {released:?}"
    );
    Ok(())
}

async fn shutdown_fails_the_waiters(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("waiters");
    let guard = take(&a, &name).await?;
    let mut waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    b.shutdown().await?;
    match waiter.outcome_within(PROMPT).await? {
        Err(error) if error.kind() == ErrorKind::Shutdown => Ok(guard.release().await?),
        outcome => fail!("the waiter of a client that was shut down ended with {outcome:?}"),
    }
}

async fn shut_down_waiters_leave_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("nothing");
    let guard = take(&a, &name).await?;
    let _waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    b.shutdown().await?;
    ctx.entries_come_down_to(&name, 1).await?;
    guard.release().await?;
    ctx.entries_come_down_to(&name, 0).await
}

async fn shutdown_is_idempotent_and_final(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("final");
    drop(take(&client, &name).await?);
    client.shutdown().await?;
    client.shutdown().await?;
    is_shutdown("acquire", within(PROMPT, client.acquire(&name)).await)?;
    is_shutdown(
        "try-acquire",
        within(PROMPT, client.try_acquire(&name)).await,
    )?;
    if ctx.capabilities().inspect {
        is_shutdown("inspect", within(PROMPT, client.inspect(&name)).await)?;
    }
    if ctx.capabilities().force_release {
        is_shutdown(
            "force-release",
            within(PROMPT, client.force_release(&name)).await,
        )?;
    }
    Ok(())
}

fn is_shutdown<T>(operation: &str, outcome: Option<Result<T, LockError>>) -> Outcome {
    match outcome {
        Some(Err(error)) if error.kind() == ErrorKind::Shutdown => Ok(()),
        Some(Err(error)) => fail!("{operation} after the shutdown failed with {error:?}"),
        Some(Ok(_)) => fail!("{operation} after the shutdown succeeded"),
        None => fail!("{operation} after the shutdown hung"),
    }
}

async fn shutdown_leaves_other_clients_alone(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let held = ctx.name("held");
    let waited = ctx.name("waited");
    let guard = take_with(&b, &held, ctx.short()).await?;
    let blocker = take(&a, &waited).await?;
    let waiter = enqueue(&ctx, &b, &waited, AcquireOptions::new(), 1).await?;
    a.shutdown().await?;
    let granted = waiter.granted().await?;
    ensure!(
        blocker.is_lost(),
        "the guard of the client that was shut down holds"
    );
    tokio::time::timeout(ctx.ttl() * 2, guard.lost())
        .await
        .err()
        .ok_or_else(|| Stop::Fail("another client's guard was lost".into()))?;
    refused(&c, &held).await?;
    granted.release().await?;
    Ok(guard.release().await?)
}

async fn shutdown_ends_on_a_frozen_store(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("frozen"), ctx.short()).await?;
    ctx.freeze().await?;
    let bound = ctx.expiry_bound() + Duration::from_secs(10);
    let ended = within(bound, client.shutdown()).await;
    ctx.thaw().await?;
    ensure!(
        ended.is_some(),
        "the shutdown had not ended after {bound:?}"
    );
    ensure!(guard.is_lost(), "the guard holds after the shutdown");
    Ok(())
}
