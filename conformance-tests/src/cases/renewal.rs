//! A lease is renewed for as long as it should be, and ends on time.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LossReason};
use tokio::time::Instant;

use crate::{
    case::{Outcome, PROMPT, cases, ensure, fail},
    context::{Ctx, eventually, throughout, tick, within},
    waiter::{Waiter, becomes_free, loses, refused, take, take_with},
};

cases! { "renewal";
    a_guard_without_renewal_lasts_as_long_as_it_is_extended [];
    an_extended_guard_that_was_removed_is_lost [RemoveEntry];
    holder_outlives_many_ttls [];
    deadline_is_within_the_ttl_and_moves_out [];
    many_guards_of_one_client_are_renewed [];
    former_waiter_is_renewed [];
    without_renewal_the_lock_ends_on_time [];
    expired_lock_goes_to_the_waiter_not_too_early [];
    expired_lock_is_free_for_a_try [];
    loss_is_final_and_no_renewal_revives_it [];
    maximum_hold_ends_renewal [];
    maximum_hold_below_the_ttl_ends_the_lock [];
    name_is_free_after_the_maximum_hold [];
    name_is_free_after_a_maximum_hold_far_below_the_ttl [];
    renewal_ends_with_the_release [];
    short_freeze_is_survived [Isolated, Freeze];
    deadline_counts_from_the_request_not_from_the_reply [Isolated, DelayReplies];
}

async fn holder_outlives_many_ttls(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("outlives");
    let guard = take_with(&a, &name, ctx.short()).await?;
    let token = guard.token();
    for _ in 0..6 {
        throughout("the holder holds", ctx.ttl() / 2, || !guard.is_lost()).await?;
        refused(&b, &name).await?;
    }
    ensure!(
        guard.token() == token,
        "a renewal changed the token from {token:?} to {:?}",
        guard.token()
    );
    Ok(guard.release().await?)
}

async fn deadline_is_within_the_ttl_and_moves_out(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("deadline"), ctx.short()).await?;
    let ttl = ctx.ttl();
    ensure!(
        guard.remaining() <= ttl,
        "{:?} remain of a TTL of {ttl:?}",
        guard.remaining()
    );
    for _ in 0..2 {
        let before = Instant::now() + guard.remaining();
        eventually("a renewal moves the deadline out", ttl, || {
            Instant::now() + guard.remaining() > before + ttl / 10
        })
        .await?;
        ensure!(
            guard.remaining() <= ttl,
            "{:?} remain of a TTL of {ttl:?}",
            guard.remaining()
        );
    }
    Ok(guard.release().await?)
}

async fn many_guards_of_one_client_are_renewed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let mut guards = Vec::new();
    for i in 0..30 {
        guards.push(take_with(&a, &ctx.name(&format!("many-{i}")), ctx.short()).await?);
    }
    throughout("all are held", ctx.ttl() * 2, || {
        guards.iter().all(|guard| !guard.is_lost())
    })
    .await?;
    for guard in guards {
        refused(&b, guard.name()).await?;
        guard.release().await?;
    }
    Ok(())
}

async fn former_waiter_is_renewed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("former-waiter");
    let held = take_with(&a, &name, ctx.short()).await?;
    let waiter = Waiter::start(&b, &name, ctx.short());
    throughout("it waits", ctx.ttl() / 2, || waiter.is_pending()).await?;
    held.release().await?;
    let guard = waiter.granted().await?;
    throughout("the former waiter holds", ctx.ttl() * 2, || {
        !guard.is_lost()
    })
    .await?;
    refused(&a, &name).await?;
    Ok(guard.release().await?)
}

