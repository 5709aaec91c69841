//! A loss is a state, a future that fires even for a late listener, and an error; a normal release
//! never causes one.

use std::{future::pending, pin::pin, time::Duration};

use futures_util::FutureExt;
use lock_core::{
    AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LockGuard, LockName, LossReason,
};
use tokio::time::Instant;

use crate::{
    case::{Outcome, PROMPT, cases, ensure, fail},
    context::{Ctx, eventually, throughout, tick, within},
    waiter::{Waiter, becomes_free, enqueue, loses, refused, take, take_with},
};

cases! { "loss";
    release_is_no_loss [];
    drop_is_no_loss [];
    contention_and_other_names_cause_no_loss [];
    late_subscribers_are_told [];
    all_subscribers_are_told [];
    removed_entry_is_noticed [RemoveEntry];
    forced_release_is_noticed [ForceRelease];
    removal_of_one_name_leaves_the_others_held [RemoveEntry];
    client_can_acquire_again_after_a_loss [RemoveEntry];
    lost_guard_reports_an_error_that_names_it [];
    scoped_work_is_dropped_at_the_loss [];
    stalled_runtime_does_not_delay_the_loss [];
    frozen_store_does_not_delay_the_loss [Isolated, Freeze];
    loss_in_a_freeze_is_final [Isolated, Freeze];
    frozen_store_loses_all_guards_of_a_client [Isolated, Freeze];
    next_holder_comes_after_a_freeze [Isolated, Freeze];
}

async fn release_is_no_loss(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("release"), ctx.short()).await?;
    let early = guard.lost();
    let hold = guard.view();
    guard.release().await?;
    never_fires(&ctx, early, hold.lost()).await?;
    ensure!(
        hold.state() == GuardState::Released,
        "after a release the state is {:?}",
        hold.state()
    );
    Ok(())
}

async fn drop_is_no_loss(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("drop"), ctx.short()).await?;
    let early = guard.lost();
    let hold = guard.view();
    drop(guard);
    never_fires(&ctx, early, hold.lost()).await?;
    ensure!(
        hold.state() == GuardState::Released,
        "after a drop the state is {:?}",
        hold.state()
    );
    Ok(())
}

async fn never_fires(
    ctx: &Ctx,
    early: impl Future<Output = LossReason>,
    late: impl Future<Output = LossReason>,
) -> Outcome {
    let early = pin!(early);
    let late = pin!(late);
    match within(ctx.ttl() * 3 / 2, futures_util::future::select(early, late)).await {
        None => Ok(()),
        Some(fired) => fail!(
            "the loss signal fired because of a release: {:?}",
            fired.factor_first().0
        ),
    }
}

async fn contention_and_other_names_cause_no_loss(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("contended");
    let guard = take_with(&a, &name, ctx.short()).await?;
    let waiter = enqueue(&ctx, &b, &name, ctx.short(), 1).await?;
    for i in 0..5 {
        let _ = b.acquire_timeout(&name, Duration::from_millis(20)).await;
        take(&a, &ctx.name(&format!("other-{i}")))
            .await?
            .release()
            .await?;
        drop(take(&b, &ctx.name(&format!("contended/{i}"))).await?);
    }
    waiter.give_up().await;
    throughout("the holder holds", ctx.ttl() * 3 / 2, || !guard.is_lost()).await?;
    Ok(guard.release().await?)
}

async fn late_subscribers_are_told(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("late"), ctx.short().without_renewal()).await?;
    let hold = guard.view();
    loses(&guard, ctx.expiry_bound()).await?;
    ensure!(
        guard.lost().now_or_never().is_some(),
        "a loss future made after the loss does not fire at once"
    );
    drop(guard);
    ensure!(
        hold.lost().now_or_never() == Some(LossReason::Expired),
        "a view's loss future made after the drop does not fire"
    );
    Ok(())
}

