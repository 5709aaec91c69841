//! The store wakes a waiter, its time limit is respected, and nothing may strand it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, LockName};
use tokio::{task::JoinSet, time::Instant};

use super::exclusion::{all_well, connect_many};
use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure, fail},
    context::{Client, Ctx, eventually, throughout, tick, within},
    waiter::{becomes_free, enqueue, queued, refused, take, take_with},
};

cases! { "waiting";
    waiter_gets_the_lock_after_the_release [];
    waiter_outlasts_many_ttls [];
    bounded_wait_times_out_in_time [];
    timed_out_wait_leaves_nothing_behind [];
    client_can_acquire_after_a_timeout [];
    bound_that_is_not_reached_does_not_matter [];
    try_does_not_wait [];
    release_wakes_the_waiter_at_once [PushWakeUp];
    all_of_many_waiters_get_it [];
    waiters_of_one_client_all_get_it [];
    waiter_that_is_not_polled_blocks_nobody [];
    eviction_of_a_waiter_is_noticed [EvictWaiters];
    evicted_waiter_is_never_a_second_holder [EvictWaiters];
    waiter_survives_a_frozen_store [Isolated, Freeze];
    waiters_survive_a_restart [Isolated, Restart];
}

async fn waiter_gets_the_lock_after_the_release(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("waiter");
    let guard = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    guard.release().await?;
    let guard = waiter.granted().await?;
    ensure!(
        !guard.is_lost(),
        "the waiter was granted a lost guard: {:?}",
        guard.state()
    );
    refused(&a, &name).await?;
    Ok(guard.release().await?)
}

async fn waiter_outlasts_many_ttls(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("outlasts");
    let holder = take_with(&a, &name, ctx.short()).await?;
    let waiter = enqueue(&ctx, &b, &name, ctx.short(), 1).await?;
    throughout(
        "the waiter waits and the holder holds",
        ctx.ttl() * 5 / 2,
        || waiter.is_pending() && !holder.is_lost(),
    )
    .await?;
    holder.release().await?;
    let guard = waiter.granted().await?;
    ensure!(
        guard.remaining() > ctx.ttl() / 4,
        "the lock was granted with only {:?} of {:?} left",
        guard.remaining(),
        ctx.ttl()
    );
    throughout(
        "the former waiter's lock is renewed",
        ctx.ttl() * 3 / 2,
        || !guard.is_lost(),
    )
    .await?;
    Ok(guard.release().await?)
}

async fn bounded_wait_times_out_in_time(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("bounded");
    let _held = take(&a, &name).await?;
    for timeout in [Duration::from_millis(200), Duration::from_millis(1)] {
        let start = Instant::now();
        let Some(outcome) = within(timeout + PROMPT, b.acquire_timeout(&name, timeout)).await
        else {
            fail!(
                "a wait bounded to {timeout:?} had not ended after {:?}",
                start.elapsed()
            );
        };
        let took = start.elapsed();
        // A millisecond may be too short for the store to report that the lock is held.
        let unheard = timeout < Duration::from_millis(100);
        let right = |kind| kind == ErrorKind::TimedOut || unheard && kind == ErrorKind::Unavailable;
        ensure!(
            outcome.as_ref().is_err_and(|error| right(error.kind())),
            "the bounded wait ended with {outcome:?}"
        );
        ensure!(
            took >= timeout && took < timeout + ctx.slack(),
            "a wait bounded to {timeout:?} took {took:?}"
        );
    }
    Ok(())
}

async fn timed_out_wait_leaves_nothing_behind(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("leaves-nothing");
    let held = take(&a, &name).await?;
    for _ in 0..5 {
        ensure!(
            b.acquire_timeout(&name, Duration::from_millis(50))
                .await
                .is_err(),
            "a held lock was granted"
        );
    }
    if ctx.harness().entries(&name).await?.is_some() {
        ctx.entries_come_down_to(&name, 1).await?;
    }
    held.release().await?;
    drop(becomes_free(&c, &name, PROMPT).await?);
    Ok(())
}