async fn without_renewal_the_lock_ends_on_time(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let start = Instant::now();
    let guard = take_with(&client, &ctx.name("ends"), ctx.short().without_renewal()).await?;
    let deadline = Instant::now() + guard.remaining();
    ensure!(
        guard.remaining() > ctx.ttl() / 4,
        "only {:?} of {:?} are left at the start",
        guard.remaining(),
        ctx.ttl()
    );
    let Some(reason) = within(ctx.ttl() + ctx.slack(), guard.lost()).await else {
        fail!(
            "held after {:?} without renewal at a TTL of {:?}",
            start.elapsed(),
            ctx.ttl()
        );
    };
    let now = Instant::now();
    ensure!(reason == LossReason::Expired, "the reason is {reason:?}");
    let early = deadline.saturating_duration_since(now);
    ensure!(
        early < Duration::from_millis(20),
        "lost {early:?} before its deadline"
    );
    ensure!(
        now <= deadline + ctx.slack(),
        "lost {:?} after its deadline",
        now.saturating_duration_since(deadline)
    );
    Ok(())
}

async fn expired_lock_goes_to_the_waiter_not_too_early(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("goes");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    let waiter = Waiter::start(&b, &name, ctx.short());
    while waiter.is_pending() {
        ensure!(
            guard.remaining() > Duration::ZERO || guard.is_lost(),
            "no time is left, yet the guard holds"
        );
        if guard.is_lost() {
            break;
        }
        tick().await;
    }
    ensure!(
        guard.is_lost(),
        "the waiter was granted while {:?} of the holder's lease were left",
        guard.remaining()
    );
    let next = waiter.granted_within(ctx.expiry_bound()).await?;
    refused(&a, &name).await?;
    Ok(next.release().await?)
}

async fn expired_lock_is_free_for_a_try(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("try");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    let next = becomes_free(&b, &name, ctx.expiry_bound()).await?;
    ensure!(
        guard.is_lost(),
        "granted while {:?} of the holder's lease were left",
        guard.remaining()
    );
    Ok(next.release().await?)
}

async fn loss_is_final_and_no_renewal_revives_it(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("final");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    loses(&guard, ctx.expiry_bound()).await?;
    let next = becomes_free(&b, &name, ctx.expiry_bound()).await?;
    // The same client renews another lock meanwhile.
    let other = take_with(&a, &ctx.name("other"), ctx.short()).await?;
    throughout("the guard stays lost", ctx.ttl(), || {
        guard.state() == GuardState::Lost(LossReason::Expired)
    })
    .await?;
    ensure!(
        guard.remaining() == Duration::ZERO && guard.ensure_held().is_err(),
        "a lost guard has time left"
    );
    ensure!(
        !next.is_lost() && !other.is_lost(),
        "a lost guard took others along"
    );
    other.release().await?;
    Ok(next.release().await?)
}

async fn maximum_hold_ends_renewal(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let most = ctx.ttl() * 2;
    let start = Instant::now();
    let guard = take_with(&client, &ctx.name("most"), ctx.short().with_max_hold(most)).await?;
    let Some(reason) = within(most + ctx.slack(), guard.lost()).await else {
        fail!("held after {:?} at a maximum of {most:?}", start.elapsed());
    };
    let took = start.elapsed();
    ensure!(reason == LossReason::MaxHold, "the reason is {reason:?}");
    ensure!(
        took > most - ctx.ttl() / 4,
        "lost after {took:?} of {most:?}: it was not renewed until the maximum hold"
    );
    Ok(())
}

async fn maximum_hold_below_the_ttl_ends_the_lock(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let most = ctx.ttl() / 2;
    let guard = take_with(&client, &ctx.name("below"), ctx.short().with_max_hold(most)).await?;
    ensure!(
        guard.remaining() <= most,
        "{:?} remain at a maximum hold of {most:?}",
        guard.remaining()
    );
    let reason = within(most + ctx.slack(), guard.lost()).await;
    ensure!(
        reason == Some(LossReason::MaxHold),
        "it ended with {reason:?}"
    );
    Ok(())
}

async fn name_is_free_after_the_maximum_hold(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("stuck");
    // A stuck holder: it keeps the guard and never looks at it.
    let guard = take_with(&a, &name, ctx.short().with_max_hold(ctx.ttl())).await?;
    let waiter = Waiter::start(&b, &name, ctx.short());
    let next = waiter
        .granted_within(ctx.ttl() + ctx.expiry_bound())
        .await?;
    ensure!(
        guard.is_lost(),
        "granted while the stuck holder's guard was valid"
    );
    Ok(next.release().await?)
}

