//! Only the acquisition's own entry is ever removed, and the result says whether it was there.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LockGuard, LossReason};

use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure},
    context::{Client, Ctx, eventually, throughout},
    waiter::{Waiter, becomes_free, loses, refused, take, take_with},
};

cases! { "release";
    release_of_a_held_lock_succeeds [];
    release_of_an_expired_guard_says_lost [];
    release_of_a_removed_entry_says_lost [RemoveEntry];
    release_ends_the_views_of_the_guard [];
    stale_guard_releases_nothing_of_another_client [];
    stale_guard_releases_nothing_of_its_own_client [];
    stale_guard_dropped_releases_nothing [];
    forced_out_guard_releases_nothing [ForceRelease];
    guard_of_a_removed_entry_releases_nothing [RemoveEntry];
    dropped_guard_releases_promptly [];
    dropped_guard_frees_a_waiter_promptly [];
    guard_dropped_outside_a_runtime_releases_promptly [];
    guard_dropped_after_its_client_releases_promptly [];
    guard_dropped_by_a_panic_releases_promptly [];
    scoped_use_releases_also_after_an_error [];
    release_waits_out_a_frozen_store_and_no_longer_than_its_deadline [Isolated, Freeze];
    release_during_a_short_freeze_succeeds [Isolated, Freeze];
}

async fn release_of_a_held_lock_succeeds(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("held");
    for options in [
        AcquireOptions::new(),
        ctx.short(),
        ctx.short().without_renewal(),
    ] {
        take_with(&a, &name, options).await?.release().await?;
        take(&b, &name).await?.release().await?;
    }
    Ok(())
}

async fn release_of_an_expired_guard_says_lost(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("expired"), ctx.short().without_renewal()).await?;
    loses(&guard, ctx.expiry_bound()).await?;
    says_lost(guard).await
}

async fn release_of_a_removed_entry_says_lost(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("removed");
    let guard = take(&client, &name).await?;
    ctx.remove_entry(&name).await?;
    // Whether or not the guard has heard of it by then.
    says_lost(guard).await
}

async fn release_ends_the_views_of_the_guard(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("views")).await?;
    let hold = guard.view();
    ensure!(
        hold.ensure_held().is_ok() && hold.remaining() > Duration::ZERO,
        "a fresh guard is not held: {hold:?}"
    );
    guard.release().await?;
    ensure!(
        hold.state() == GuardState::Released,
        "a view of a released guard says {:?}",
        hold.state()
    );
    ensure!(
        hold.ensure_held().is_err() && hold.remaining() == Duration::ZERO,
        "a view of a released guard holds"
    );
    Ok(())
}

/// Makes a guard that expired, and a successor that must survive whatever is done with that guard.
async fn stale(
    ctx: &Ctx,
    successor: &Client,
    client: &Client,
) -> Result<(LockGuard, LockGuard), Stop> {
    let name = ctx.name("stale");
    let stale = take_with(client, &name, ctx.short().without_renewal()).await?;
    loses(&stale, ctx.expiry_bound()).await?;
    Ok((
        stale,
        becomes_free(successor, &name, ctx.expiry_bound()).await?,
    ))
}

/// Shutting a client down waits until its background releases are done.
async fn survives(held: LockGuard, done: &Client, other: &Client) -> Outcome {
    done.shutdown().await?;
    ensure!(
        !held.is_lost(),
        "a stale guard ended its successor's: {:?}",
        held.state()
    );
    refused(other, held.name()).await?;
    Ok(held.release().await?)
}

async fn stale_guard_releases_nothing_of_another_client(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let (stale, held) = stale(&ctx, &b, &a).await?;
    says_lost(stale).await?;
    survives(held, &a, &c).await
}

async fn stale_guard_releases_nothing_of_its_own_client(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let (stale, held) = stale(&ctx, &a, &a).await?;
    says_lost(stale).await?;
    throughout("the successor holds", Duration::from_millis(300), || {
        !held.is_lost()
    })
    .await?;
    refused(&b, held.name()).await?;
    Ok(held.release().await?)
}

async fn stale_guard_dropped_releases_nothing(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let (stale, held) = stale(&ctx, &b, &a).await?;
    drop(stale);
    survives(held, &a, &c).await
}

