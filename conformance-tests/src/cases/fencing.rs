//! Tokens are strictly increasing per name, for as long as declared.

use std::sync::{Arc, Mutex, PoisonError};

use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, FencingToken, LockGuard};
use tokio::task::JoinSet;

use super::exclusion::{all_well, connect_many};
use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure, fail},
    child::Child,
    context::{Ctx, throughout, tick},
    waiter::{Waiter, becomes_free, enqueue, loses, take, take_with},
};

cases! { "fencing";
    a_raised_token_is_continued [RaiseToken];
    a_token_is_raised_above_those_who_wait [RaiseToken];
    a_lost_guard_raises_nothing [RaiseToken];
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

fn token_of(guard: &LockGuard) -> Result<FencingToken, Stop> {
    guard.token().ok_or_else(|| {
        Stop::Fail(format!(
            "fencing is declared, and this guard has no token: {guard:?}"
        ))
    })
}

/// Checks that each token is greater than all before it.
#[derive(Debug, Default)]
struct Growing(Option<FencingToken>);

impl Growing {
    fn see(&mut self, guard: &LockGuard) -> Outcome {
        let Some(token) = guard.token() else {
            fail!("the backend declares fencing, and the guard has no token")
        };
        self.see_token(token)
    }

    fn see_token(&mut self, token: FencingToken) -> Outcome {
        match self.0.replace(token) {
            Some(last) if token <= last => {
                Err(Stop::Fail(format!("token {token} came after {last}")))
            }
            _ => Ok(()),
        }
    }
}

async fn tokens_grow_with_each_acquisition(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("each");
    let mut tokens = Growing::default();
    for _ in 0..20 {
        let guard = take(&client, &name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    Ok(())
}

async fn tokens_grow_across_clients(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 3).await?;
    let name = ctx.name("clients");
    let mut tokens = Growing::default();
    // Uneven turns, so that a counter kept by each client for itself falls behind.
    for turn in [0, 0, 0, 1, 0, 2, 1, 0, 0, 2] {
        let guard = take(&clients[turn], &name).await?;
        tokens.see(&guard)?;
        guard.release().await?;
    }
    Ok(())
}

async fn tokens_grow_across_waits_and_tries(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("mixed");
    let mut tokens = Growing::default();
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
    let name = ctx.name("expiry");
    let mut tokens = Growing::default();
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
    let name = ctx.name("drop");
    let mut tokens = Growing::default();
    for _ in 0..5 {
        let guard = becomes_free(&client, &name, PROMPT).await?;
        tokens.see(&guard)?;
        drop(guard);
    }
    Ok(())
}

async fn tokens_grow_across_a_forced_release(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("forced");
    let mut tokens = Growing::default();
    for _ in 0..3 {
        tokens.see(&take(&a, &name).await?)?;
        b.force_release(&name).await?;
    }
    tokens.see(&becomes_free(&b, &name, PROMPT).await?)
}

async fn tokens_grow_across_a_removal(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("removal");
    let mut tokens = Growing::default();
    for _ in 0..3 {
        let guard = becomes_free(&client, &name, PROMPT).await?;
        tokens.see(&guard)?;
        ctx.remove_entry(&name).await?;
    }
    tokens.see(&becomes_free(&client, &name, PROMPT).await?)
}

/// No client that used the name before is left.
async fn tokens_grow_across_a_shutdown(ctx: Ctx) -> Outcome {
    let name = ctx.name("shutdown");
    let mut tokens = Growing::default();
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
    let name = ctx.name("tasks");
    let tokens = Arc::new(Mutex::new(Growing::default()));
    let mut tasks = JoinSet::new();
    for i in 0..10 {
        let client = clients[i % clients.len()].clone();
        let name = name.clone();
        let tokens = Arc::clone(&tokens);
        tasks.spawn(async move {
            for _ in 0..10 {
                let guard = client.acquire(&name).await?;
                tokens
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .see(&guard)?;
                guard.release().await?;
            }
            Ok(())
        });
    }
    all_well(tasks, PROMPT * 8).await
}

async fn tokens_grow_across_processes(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("processes");
    let mut tokens = Growing::default();
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
    let name = ctx.name("restart");
    let mut tokens = Growing::default();
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
    let token = guard.token();
    let hold = guard.view();
    throughout("the token is the same", ctx.ttl() * 3 / 2, || {
        guard.token() == token && hold.token() == token
    })
    .await?;
    guard.release().await?;
    ensure!(hold.token() == token, "the token changed with the release");
    Ok(())
}

async fn token_is_what_inspect_tells(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("inspect");
    for _ in 0..3 {
        let guard = take(&a, &name).await?;
        let told = b.inspect(&name).await?.and_then(|info| info.holder().token);
        ensure!(
            told.is_none() || told == guard.token(),
            "the guard's token is {:?}, inspect tells {told:?}",
            guard.token()
        );
        guard.release().await?;
    }
    Ok(())
}

async fn a_raised_token_is_continued(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("raised");
    let guard = take(&a, &name).await?;
    let own = token_of(&guard)?;
    let goal = FencingToken::new(own.as_u64() + 1_000_000);
    let raised = guard.raise_token(goal).await?;
    ensure!(
        raised >= goal && guard.token() == Some(raised),
        "raised to {goal}: {raised} was returned, the guard has {:?}",
        guard.token()
    );
    if ctx.capabilities().inspect {
        let told = b.inspect(&name).await?.and_then(|info| info.holder().token);
        ensure!(
            told.is_none_or(|told| told == raised),
            "the token was raised to {raised}, inspect tells {told:?}"
        );
    }
    let lower = guard.raise_token(own).await?;
    ensure!(
        lower == raised,
        "asked for {own} again, a token of {raised} became {lower}"
    );
    guard.release().await?;
    let next = take(&b, &name).await?;
    ensure!(
        token_of(&next)? > raised,
        "after {raised} came {:?}",
        next.token()
    );
    Ok(next.release().await?)
}

async fn a_token_is_raised_above_those_who_wait(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("raised-above");
    let guard = take(&a, &name).await?;
    let waiters = [
        enqueue(&ctx, &a, &name, AcquireOptions::new(), 1).await?,
        enqueue(&ctx, &b, &name, AcquireOptions::new(), 2).await?,
    ];
    let mut last = guard
        .raise_token(FencingToken::new(token_of(&guard)?.as_u64() + 1_000_000))
        .await?;
    guard.release().await?;
    let mut waiters = Vec::from(waiters);
    while !waiters.is_empty() {
        let Some(granted) = waiters.iter().position(|waiter| !waiter.is_pending()) else {
            tick().await;
            continue;
        };
        let next = waiters.swap_remove(granted).granted().await?;
        ensure!(
            token_of(&next)? > last,
            "after {last} came {:?}",
            next.token()
        );
        last = token_of(&next)?;
        next.release().await?;
    }
    Ok(())
}

async fn a_lost_guard_raises_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("raised-late");
    let guard = take_with(&a, &name, ctx.short().without_renewal()).await?;
    let next = becomes_free(&b, &name, ctx.expiry_bound()).await?;
    let token = token_of(&next)?;
    match guard
        .raise_token(FencingToken::new(token.as_u64() + 1_000_000))
        .await
    {
        Err(error) if error.kind() == ErrorKind::Lost => {}
        other => fail!("a guard that has ended raised its token: {other:?}"),
    }
    next.release().await?;
    let last = take(&b, &name).await?;
    ensure!(
        token_of(&last)?.as_u64() < token.as_u64() + 1_000_000,
        "the old guard has raised the counter: {:?}",
        last.token()
    );
    Ok(last.release().await?)
}
