//! Each hook of the harness has an effect. One that has none proves nothing: whatever rests on it is
//! unproven.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt};
use tokio::time::Instant;

use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure},
    context::{Client, Ctx, within},
    proxy::{Flow, Proxy},
    waiter::{becomes_free, take, take_with},
};

cases! { "hooks";
    freeze_silences_the_store [Isolated, Freeze];
    delay_holds_replies_back [Isolated, DelayReplies];
    stop_ends_the_store [Isolated, Stop];
    proxy_can_silence_a_client [Proxy];
    remove_entry_removes_it [RemoveEntry];
    entries_are_seen [Entries];
    residue_is_seen [Isolated, Residue];
}

/// A try that the store must not answer.
async fn goes_unanswered(ctx: &Ctx, client: &Client, hook: &str) -> Outcome {
    let name = ctx.name("unanswered");
    match within(Duration::from_millis(300), client.try_acquire(&name)).await {
        Some(Ok(_)) => Err(Stop::Fail(format!(
            "{hook} has no effect: a try was answered"
        ))),
        _ => Ok(()),
    }
}

async fn freeze_silences_the_store(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    ctx.freeze().await?;
    let silent = goes_unanswered(&ctx, &client, "`freeze`").await;
    ctx.thaw().await?;
    silent
}

async fn delay_holds_replies_back(ctx: Ctx) -> Outcome {
    const DELAY: Duration = Duration::from_millis(200);
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    ctx.delay_replies(DELAY).await?;
    let start = Instant::now();
    let _ = client.try_acquire(&ctx.name("late")).await;
    let took = start.elapsed();
    ctx.delay_replies(Duration::ZERO).await?;
    ensure!(
        took >= DELAY,
        "`delay_replies` has no effect: with a delay of {DELAY:?} a try took {took:?}"
    );
    Ok(())
}

async fn stop_ends_the_store(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    ctx.stop().await?;
    goes_unanswered(&ctx, &client, "`stop`").await
}

async fn proxy_can_silence_a_client(ctx: Ctx) -> Outcome {
    let (client, proxies) = ctx.connect_proxied().await?;
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    let passed: usize = proxies.iter().map(Proxy::requests).sum();
    ensure!(
        passed > 0,
        "the proxy has no effect: nothing passes through it; `connect_at` ignores its addresses"
    );
    proxies
        .iter()
        .for_each(|proxy| proxy.set(Flow::Held, Flow::Held));
    let silent = goes_unanswered(&ctx, &client, "the proxy").await;
    proxies
        .iter()
        .for_each(|proxy| proxy.set(Flow::Free, Flow::Free));
    silent
}

async fn remove_entry_removes_it(ctx: Ctx) -> Outcome {
    let (holder, other) = ctx.connect_two().await?;
    let name = ctx.name("removed");
    let options = AcquireOptions::new().without_renewal();
    let _guard = take_with(&holder, &name, options).await?;
    ctx.remove_entry(&name).await?;
    let free = becomes_free(&other, &name, PROMPT).await;
    ensure!(
        free.is_ok(),
        "`remove_entry` has no effect: the lock was still held {PROMPT:?} later"
    );
    Ok(())
}

async fn entries_are_seen(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("seen");
    let guard = take(&client, &name).await?;
    let seen = ctx.entries(&name).await?;
    guard.release().await?;
    ensure!(
        !seen.is_empty(),
        "`entries` has no effect: it lists nothing for a lock that is held"
    );
    Ok(())
}

async fn residue_is_seen(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    take(&client, &ctx.name("warm-up")).await?.release().await?;
    let before = ctx.residue().await?;
    let mut guards = Vec::new();
    for i in 0..10 {
        guards.push(take(&client, &ctx.name(&format!("held-{i}"))).await?);
    }
    let held = ctx.residue().await?;
    ensure!(
        held > before,
        "`client_residue` has no effect: it counts {before} before and {held} while ten guards are held"
    );
    Ok(())
}