async fn client_can_acquire_after_a_timeout(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("after-timeout");
    let held = take(&a, &name).await?;
    ensure!(
        b.acquire_timeout(&name, Duration::from_millis(100))
            .await
            .is_err(),
        "a held lock was granted"
    );
    held.release().await?;
    match within(PROMPT, b.acquire(&name)).await {
        Some(guard) => Ok(guard?.release().await?),
        None => fail!("a client whose wait had timed out could not acquire the free lock"),
    }
}

async fn bound_that_is_not_reached_does_not_matter(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("in-time");
    b.acquire_timeout(&name, Duration::from_secs(20))
        .await?
        .release()
        .await?;
    let held = take(&a, &name).await?;
    let waiter = enqueue(
        &ctx,
        &b,
        &name,
        AcquireOptions::new().with_timeout(Duration::from_secs(20)),
        1,
    )
    .await?;
    held.release().await?;
    Ok(waiter.granted().await?.release().await?)
}

async fn try_does_not_wait(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("try");
    let _held = take(&a, &name).await?;
    // `try_acquire` ignores the timeout.
    let options = AcquireOptions::new().with_timeout(Duration::from_secs(60));
    match within(PROMPT, b.try_acquire_with(&name, options)).await {
        Some(outcome) => ensure!(outcome?.is_none(), "a held lock was granted"),
        None => fail!("a try waited for the holder"),
    }
    Ok(())
}

async fn release_wakes_the_waiter_at_once(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("push");
    let mut holder = take(&a, &name).await?;
    let mut took = Vec::new();
    for round in 0..9 {
        let client = if round % 2 == 0 { &b } else { &a };
        let waiter = enqueue(&ctx, client, &name, AcquireOptions::new(), 1).await?;
        let start = Instant::now();
        holder.release().await?;
        holder = waiter.granted().await?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    ensure!(
        took[4] < Duration::from_millis(150),
        "half of the hand-overs took over {:?}: {took:?}",
        took[4]
    );
    Ok(holder.release().await?)
}

async fn all_of_many_waiters_get_it(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 4).await?;
    everyone_gets_it(&ctx, &clients).await
}

async fn waiters_of_one_client_all_get_it(ctx: Ctx) -> Outcome {
    everyone_gets_it(&ctx, &[ctx.connect().await?]).await
}

async fn everyone_gets_it(ctx: &Ctx, clients: &[Client]) -> Outcome {
    let name = ctx.name("many");
    let holder = take(&clients[0], &name).await?;
    let mut waiters = JoinSet::new();
    for i in 0..24 {
        let client = clients[i % clients.len()].clone();
        let name = name.clone();
        waiters.spawn(async move { Ok(client.acquire(&name).await?.release().await?) });
    }
    queued(ctx, &clients[0], &name, 24).await?;
    holder.release().await?;
    all_well(waiters, Duration::from_secs(40)).await
}

async fn waiter_that_is_not_polled_blocks_nobody(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("unpolled");
    let held = take(&a, &name).await?;
    let mut unpolled = Box::pin(b.acquire_with(&name, ctx.short()));
    let arrives = async {
        queued(&ctx, &a, &name, 1).await?;
        // The store knows of the waiter before the waiter hears that it has to wait.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, Stop>(())
    };
    tokio::select! {
        outcome = &mut unpolled => fail!("an acquire of a held lock ended with {outcome:?}"),
        arrived = arrives => arrived?,
    }
    let waiter = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    held.release().await?;
    let next = waiter.granted_within(ctx.expiry_bound()).await?;
    // The late caller hears of it, or queues again.
    match within(Duration::from_millis(300), &mut unpolled).await {
        Some(Ok(guard)) => fail!("the late caller was granted what somebody else holds: {guard:?}"),
        Some(Err(_)) => return Ok(next.release().await?),
        None => next.release().await?,
    }
    let Some(guard) = within(ctx.expiry_bound() + PROMPT, unpolled).await else {
        fail!("the late caller was not granted the free lock")
    };
    let guard = guard?;
    ensure!(
        !guard.is_lost(),
        "the late caller was granted a lost guard: {:?}",
        guard.state()
    );
    refused(&a, &name).await?;
    Ok(guard.release().await?)
}

