//! Dropping any future at any await point leaves nothing behind.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use lock_core::{AcquireOptions, DistributedLockExt, LockName};
use rand::{RngExt, rngs::StdRng};

use crate::{
    case::{Outcome, PROMPT, cases, ensure},
    context::{Client, Ctx, eventually, throughout, within},
    seed,
    waiter::{Waiter, becomes_free, enqueue, loses, refused, take, take_with},
};

cases! { "cancellation";
    dropped_waiter_leaves_no_entry [Entries];
    dropped_waiter_lets_the_next_proceed [];
    dropped_waiter_leaves_its_client_usable [];
    acquire_dropped_at_random_points_leaves_nothing [];
    try_dropped_at_random_points_leaves_nothing [];
    acquire_dropped_after_its_first_step_leaves_nothing [];
    acquire_dropped_while_it_is_granted_leaves_nothing [];
    acquire_dropped_on_a_frozen_store_leaves_nothing [Isolated, Freeze];
    dropped_release_still_releases [];
    dropped_scoped_use_releases [];
    dropped_loss_future_takes_nothing_along [];
    dropped_shutdown_still_releases [];
    dropped_inspect_and_force_release_do_no_harm [Inspect];
}

async fn dropped_waiter_leaves_no_entry(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("entry");
    let held = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    waiter.give_up().await;
    ctx.entries_come_down_to(&name, 1).await?;
    held.release().await?;
    ctx.entries_come_down_to(&name, 0).await
}

async fn dropped_waiter_lets_the_next_proceed(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("next");
    let held = take(&a, &name).await?;
    let dropped = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    let next = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    dropped.give_up().await;
    throughout(
        "the next waits for the holder",
        Duration::from_millis(200),
        || next.is_pending(),
    )
    .await?;
    held.release().await?;
    Ok(next.granted().await?.release().await?)
}

async fn dropped_waiter_leaves_its_client_usable(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("usable");
    let held = take(&a, &name).await?;
    for _ in 0..3 {
        enqueue(&ctx, &b, &name, AcquireOptions::new(), 1)
            .await?
            .give_up()
            .await;
    }
    let waiter = Waiter::start(&b, &name, AcquireOptions::new());
    throughout("it waits again", Duration::from_millis(100), || {
        waiter.is_pending()
    })
    .await?;
    held.release().await?;
    Ok(waiter.granted().await?.release().await?)
}

/// Runs 200 acquires, some of a held name and some of a free one, and drops each after a random
/// number of steps or a random time.
async fn acquire_dropped_at_random_points_leaves_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let held = ctx.name("held");
    let free = ctx.name("free");
    let guard = take(&a, &held).await?;
    let mut random = seed::random(200);
    for round in 0..200 {
        let name = if round % 2 == 0 { &held } else { &free };
        let client = if random.random_ratio(1, 2) { &a } else { &b };
        drop_somewhere(client.acquire(name), &mut random).await;
    }
    ensure!(
        !guard.is_lost(),
        "the holder was disturbed: {:?}",
        guard.state()
    );
    nothing_is_left(&ctx, &a, &b, &free).await?;
    refused(&b, &held).await?;
    guard.release().await?;
    nothing_is_left(&ctx, &a, &b, &held).await
}

async fn try_dropped_at_random_points_leaves_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let held = ctx.name("held");
    let free = ctx.name("free");
    let guard = take(&a, &held).await?;
    let mut random = seed::random(50);
    for round in 0..50 {
        drop_somewhere(
            b.try_acquire(if round % 2 == 0 { &held } else { &free }),
            &mut random,
        )
        .await;
    }
    nothing_is_left(&ctx, &a, &b, &free).await?;
    guard.release().await?;
    nothing_is_left(&ctx, &a, &b, &held).await
}

async fn acquire_dropped_after_its_first_step_leaves_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("first-step");
    for _ in 0..20 {
        drop(a.acquire(&name));
        drop_after_polls(a.acquire(&name), 1).await;
        drop_after_polls(a.try_acquire(&name), 1).await;
    }
    nothing_is_left(&ctx, &a, &b, &name).await
}

async fn acquire_dropped_while_it_is_granted_leaves_nothing(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("granted");
    let mut random = seed::random(30);
    for _ in 0..30 {
        let held = becomes_free(&a, &name, PROMPT).await?;
        let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
        let release = tokio::spawn(held.release());
        tokio::time::sleep(Duration::from_micros(random.random_range(0..4000))).await;
        waiter.give_up().await;
        eventually("the release ends", PROMPT, || release.is_finished()).await?;
    }
    nothing_is_left(&ctx, &a, &c, &name).await
}

