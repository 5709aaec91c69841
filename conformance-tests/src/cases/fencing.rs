//! Tokens are strictly increasing per name, for as long as declared.

use std::sync::{Arc, Mutex, PoisonError};

use lock_core::{AcquireOptions, DistributedLockExt, FencingToken, LockGuard};
use tokio::task::JoinSet;

use super::exclusion::{all_well, connect_many};
use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure, fail},
    child::Child,
    context::{Ctx, throughout},
    waiter::{Waiter, becomes_free, enqueue, loses, take, take_with},
};

cases! { "fencing";
    tokens_grow_with_each_acquisition [Fencing];
    tokens_grow_across_clients [Fencing];
    tokens_grow_across_waits_and_tries [Fencing];
    tokens_grow_across_an_expiry [Fencing];
    tokens_grow_across_a_drop [Fencing];
    tokens_grow_across_a_forced_release [Fencing, ForceRelease];
    tokens_grow_across_a_removal [Fencing, RemoveEntry];
    tokens_grow_across_a_shutdown [Fencing];
    tokens_grow_over_ten_concurrent_tasks [Fencing];
    tokens_grow_across_processes [Fencing, OtherProcess];
    tokens_grow_across_a_restart [DurableTokens, Isolated, Restart];
    token_stays_the_same_while_held [Fencing];
    token_is_what_inspect_tells [Fencing, Inspect];
}

/// Checks that each token is greater than all before it.
#[derive(Debug, Default)]
struct Growing(Option<FencingToken>);

impl Growing {
    fn see(&mut self, guard: &LockGuard) -> Outcome {
        let Some(token) = guard.token() else { fail!("the backend declares fencing, and the guard has no token") };
        self.see_token(token)
    }

    fn see_token(&mut self, token: FencingToken) -> Outcome {
        match self.0.replace(token) {
            Some(last) if token <= last => Err(Stop::Fail(format!("token {token} came after {last}"))),
            _ => Ok(()),
        }
    }
}

async fn tokens_grow_with_each_acquisition(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let (name, mut tokens) = (ctx.name("each"), Growing::default());
    for _ in 0..20 {
        let guard = take(&client, &name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    Ok(())
}

async fn tokens_grow_across_clients(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 3).await?;
    let (name, mut tokens) = (ctx.name("clients"), Growing::default());
    // Uneven turns, so that a counter of each client's own falls behind.
    for turn in [0, 0, 0, 1, 0, 2, 1, 0, 0, 2] {
        let guard = take(&clients[turn], &name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    Ok(())
}

async fn tokens_grow_across_waits_and_tries(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let (name, mut tokens) = (ctx.name("mixed"), Growing::default());
    for _ in 0..6 {
        let tried = take(&a, &name).await?;
        tokens.see(&tried)?;
        let waiter = enqueue(&ctx, &b, &name, AcquireOptions::new(), 1).await?;
        tried.release().await?;
        let waited = waiter.granted().await?;
        tokens.see(&waited)?;
        waited.release().await?;
        let free = a.acquire(&name).await?;
        tokens.see(&free)?;
        free.release().await?;
    }
    Ok(())
}

async fn tokens_grow_across_an_expiry(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let (name, mut tokens) = (ctx.name("expiry"), Growing::default());
    let expired = take_with(&a, &name, ctx.short().without_renewal()).await?;
    tokens.see(&expired)?;
    let waiter = Waiter::start(&b, &name, ctx.short());
    loses(&expired, ctx.expiry_bound()).await?;
    let next = waiter.granted_within(ctx.expiry_bound()).await?;
    tokens.see(&next)?;
    next.release().await?;
    tokens.see(&take(&a, &name).await?)
}

async fn tokens_grow_across_a_drop(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let (name, mut tokens) = (ctx.name("drop"), Growing::default());
    for _ in 0..5 {
        let guard = becomes_free(&client, &name, PROMPT).await?;
        tokens.see(&guard)?;
        drop(guard);
    }
    Ok(())
}

async fn tokens_grow_across_a_forced_release(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let (name, mut tokens) = (ctx.name("forced"), Growing::default());
    for _ in 0..3 {
        tokens.see(&take(&a, &name).await?)?;
        b.force_release(&name).await?;
    }
    tokens.see(&becomes_free(&b, &name, PROMPT).await?)
}

async fn tokens_grow_across_a_removal(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let (name, mut tokens) = (ctx.name("removal"), Growing::default());
    for _ in 0..3 {
        let guard = becomes_free(&client, &name, PROMPT).await?;
        tokens.see(&guard)?;
        ctx.remove_entry(&name).await?;
    }
    tokens.see(&becomes_free(&client, &name, PROMPT).await?)
}

/// Nobody who has used the name is left.
async fn tokens_grow_across_a_shutdown(ctx: Ctx) -> Outcome {
    let (name, mut tokens) = (ctx.name("shutdown"), Growing::default());
    for _ in 0..3 {
        let client = ctx.connect().await?;
        for _ in 0..3 {
            let guard = take(&client, &name).await?;
            tokens.see(&guard)?;
            guard.release().await?;
        }
        client.shutdown().await?;
    }
    Ok(())
}

async fn tokens_grow_over_ten_concurrent_tasks(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 3).await?;
    let (name, tokens) = (ctx.name("tasks"), Arc::new(Mutex::new(Growing::default())));
    let mut tasks = JoinSet::new();
    for i in 0..10 {
        let (client, name, tokens) = (clients[i % clients.len()].clone(), name.clone(), Arc::clone(&tokens));
        tasks.spawn(async move {
            for _ in 0..10 {
                let guard = client.acquire(&name).await?;
                tokens.lock().unwrap_or_else(PoisonError::into_inner).see(&guard)?;
                guard.release().await?;
            }
            Ok(())
        });
    }
    all_well(tasks, PROMPT * 8).await
}

async fn tokens_grow_across_processes(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let (name, mut tokens) = (ctx.name("processes"), Growing::default());
    let guard = take(&client, &name).await?;
    tokens.see(&guard)?;
    guard.release().await?;
    let (child, token) = Child::holding(&ctx, &name).await?;
    tokens.see_token(FencingToken::new(token))?;
    child.kill().await?;
    tokens.see(&becomes_free(&client, &name, ctx.expiry_bound()).await?)
}

async fn tokens_grow_across_a_restart(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let (name, mut tokens) = (ctx.name("restart"), Growing::default());
    for _ in 0..5 {
        let guard = take(&a, &name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    ctx.restart().await?;
    for client in [&b, &a] {
        let guard = client.acquire(&name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    let fresh = ctx.connect().await?;
    tokens.see(&fresh.acquire(&name).await?)
}

async fn token_stays_the_same_while_held(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take_with(&client, &ctx.name("same"), ctx.short()).await?;
    let (token, hold) = (guard.token(), guard.hold());
    throughout("the token is the same", ctx.ttl() * 3 / 2, || guard.token() == token && hold.token() == token).await?;
    guard.release().await?;
    ensure!(hold.token() == token, "the token changed with the release");
    Ok(())
}

async fn token_is_what_inspect_tells(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("inspect");
    for _ in 0..3 {
        let guard = take(&a, &name).await?;
        let told = b.inspect(&name).await?.and_then(|info| info.token);
        ensure!(told.is_none() || told == guard.token(), "the guard's token is {:?}, inspect tells {told:?}", guard.token());
        guard.release().await?;
    }
    Ok(())
}
