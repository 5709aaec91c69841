//! The negative twin of every missing capability: asking for it is a clear error, and leaves
//! nothing held.

use std::time::Duration;

use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, FencingToken, LockError, Mode,
    Operation,
};

use crate::{
    case::{Outcome, cases, ensure, fail},
    context::Ctx,
    waiter::take,
};

cases! { "unsupported";
    inspect_is_refused [NoInspect];
    force_release_is_refused [NoForceRelease];
    watch_is_refused [NoWatch];
    list_is_refused [NoList];
    raising_a_token_is_refused [NoRaiseToken];
    metadata_is_refused [NoMetadata];
    shared_mode_is_refused [NoSharedMode];
    guards_have_no_token [NoFencing];
    queue_length_is_not_told [NoQueueLength];
    capabilities_are_consistent [];
}

fn refused<T: std::fmt::Debug>(
    ctx: &Ctx,
    outcome: Result<T, LockError>,
    operation: Operation,
) -> Outcome {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            ensure!(
                error.backend() == Some(&*ctx.capabilities().backend),
                "the error does not name the backend: {error:?}"
            );
            ensure!(
                error.operation() == Some(operation),
                "the error does not name the operation {operation}: {error:?}"
            );
            Ok(())
        }
        other => fail!("the backend lacks it, and {operation} ended with {other:?}"),
    }
}

async fn inspect_is_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    refused(
        &ctx,
        client.inspect(&ctx.name("inspect")).await,
        Operation::Inspect,
    )
}

async fn force_release_is_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("force")).await?;
    refused(
        &ctx,
        client.force_release(guard.name()).await,
        Operation::ForceRelease,
    )?;
    ensure!(!guard.is_lost(), "a refused force-release lost the guard");
    Ok(guard.release().await?)
}

async fn watch_is_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    refused(
        &ctx,
        client.watch(&ctx.name("watch")).await,
        Operation::Watch,
    )
}

async fn list_is_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    refused(&ctx, client.list("").await, Operation::List)
}

async fn raising_a_token_is_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("raise")).await?;
    let token = guard.token();
    refused(
        &ctx,
        guard.raise_token(FencingToken::new(u64::MAX / 4)).await,
        Operation::RaiseToken,
    )?;
    ensure!(
        guard.token() == token && !guard.is_lost(),
        "what was refused has changed the guard: {guard:?}"
    );
    Ok(guard.release().await?)
}

async fn option_is_refused(ctx: Ctx, options: AcquireOptions) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("option");
    let options = options.with_timeout(Duration::from_secs(2));
    refused(
        &ctx,
        client.acquire_with(&name, options.clone()).await,
        Operation::Acquire,
    )?;
    refused(
        &ctx,
        client.try_acquire_with(&name, options).await,
        Operation::TryAcquire,
    )?;
    Ok(take(&client, &name).await?.release().await?)
}

async fn metadata_is_refused(ctx: Ctx) -> Outcome {
    option_is_refused(ctx, AcquireOptions::new().with_metadata("note")).await
}

async fn shared_mode_is_refused(ctx: Ctx) -> Outcome {
    option_is_refused(ctx, AcquireOptions::new().with_mode(Mode::Shared)).await
}

async fn guards_have_no_token(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("token")).await?;
    ensure!(
        guard.token().is_none(),
        "the backend declares no fencing, and hands out {:?}",
        guard.token()
    );
    Ok(guard.release().await?)
}

async fn queue_length_is_not_told(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let guard = take(&client, &ctx.name("length")).await?;
    let told = client
        .inspect(guard.name())
        .await?
        .and_then(|info| info.waiters);
    ensure!(
        told.is_none(),
        "the backend declares no queue length, and tells {told:?}"
    );
    Ok(guard.release().await?)
}

async fn capabilities_are_consistent(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let declared = ctx.capabilities();
    let seen = client.capabilities();
    ensure!(
        *declared == seen,
        "the harness declares {declared:?}, the client {seen:?}"
    );
    ensure!(
        seen.ttl.min > Duration::ZERO && seen.ttl.min <= seen.ttl.max,
        "the TTL range is empty: {:?}",
        seen.ttl
    );
    ensure!(
        !seen.raise_token || seen.fencing.is_some(),
        "tokens can be raised, and there are none"
    );
    ensure!(
        !seen.queue_length || seen.inspect,
        "the queue length is declared, and inspect is not"
    );
    Ok(())
}