async fn name_is_free_after_a_maximum_hold_far_below_the_ttl(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("far-below");
    let most = ctx.ttl() / 2;
    let ttl = Duration::from_secs(60).min(ctx.capabilities().ttl.max);
    let guard = take_with(
        &a,
        &name,
        AcquireOptions::new().with_ttl(ttl).with_max_hold(most),
    )
    .await?;
    let next = becomes_free(&b, &name, most + ctx.expiry_bound()).await?;
    ensure!(
        guard.is_lost(),
        "granted while the stuck holder's guard was valid"
    );
    Ok(next.release().await?)
}

async fn renewal_ends_with_the_release(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("ended");
    take_with(&a, &name, ctx.short()).await?.release().await?;
    let next = take_with(&b, &name, ctx.short().without_renewal()).await?;
    // A renewal that outlived its holder would keep the successor's entry alive, or the name taken.
    loses(&next, ctx.expiry_bound()).await?;
    Ok(becomes_free(&a, &name, ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

async fn short_freeze_is_survived(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("short-freeze");
    let guard = take_with(&a, &name, ctx.short()).await?;
    for _ in 0..2 {
        eventually("a renewal", PROMPT, || {
            guard.remaining() > ctx.ttl() * 3 / 4
        })
        .await?;
        ctx.freeze().await?;
        // Renewals are due at two thirds: at least one is lost.
        eventually("time passes", ctx.ttl(), || {
            guard.remaining() < ctx.ttl() / 2
        })
        .await?;
        ctx.thaw().await?;
    }
    throughout("the holder holds", ctx.ttl() * 2, || !guard.is_lost()).await?;
    refused(&b, &name).await?;
    Ok(guard.release().await?)
}

/// Every reply comes at least `delay` after its request, so the time that remains must never exceed
/// the TTL less that delay.
async fn deadline_counts_from_the_request_not_from_the_reply(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let delay = (ctx.ttl() / 8).min(Duration::from_millis(250));
    // Connections, sessions and scripts are set up before the delay.
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    ctx.delay_replies(delay).await?;
    let guard = client
        .acquire_with(&ctx.name("request"), ctx.short())
        .await?;
    let most = ctx.ttl() - delay;
    let end = Instant::now() + ctx.ttl() * 2;
    while Instant::now() < end {
        ensure!(
            guard.remaining() <= most,
            "{:?} remain of {:?} although every reply takes {delay:?}",
            guard.remaining(),
            ctx.ttl()
        );
        ensure!(
            !guard.is_lost(),
            "the guard was lost although the replies were in time"
        );
        tick().await;
    }
    client
        .acquire(&ctx.name("another"))
        .await?
        .release()
        .await?;
    Ok(guard.release().await?)
}

async fn a_guard_without_renewal_lasts_as_long_as_it_is_extended(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("extended");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    for round in 0..4 {
        throughout("it holds", ctx.ttl() / 2, || !guard.is_lost()).await?;
        guard.extend().await?;
        let left = guard.remaining();
        ensure!(
            left > ctx.ttl() * 3 / 5,
            "in round {round} {left:?} of {:?} are left after the extension",
            ctx.ttl()
        );
        refused(&b, &name).await?;
    }
    drop(becomes_free(&b, &name, ctx.expiry_bound()).await?);
    match guard.extend().await {
        Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
        other => fail!("nobody extended it, its lease has ended, and an extension says {other:?}"),
    }
}

async fn an_extended_guard_that_was_removed_is_lost(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("extended-late");
    let guard = take_with(&client, &name, ctx.short().without_renewal()).await?;
    ctx.remove_entry(&name).await?;
    match guard.extend().await {
        Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
        // Whatever keeps the entry alive may exist without the entry.
        Ok(()) if ctx.capabilities().push_loss => loses(&guard, PROMPT).await,
        other => fail!("its entry was removed, and an extension says {other:?}"),
    }
}
