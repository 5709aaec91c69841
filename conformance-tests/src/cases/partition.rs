//! The network between one client and the store fails: the client learns of it in time, and nobody
//! else does.

use lock_core::DistributedLockExt;
use tokio::time::Instant;

use crate::{
    case::{Outcome, PROMPT, REQUEST, cases, ensure, fail},
    context::{Ctx, throughout, tick, within},
    proxy::{Flow, Proxy},
    waiter::{Waiter, becomes_free, loses, refused, take, take_with},
};

cases! { "partition";
    cut_connection_frees_nothing [Proxy];
    silent_link_loses_its_client_alone [Proxy];
    try_without_a_reply_leaves_nothing [Proxy];
    client_gone_after_any_request_leaves_the_name_free [Proxy];
    replaced_holder_extends_nobody [RemoveEntry];
}

fn set(proxies: &[Proxy], requests: Flow, replies: Flow) {
    proxies
        .iter()
        .for_each(|proxy| proxy.set(requests, replies));
}

async fn cut_connection_frees_nothing(ctx: Ctx) -> Outcome {
    let (holder, proxies) = ctx.connect_proxied().await?;
    let other = ctx.connect().await?;
    let name = ctx.name("cut");
    let guard = take_with(&holder, &name, ctx.short()).await?;
    let waiter = Waiter::start(&other, &name, ctx.short());
    for _ in 0..3 {
        proxies.iter().for_each(Proxy::cut);
        let cut = Instant::now();
        while cut.elapsed() < ctx.ttl() / 2 {
            ensure!(
                waiter.is_pending() || guard.is_lost(),
                "the store freed the lock {:?} after the holder's connection was cut, while {:?} of the \
                 holder's validity were left",
                cut.elapsed(),
                guard.remaining()
            );
            tick().await;
        }
    }
    ensure!(
        !guard.is_lost(),
        "a connection that could be opened again lost the lock: {:?}",
        guard.state()
    );
    guard.release().await?;
    drop(waiter.granted().await?);
    Ok(())
}

async fn silent_link_loses_its_client_alone(ctx: Ctx) -> Outcome {
    let (cut_off, proxies) = ctx.connect_proxied().await?;
    let other = ctx.connect().await?;
    let name = ctx.name("silent");
    let guard = take_with(&cut_off, &name, ctx.short()).await?;
    let bystander = take_with(&other, &ctx.name("bystander"), ctx.short()).await?;
    set(&proxies, Flow::Held, Flow::Held);
    let waiter = Waiter::start(&other, &name, ctx.short());
    let silent = Instant::now();
    while waiter.is_pending() && silent.elapsed() < ctx.expiry_bound() {
        tick().await;
    }
    ensure!(
        guard.is_lost(),
        "after {:?} of silence at a TTL of {:?} the holder still counts on {:?}",
        silent.elapsed(),
        ctx.ttl(),
        guard.remaining()
    );
    let next = waiter.granted().await?;
    ensure!(
        !bystander.is_lost(),
        "another client's link was silent, and this one lost its lock"
    );
    // What was under way arrives now.
    set(&proxies, Flow::Free, Flow::Free);
    drop(guard);
    throughout("the next holder holds", ctx.ttl() * 3 / 2, || {
        !next.is_lost()
    })
    .await?;
    refused(&other, &name).await?;
    bystander.release().await?;
    Ok(next.release().await?)
}

async fn try_without_a_reply_leaves_nothing(ctx: Ctx) -> Outcome {
    let (deaf, proxies) = ctx.connect_proxied().await?;
    let other = ctx.connect().await?;
    let name = ctx.name("no-reply");
    take(&deaf, &name).await?.release().await?;
    set(&proxies, Flow::Free, Flow::Lost);
    let outcome = within(
        REQUEST + ctx.ttl(),
        deaf.try_acquire_with(&name, ctx.short()),
    )
    .await;
    if let Some(Ok(Some(guard))) = &outcome {
        ensure!(
            guard.is_lost(),
            "a try whose reply was lost was granted, with {:?} left",
            guard.remaining()
        );
    }
    drop(outcome);
    set(&proxies, Flow::Free, Flow::Free);
    Ok(becomes_free(&other, &name, ctx.expiry_bound())
        .await?
        .release()
        .await?)
}

/// A client that falls silent after its first, second, third ... request.
async fn client_gone_after_any_request_leaves_the_name_free(ctx: Ctx) -> Outcome {
    const MOST_REQUESTS: usize = 3;
    let other = ctx.connect().await?;
    let mut silenced = Vec::new();
    for requests in 1..=MOST_REQUESTS {
        let (client, proxies) = ctx.connect_proxied().await?;
        // The connection is set up by now.
        take(&client, &ctx.name("warm-up")).await?.release().await?;
        let name = ctx.name(&format!("after-{requests}"));
        proxies.iter().for_each(|proxy| proxy.set_budget(requests));
        let attempt = Waiter::start(&client, &name, ctx.short());
        silenced.push((name, client, proxies, attempt));
    }
    let start = Instant::now();
    within(ctx.ttl(), async {
        while silenced.iter().any(|one| one.3.is_pending()) {
            tick().await;
        }
    })
    .await;
    let bound = ctx.ttl() + ctx.expiry_bound() * 2;
    for (at, (name, ..)) in silenced.iter().enumerate() {
        let free = becomes_free(
            &other,
            name,
            bound.saturating_sub(start.elapsed()).max(PROMPT / 2),
        );
        let Ok(guard) = free.await else {
            fail!(
                "a client fell silent after {} of its requests, and {:?} later, at a TTL of {:?}, its \
                 lock is still not free: the entry has no TTL of its own",
                at + 1,
                start.elapsed(),
                ctx.ttl()
            );
        };
        guard.release().await?;
    }
    for (.., proxies, _) in &silenced {
        set(proxies, Flow::Free, Flow::Free);
    }
    Ok(())
}

/// The renewal of a holder whose entry was replaced must not extend the entry of the next one.
async fn replaced_holder_extends_nobody(ctx: Ctx) -> Outcome {
    let (a, b, c) = ctx.connect_three().await?;
    let name = ctx.name("replaced");
    let first = take_with(&a, &name, ctx.short()).await?;
    ctx.remove_entry(&name).await?;
    let second = Waiter::start(&b, &name, ctx.short().without_renewal())
        .granted()
        .await?;
    let start = Instant::now();
    let loss = loses(&first, ctx.expiry_bound()).await;
    ensure!(
        loss.is_ok(),
        "another owner's entry has replaced the first holder's, and {:?} later, at a TTL of {:?}, the \
         first holder still holds: the renewal does not check the owner",
        start.elapsed(),
        ctx.ttl()
    );
    loses(&second, ctx.expiry_bound()).await?;
    let left = ctx.expiry_bound().saturating_sub(start.elapsed());
    let third = becomes_free(&c, &name, left.max(ctx.ttl() / 2)).await;
    ensure!(
        third.is_ok(),
        "the entry of a holder that renews nothing is still there after {:?} at a TTL of {:?}: the \
         renewal of the former holder extended it, without a check of the owner",
        start.elapsed(),
        ctx.ttl()
    );
    Ok(())
}