async fn eviction_of_a_waiter_is_noticed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("evicted");
    let held = take(&a, &name).await?;
    let mut waiter = enqueue(&ctx, &b, &name, ctx.short(), 1).await?;
    ctx.evict_waiters(&name).await?;
    // It fails or queues again at once, not when its turn would have come.
    let start = Instant::now();
    while waiter.is_pending() && ctx.entries(&name).await?.len() < 2 {
        ensure!(
            start.elapsed() < ctx.expiry_bound(),
            "the evicted waiter neither failed nor queued up again"
        );
        tick().await;
    }
    held.release().await?;
    match waiter.outcome_within(PROMPT).await? {
        Ok(guard) => {
            refused(&a, &name).await?;
            Ok(guard.release().await?)
        }
        Err(_) => Ok(take(&a, &name).await?.release().await?),
    }
}

async fn evicted_waiter_is_never_a_second_holder(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("evicted-second");
    let inside = Arc::new(AtomicBool::new(true));
    let held = take(&a, &name).await?;
    let mut contenders = JoinSet::new();
    contenders.spawn(contend(
        b.clone(),
        name.clone(),
        ctx.short(),
        Arc::clone(&inside),
    ));
    queued(&ctx, &b, &name, 1).await?;
    ctx.evict_waiters(&name).await?;
    contenders.spawn(contend(
        c.clone(),
        name.clone(),
        ctx.short(),
        Arc::clone(&inside),
    ));
    throughout("the holder holds", Duration::from_millis(500), || {
        !held.is_lost()
    })
    .await?;
    inside.store(false, SeqCst);
    held.release().await?;
    all_well(contenders, PROMPT * 2).await
}

/// Acquires, and fails if somebody else is inside; an acquire that fails lets nobody in.
async fn contend(
    client: Client,
    name: LockName,
    options: AcquireOptions,
    inside: Arc<AtomicBool>,
) -> Outcome {
    let Ok(guard) = client.acquire_with(&name, options).await else {
        return Ok(());
    };
    ensure!(!inside.swap(true, SeqCst), "two holders at once");
    throughout("the guard holds", Duration::from_millis(300), || {
        !guard.is_lost()
    })
    .await?;
    inside.store(false, SeqCst);
    Ok(guard.release().await?)
}

async fn waiter_survives_a_frozen_store(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("frozen");
    let held = take(&a, &name).await?;
    let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    ctx.freeze().await?;
    throughout("the waiter waits", Duration::from_secs(2), || {
        waiter.is_pending()
    })
    .await?;
    ctx.thaw().await?;
    held.release().await?;
    Ok(waiter.granted_within(PROMPT * 2).await?.release().await?)
}

/// Nobody acquires while the store is down, and exactly one waiter does afterwards.
async fn waiters_survive_a_restart(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("restart");
    let held = take_with(&a, &name, ctx.short()).await?;
    let first = enqueue(&ctx, &b, &name, ctx.short(), 1).await?;
    let second = enqueue(&ctx, &c, &name, ctx.short(), 2).await?;
    ctx.restart().await?;
    if held.release().await.is_err() {
        // The guard was lost, or the release was lost on its way: then the lock comes free when its
        // lease ends.
        eventually("a waiter has the lock", ctx.expiry_bound() + PROMPT, || {
            !first.is_pending() || !second.is_pending()
        })
        .await?;
    }
    let bound = ctx.expiry_bound() + PROMPT * 2;
    eventually("a waiter has the lock", bound, || {
        !first.is_pending() || !second.is_pending()
    })
    .await?;
    let (granted, waiting) = if first.is_pending() {
        (second, first)
    } else {
        (first, second)
    };
    let guard = granted.granted().await?;
    throughout("the other waits", Duration::from_millis(300), || {
        waiting.is_pending()
    })
    .await?;
    guard.release().await?;
    drop(waiting.granted_within(bound).await?);
    Ok(())
}