async fn acquire_dropped_on_a_frozen_store_leaves_nothing(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("frozen");
    ctx.freeze().await?;
    let waiter = Waiter::start(&a, &name, AcquireOptions::new());
    let attempt = Waiter::start(
        &a,
        &name,
        AcquireOptions::new().with_timeout(Duration::from_millis(600)),
    );
    throughout(
        "the store does not answer",
        Duration::from_millis(300),
        || waiter.is_pending(),
    )
    .await?;
    waiter.give_up().await;
    eventually("the bounded one has ended", PROMPT * 2, || {
        !attempt.is_pending()
    })
    .await?;
    ctx.thaw().await?;
    nothing_is_left(&ctx, &a, &b, &name).await
}

async fn dropped_release_still_releases(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    for polls in 0..4 {
        let name = ctx.name(&format!("release-{polls}"));
        let guard = take(&a, &name).await?;
        drop_after_polls(guard.release(), polls).await;
        drop(becomes_free(&b, &name, PROMPT).await?);
    }
    Ok(())
}

async fn dropped_scoped_use_releases(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("scoped");
    let (entered, inside) = tokio::sync::oneshot::channel();
    {
        let work = pin!(a.with_lock(&name, AcquireOptions::new(), |_| async {
            let _ = entered.send(());
            std::future::pending::<()>().await;
        }));
        let ended = within(PROMPT * 2, select(work, inside)).await;
        ensure!(
            matches!(ended, Some(Either::Right((Ok(()), _)))),
            "the work never began"
        );
    }
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

async fn dropped_loss_future_takes_nothing_along(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("loss"), ctx.short().without_renewal()).await?;
    for polls in 0..4 {
        drop_after_polls(guard.lost(), polls).await;
    }
    ensure!(!guard.is_lost(), "dropping a loss future lost the guard");
    loses(&guard, ctx.expiry_bound()).await?;
    ensure!(
        within(PROMPT, guard.lost()).await.is_some(),
        "the loss signal did not fire"
    );
    Ok(())
}

async fn dropped_shutdown_still_releases(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("shutdown");
    let guard = take(&a, &name).await?;
    drop_after_polls(a.shutdown(), 1).await;
    ensure!(guard.is_lost(), "the guard holds after the shutdown began");
    drop(becomes_free(&b, &name, PROMPT).await?);
    // Not before: it is the shutdown that releases, not the drop.
    drop(guard);
    Ok(())
}

async fn dropped_inspect_and_force_release_do_no_harm(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("inspect");
    let guard = take(&a, &name).await?;
    for polls in 0..4 {
        drop_after_polls(b.inspect(&name), polls).await;
        if ctx.capabilities().force_release {
            drop_after_polls(b.force_release(&ctx.name("nobody")), polls).await;
        }
    }
    let seen = b
        .inspect(&name)
        .await?
        .map(|info| info.holder().owner.clone());
    ensure!(
        seen.as_ref() == Some(guard.owner()),
        "the holder is {seen:?} instead of {:?}",
        guard.owner()
    );
    Ok(guard.release().await?)
}

/// Drops the future after a random number of polls, or after a random time.
async fn drop_somewhere<T>(future: impl Future<Output = T>, random: &mut StdRng) {
    if random.random_ratio(1, 2) {
        drop_after_polls(future, random.random_range(0..6)).await;
    } else {
        let _ =
            tokio::time::timeout(Duration::from_micros(random.random_range(0..6000)), future).await;
    }
}

/// Polls the future at most `most` times, each time as soon as it can make progress, and drops it.
async fn drop_after_polls<T>(future: impl Future<Output = T>, most: u32) {
    let mut future = pin!(future);
    let mut polls = 0;
    let steps = std::future::poll_fn(|cx| {
        if polls == most || future.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        polls += 1;
        if polls == most {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    // An acquire that waits for a holder takes few steps.
    let _ = tokio::time::timeout(Duration::from_millis(20), steps).await;
}

async fn nothing_is_left(ctx: &Ctx, a: &Client, b: &Client, name: &LockName) -> Outcome {
    if ctx.harness().entries(name).await?.is_some() {
        ctx.entries_come_down_to(name, 0).await?;
    }
    // Long before a lease of the default TTL would have ended.
    becomes_free(b, name, PROMPT).await?.release().await?;
    Ok(becomes_free(a, name, PROMPT).await?.release().await?)
}