async fn all_subscribers_are_told(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("all"), ctx.short().without_renewal()).await?;
    let subscribers: Vec<_> = (0..10).map(|_| tokio::spawn(guard.lost())).collect();
    ensure!(
        guard.lost().now_or_never().is_none(),
        "the loss signal fired on a held lock"
    );
    eventually("all subscribers are told", ctx.expiry_bound(), || {
        subscribers.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await
}

/// Time until a guard must know that its entry is gone: promptly if the store pushes, else at its
/// next renewal.
fn notice_bound(ctx: &Ctx) -> Duration {
    if ctx.capabilities().push_loss {
        PROMPT
    } else {
        ctx.ttl() + ctx.slack()
    }
}

fn notice_options(ctx: &Ctx) -> AcquireOptions {
    if ctx.capabilities().push_loss {
        AcquireOptions::new()
    } else {
        ctx.short()
    }
}

async fn told_of_removal(ctx: &Ctx, guard: &LockGuard) -> Outcome {
    match within(notice_bound(ctx), guard.lost()).await {
        Some(LossReason::Removed) => {}
        Some(reason) => fail!("the entry was removed, and the reason of the loss is {reason:?}"),
        None => fail!(
            "the guard did not notice within {:?} that its entry is gone",
            notice_bound(ctx)
        ),
    }
    ensure!(
        guard
            .ensure_held()
            .is_err_and(|error| error.kind() == ErrorKind::Lost),
        "a lost guard is held"
    );
    Ok(())
}

async fn removed_entry_is_noticed(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("removed");
    let guard = take_with(&client, &name, notice_options(&ctx)).await?;
    ctx.remove_entry(&name).await?;
    told_of_removal(&ctx, &guard).await
}

async fn forced_release_is_noticed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("forced");
    let guard = take_with(&a, &name, notice_options(&ctx)).await?;
    ensure!(
        !b.force_release(&name).await?.is_empty(),
        "there was a holder to force out"
    );
    let next = take(&b, &name).await?;
    told_of_removal(&ctx, &guard).await?;
    ensure!(!next.is_lost(), "the successor was lost too");
    refused(&a, &name).await?;
    Ok(next.release().await?)
}

async fn removal_of_one_name_leaves_the_others_held(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let gone = ctx.name("gone");
    let kept = ctx.name("gone/kept");
    let lost = take_with(&client, &gone, notice_options(&ctx)).await?;
    let held = take_with(&client, &kept, ctx.short()).await?;
    ctx.remove_entry(&gone).await?;
    told_of_removal(&ctx, &lost).await?;
    throughout("the other is held", ctx.ttl() * 3 / 2, || !held.is_lost()).await?;
    Ok(held.release().await?)
}

async fn client_can_acquire_again_after_a_loss(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("again");
    let guard = take_with(&a, &name, notice_options(&ctx)).await?;
    ctx.remove_entry(&name).await?;
    told_of_removal(&ctx, &guard).await?;
    let again = take_with(&a, &name, ctx.short()).await?;
    throughout("the new lock is renewed", ctx.ttl() * 3 / 2, || {
        !again.is_lost()
    })
    .await?;
    ensure!(guard.is_lost(), "acquiring again revived the old guard");
    refused(&b, &name).await?;
    Ok(again.release().await?)
}

async fn lost_guard_reports_an_error_that_names_it(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("named"), ctx.short().without_renewal()).await?;
    loses(&guard, ctx.expiry_bound()).await?;
    let Err(error) = guard.ensure_held() else {
        fail!("a lost guard is held")
    };
    let seen = (
        error.kind(),
        error.name() == Some(guard.name()),
        error.backend() == Some(&*ctx.capabilities().backend),
    );
    ensure!(
        seen == (ErrorKind::Lost, true, true),
        "the error lacks its kind, name or backend: {error:?}"
    );
    Ok(())
}

async fn scoped_work_is_dropped_at_the_loss(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let (finished, mut dropped) = tokio::sync::oneshot::channel::<()>();
    let options = ctx.short().without_renewal();
    let scoped = client.with_lock(ctx.name("scoped"), options, |_| async move {
        let _finished = finished;
        pending::<()>().await;
    });
    match within(ctx.expiry_bound() + PROMPT, scoped).await {
        Some(Err(error)) if error.kind() == ErrorKind::Lost => {}
        other => fail!("work under a lost lock ended with {other:?}"),
    }
    ensure!(
        dropped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Closed),
        "the work was not dropped"
    );
    Ok(())
}

