//! After the death of a holder the next waiter has the lock within the TTL plus the declared bound.

use std::time::Duration;

use lock_core::AcquireOptions;

use crate::{
    case::{Outcome, PROMPT, cases, ensure},
    child::Child,
    context::{Ctx, eventually, throughout},
    waiter::{Waiter, becomes_free, queued, refused, take, take_with},
};

cases! { "crash";
    killed_holder_frees_the_waiter_in_time [OtherProcess];
    killed_holder_is_free_for_a_try_in_time [OtherProcess];
    killed_holder_is_followed_by_one_waiter [OtherProcess];
    living_holder_in_another_process_is_renewed [OtherProcess];
    waiter_killed_at_the_head_does_not_delay_the_next [OtherProcess];
    killed_waiter_leaves_nothing [OtherProcess, Entries];
    paused_holder_finds_itself_lost [OtherProcess];
}

async fn killed_holder_frees_the_waiter_in_time(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("waiter");
    let (child, _) = Child::holding(&ctx, &name).await?;
    let waiter = Waiter::start(&client, &name, AcquireOptions::new());
    queued(&ctx, &client, &name, 1).await?;
    ensure!(
        waiter.is_pending(),
        "the child holds, and the waiter was granted"
    );
    child.kill().await?;
    Ok(waiter
        .granted_within(ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

async fn killed_holder_is_free_for_a_try_in_time(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("try");
    let (child, _) = Child::holding(&ctx, &name).await?;
    refused(&client, &name).await?;
    child.kill().await?;
    Ok(becomes_free(&client, &name, ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

async fn killed_holder_is_followed_by_one_waiter(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("one");
    let (child, _) = Child::holding(&ctx, &name).await?;
    let first = Waiter::start(&a, &name, ctx.short());
    let second = Waiter::start(&b, &name, ctx.short());
    queued(&ctx, &a, &name, 2).await?;
    child.kill().await?;
    eventually("a waiter is granted", ctx.expiry_bound(), || {
        !first.is_pending() || !second.is_pending()
    })
    .await?;
    let (granted, waiting) = if first.is_pending() {
        (second, first)
    } else {
        (first, second)
    };
    let guard = granted.granted().await?;
    throughout("the other waits", ctx.ttl(), || {
        waiting.is_pending() && !guard.is_lost()
    })
    .await?;
    guard.release().await?;
    Ok(waiting.granted().await?.release().await?)
}

async fn living_holder_in_another_process_is_renewed(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("living");
    let (child, _) = Child::holding(&ctx, &name).await?;
    let waiter = Waiter::start(&client, &name, ctx.short());
    throughout(
        "the waiter waits for the living child",
        ctx.ttl() * 2,
        || waiter.is_pending(),
    )
    .await?;
    child.kill().await?;
    Ok(waiter
        .granted_within(ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

async fn waiter_killed_at_the_head_does_not_delay_the_next(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("head");
    let held = take_with(&a, &name, ctx.short()).await?;
    let child = Child::asking(&ctx, &name).await?;
    queued(&ctx, &a, &name, 1).await?;
    let next = Waiter::start(&b, &name, ctx.short());
    queued(&ctx, &a, &name, 2).await?;
    child.kill().await?;
    held.release().await?;
    Ok(next
        .granted_within(ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

async fn killed_waiter_leaves_nothing(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("nothing");
    let held = take(&client, &name).await?;
    let child = Child::asking(&ctx, &name).await?;
    queued(&ctx, &client, &name, 1).await?;
    child.kill().await?;
    // The entry ends with its lease.
    let bound = ctx.expiry_bound();
    throughout("the holder holds", bound, || !held.is_lost()).await?;
    ctx.entries_come_down_to(&name, 1).await?;
    held.release().await?;
    drop(take(&client, &name).await?);
    Ok(())
}

#[cfg(unix)]
async fn paused_holder_finds_itself_lost(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("paused");
    let (mut child, _) = Child::holding(&ctx, &name).await?;
    child.pause()?;
    let next = Waiter::start(&client, &name, ctx.short())
        .granted_within(ctx.expiry_bound())
        .await?;
    child.resume()?;
    child.lost(PROMPT).await?;
    throughout(
        "the next holder holds",
        ctx.ttl() + Duration::from_millis(100),
        || !next.is_lost(),
    )
    .await?;
    Ok(next.release().await?)
}

#[cfg(not(unix))]
async fn paused_holder_finds_itself_lost(_: Ctx) -> Outcome {
    Err(crate::case::Stop::NotApplicable(
        "this system cannot pause a process".into(),
    ))
}
