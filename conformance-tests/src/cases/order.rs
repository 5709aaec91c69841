//! A backend that declares FIFO grants in the order of arrival, and a waiter that gave up does not
//! delay the rest.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{AcquireOptions, DistributedLockExt, backend::locked};
use tokio::task::JoinSet;

use super::exclusion::{all_well, connect_many};
use crate::{
    case::{Outcome, PROMPT, cases, ensure},
    context::{Client, Ctx, throughout},
    waiter::{Waiter, enqueue, queued, refused, take},
};

cases! { "order";
    waiters_of_one_client_are_granted_in_order [Fifo];
    waiters_of_many_clients_are_granted_in_order [Fifo];
    try_does_not_jump_the_queue [Fifo];
    giving_up_keeps_the_order_of_the_rest [Fifo];
    waiters_keep_their_place_past_the_ttl [Fifo];
    timed_out_waiter_is_passed_over [];
    giving_up_in_mid_queue_grants_nobody [];
    removal_of_the_holder_grants_the_first_only [RemoveEntry];
}

async fn waiters_of_one_client_are_granted_in_order(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    granted_in_order(&ctx, &[client]).await
}

async fn waiters_of_many_clients_are_granted_in_order(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 3).await?;
    granted_in_order(&ctx, &clients).await
}

async fn granted_in_order(ctx: &Ctx, clients: &[Client]) -> Outcome {
    let name = ctx.name("order");
    let order = Arc::new(Mutex::new(Vec::new()));
    let holder = take(&clients[0], &name).await?;
    let mut waiters = JoinSet::new();
    for i in 0..8 {
        let client = clients[i % clients.len()].clone();
        let name = name.clone();
        let order = Arc::clone(&order);
        waiters.spawn(async move {
            let guard = client.acquire(&name).await?;
            locked(&order).push(i);
            Ok(guard.release().await?)
        });
        // The next one comes only once the store knows of this one.
        queued(ctx, &clients[0], &holder.name().clone(), i + 1).await?;
    }
    holder.release().await?;
    all_well(waiters, PROMPT * 2).await?;
    let order = locked(&order).clone();
    ensure!(
        order.is_sorted(),
        "the waiters 0 to 7 were granted in the order {order:?}"
    );
    Ok(())
}

async fn try_does_not_jump_the_queue(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    for round in 0..5 {
        let name = ctx.name(&format!("jump-{round}"));
        let held = take(&a, &name).await?;
        let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
        refused(&c, &name).await?;
        held.release().await?;
        // The waiter came first, whether or not it has heard by now.
        refused(&c, &name).await?;
        waiter.granted().await?.release().await?;
    }
    Ok(())
}

async fn giving_up_keeps_the_order_of_the_rest(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("rest");
    let held = take(&a, &name).await?;
    let first = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    let second = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    let third = enqueue(&ctx, &a, &name, AcquireOptions::new(), 3).await?;
    second.give_up().await;
    queued(&ctx, &a, &name, 2).await?;
    held.release().await?;
    let guard = first.granted().await?;
    ensure!(
        third.is_pending(),
        "the third was granted along with the first"
    );
    guard.release().await?;
    Ok(third.granted().await?.release().await?)
}

async fn waiters_keep_their_place_past_the_ttl(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("place");
    let held = take(&a, &name).await?;
    let first = enqueue(&ctx, &b, &name, ctx.short(), 1).await?;
    let second = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    throughout("both wait", ctx.ttl() * 2, || {
        first.is_pending() && second.is_pending()
    })
    .await?;
    held.release().await?;
    let guard = first.granted().await?;
    ensure!(
        second.is_pending(),
        "the second was granted along with the first"
    );
    guard.release().await?;
    Ok(second.granted().await?.release().await?)
}

async fn timed_out_waiter_is_passed_over(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("passed-over");
    let held = take(&a, &name).await?;
    let mut bounded = enqueue(
        &ctx,
        &b,
        &name,
        AcquireOptions::new().with_timeout(Duration::from_millis(500)),
        1,
    )
    .await?;
    let patient = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    ensure!(
        bounded.outcome_within(PROMPT).await?.is_err(),
        "a held lock was granted"
    );
    held.release().await?;
    Ok(patient.granted().await?.release().await?)
}

/// The lock is not free merely because the waiter's predecessor went away.
async fn giving_up_in_mid_queue_grants_nobody(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("mid-queue");
    let held = take(&a, &name).await?;
    let middle = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
    let last = enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?;
    middle.give_up().await;
    queued(&ctx, &a, &name, 1).await?;
    throughout(
        "the last waits for the holder",
        Duration::from_millis(500),
        || last.is_pending() && !held.is_lost(),
    )
    .await?;
    held.release().await?;
    Ok(last.granted().await?.release().await?)
}

async fn removal_of_the_holder_grants_the_first_only(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("removal");
    let _removed = take(&a, &name).await?;
    let mut waiters = [
        enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?,
        enqueue(&ctx, &c, &name, AcquireOptions::new(), 2).await?,
    ];
    ctx.remove_entry(&name).await?;
    let [first, second] = &mut waiters;
    let guard = tokio::select! {
        outcome = first.outcome_within(PROMPT) => outcome??,
        outcome = second.outcome_within(PROMPT) => outcome??,
    };
    // One of the two is finished; if both were at once, there would be two holders.
    throughout("the other waits", Duration::from_millis(500), || {
        waiters.iter().any(Waiter::is_pending)
    })
    .await?;
    refused(&a, &name).await?;
    Ok(guard.release().await?)
}