async fn forced_out_guard_releases_nothing(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("forced");
    let stale = take(&a, &name).await?;
    ensure!(
        !c.force_release(&name).await?.is_empty(),
        "there was a holder to force out"
    );
    let held = becomes_free(&b, &name, PROMPT).await?;
    says_lost(stale).await?;
    survives(held, &a, &c).await
}

async fn guard_of_a_removed_entry_releases_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("removed-stale");
    let stale = take(&a, &name).await?;
    ctx.remove_entry(&name).await?;
    let held = becomes_free(&a, &name, PROMPT).await?;
    drop(stale);
    throughout("the successor holds", Duration::from_millis(300), || {
        !held.is_lost()
    })
    .await?;
    refused(&b, &name).await?;
    Ok(held.release().await?)
}

async fn dropped_guard_releases_promptly(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("dropped");
    drop(take(&a, &name).await?);
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

async fn dropped_guard_frees_a_waiter_promptly(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("dropped-waiter");
    let guard = take(&a, &name).await?;
    let waiter = Waiter::start(&b, &name, AcquireOptions::new());
    throughout("the waiter waits", Duration::from_millis(50), || {
        waiter.is_pending()
    })
    .await?;
    drop(guard);
    drop(waiter.granted().await?);
    Ok(())
}

async fn guard_dropped_outside_a_runtime_releases_promptly(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("outside");
    let guard = take(&a, &name).await?;
    let dropped = std::thread::spawn(move || drop(guard)).join();
    ensure!(
        dropped.is_ok(),
        "dropping a guard outside a runtime panicked"
    );
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

async fn guard_dropped_after_its_client_releases_promptly(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("orphan");
    let guard = take(&a, &name).await?;
    drop(a);
    throughout(
        "the guard holds without its client",
        Duration::from_millis(50),
        || !guard.is_lost(),
    )
    .await?;
    drop(guard);
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

async fn guard_dropped_by_a_panic_releases_promptly(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("panic");
    let guard = take(&a, &name).await?;
    let task = tokio::spawn(async move {
        let _guard = guard;
        // Unwinds without the noise of the panic hook.
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    ensure!(
        task.await.is_err_and(|error| error.is_panic()),
        "the task should have panicked"
    );
    drop(becomes_free(&b, &name, PROMPT).await?);
    Ok(())
}

async fn scoped_use_releases_also_after_an_error(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("scoped");
    for result in [Ok(1), Err("work failed")] {
        let seen = a
            .with_lock(&name, AcquireOptions::new(), |_| async { result })
            .await?;
        ensure!(
            seen == result,
            "the work's result was {seen:?} instead of {result:?}"
        );
        take(&b, &name).await?.release().await?;
    }
    Ok(())
}

async fn release_waits_out_a_frozen_store_and_no_longer_than_its_deadline(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("frozen"), ctx.short()).await?;
    let hold = guard.view();
    ctx.freeze().await?;
    let bound = ctx.ttl() + ctx.slack();
    let released = tokio::time::timeout(bound, guard.release()).await;
    ctx.thaw().await?;
    match released {
        Ok(Err(error)) if error.is_indeterminate() || error.kind() == ErrorKind::Lost => {}
        Ok(outcome) => {
            return Err(Stop::Fail(format!(
                "no answer came, and the release said {outcome:?}"
            )));
        }
        Err(_) => {
            return Err(Stop::Fail(format!(
                "the release had not ended after {bound:?}"
            )));
        }
    }
    ensure!(
        hold.ensure_held().is_err(),
        "the guard holds after its release"
    );
    drop(becomes_free(&client, hold.name(), ctx.expiry_bound() + PROMPT).await?);
    Ok(())
}

async fn release_during_a_short_freeze_succeeds(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("short-freeze");
    let guard = take(&a, &name).await?;
    ctx.freeze().await?;
    let release = tokio::spawn(guard.release());
    throughout(
        "the release waits for the store",
        Duration::from_millis(700),
        || !release.is_finished(),
    )
    .await?;
    ctx.thaw().await?;
    eventually("the release ends", PROMPT * 2, || release.is_finished()).await?;
    release
        .await
        .map_err(|error| Stop::Fail(error.to_string()))??;
    drop(take(&b, &name).await?);
    Ok(())
}

async fn says_lost(guard: LockGuard) -> Outcome {
    match guard.release().await {
        Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
        outcome => Err(Stop::Fail(format!(
            "the release of a lost guard said {outcome:?} instead of {:?}",
            LossReason::Removed
        ))),
    }
}