/// The state is right without any task running.
async fn stalled_runtime_does_not_delay_the_loss(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("stalled"), ctx.short().without_renewal()).await?;
    let left = guard.remaining() + Duration::from_millis(2);
    if ctx.harness().paused_time() {
        tokio::time::advance(left).await;
    } else {
        // The stall itself: the thread does nothing until the deadline has passed.
        std::thread::sleep(left);
    }
    ensure!(guard.is_lost(), "the guard holds past its deadline");
    Ok(())
}

/// Freezes the store under a guard, and checks that the loss comes at the deadline.
async fn lost_at_its_deadline(ctx: &Ctx, guard: &LockGuard) -> Outcome {
    let mut lost = pin!(guard.lost());
    ctx.freeze().await?;
    // Replies that are on their way may still push the deadline back.
    let mut deadline = Instant::now() + guard.remaining();
    let latest = Instant::now() + ctx.ttl() + ctx.slack();
    while (&mut lost).now_or_never().is_none() {
        let now = Instant::now();
        ensure!(
            now <= latest,
            "a TTL after the store froze the guard was not lost"
        );
        ensure!(
            now <= deadline + ctx.slack(),
            "{:?} past its deadline the loss signal had not fired",
            now - deadline
        );
        if !guard.is_lost() {
            ensure!(
                now <= deadline + Duration::from_millis(50),
                "the guard was valid {:?} past its deadline",
                now - deadline
            );
            deadline = deadline.max(now + guard.remaining());
        }
        tick().await;
    }
    ensure!(
        guard.is_lost() && guard.remaining() == Duration::ZERO,
        "the loss signal fired on a guard that holds"
    );
    let seen = guard.state();
    ensure!(
        seen == GuardState::Lost(LossReason::Expired),
        "the state is {seen:?}"
    );
    Ok(())
}

async fn frozen_store_does_not_delay_the_loss(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let start = Instant::now();
    let guard = take_with(&client, &ctx.name("frozen"), ctx.short()).await?;
    let outcome = lost_at_its_deadline(&ctx, &guard).await;
    let took = start.elapsed();
    ctx.thaw().await?;
    outcome?;
    ensure!(
        took < ctx.ttl() * 2 + ctx.slack(),
        "it took {took:?} with a TTL of {:?}",
        ctx.ttl()
    );
    Ok(())
}

async fn loss_in_a_freeze_is_final(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("final"), ctx.short()).await?;
    let outcome = lost_at_its_deadline(&ctx, &guard).await;
    ctx.thaw().await?;
    outcome?;
    // The store may still have the entry, and may accept a renewal that was under way.
    throughout("the guard stays lost", ctx.ttl() * 2, || guard.is_lost()).await?;
    let released = guard.release().await;
    ensure!(
        released
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Lost),
        "the release of a lost guard said {released:?}"
    );
    Ok(())
}

async fn frozen_store_loses_all_guards_of_a_client(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let mut guards = Vec::new();
    for i in 0..5 {
        guards.push(take_with(&client, &ctx.name(&format!("all-{i}")), ctx.short()).await?);
    }
    ctx.freeze().await?;
    let lost = eventually("all are lost", ctx.ttl() + ctx.slack(), || {
        guards.iter().all(LockGuard::is_lost)
    })
    .await;
    ctx.thaw().await?;
    lost
}

async fn next_holder_comes_after_a_freeze(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name: LockName = ctx.name("next");
    let guard = take_with(&a, &name, ctx.short()).await?;
    let mut waiter = Waiter::start(&b, &name, ctx.short());
    throughout("it waits", Duration::from_millis(100), || {
        waiter.is_pending()
    })
    .await?;
    let outcome = lost_at_its_deadline(&ctx, &guard).await;
    // A waiter may give up in the silence.
    let has_ended = !waiter.is_pending();
    if has_ended && waiter.outcome_within(PROMPT).await?.is_ok() {
        fail!("a frozen store granted a lock");
    }
    ctx.thaw().await?;
    outcome?;
    drop(guard);
    let bound = ctx.expiry_bound() + PROMPT;
    let granted = match waiter {
        _ if has_ended => None,
        waiter => waiter.granted_within(bound).await.ok(),
    };
    let next = match granted {
        Some(guard) => guard,
        None => becomes_free(&b, &name, bound).await?,
    };
    refused(&a, &name).await?;
    Ok(next.release().await?)
}
