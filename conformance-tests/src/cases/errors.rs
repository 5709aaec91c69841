//! Every error says what kind it is, where it arose and what to do next, and tells no secrets.

use std::time::Duration;

use lock_core::{
    AcquireOptions, DistributedLockExt, ErrorKind, LockError, LockName, Operation, RetryAdvice,
};

use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure, fail},
    context::{Ctx, tick, within},
    waiter::{becomes_free, loses, take, take_with},
};

cases! { "errors";
    time_out_has_its_context [];
    loss_has_its_context [];
    shutdown_has_its_context [];
    invalid_options_have_their_context [];
    ttl_out_of_range_is_refused [];
    zero_and_endless_bounds_are_refused [];
    oversized_metadata_is_refused [Metadata];
    invalid_names_are_refused [];
    refused_options_leave_nothing [Entries];
    messages_are_one_line [];
    debug_shows_what_is_held_and_no_secrets [];
    frozen_store_is_an_error_and_nothing_is_held [Isolated, Freeze];
    store_is_usable_again_after_a_restart [Isolated, Restart];
}

/// Checks that an error carries all of that.
fn complete(
    ctx: &Ctx,
    error: &LockError,
    kind: ErrorKind,
    operation: Operation,
    name: Option<&LockName>,
) -> Outcome {
    let backend = &*ctx.capabilities().backend;
    ensure!(
        error.kind() == kind,
        "the kind is {:?} instead of {kind:?}: {error:?}",
        error.kind()
    );
    ensure!(
        error.operation() == Some(operation),
        "the operation is {:?} instead of {operation:?}: {error:?}",
        error.operation()
    );
    ensure!(
        error.backend() == Some(backend),
        "the backend is {:?} instead of {backend}: {error:?}",
        error.backend()
    );
    ensure!(
        error.name() == name,
        "the name is {:?} instead of {name:?}: {error:?}",
        error.name()
    );
    one_line(error)?;
    no_secrets(ctx, &format!("{error} {error:?}"))
}

fn one_line(error: &LockError) -> Outcome {
    let text = error.to_string();
    ensure!(
        !text.contains('\n') && !text.ends_with('.') && !text.starts_with("error"),
        "the message is not one plain line: {text:?}"
    );
    Ok(())
}

fn no_secrets(ctx: &Ctx, text: &str) -> Outcome {
    let shown = ctx
        .harness()
        .secrets()
        .into_iter()
        .position(|secret| text.contains(&secret));
    ensure!(
        shown.is_none(),
        "a text shows the harness's secret number {shown:?}"
    );
    Ok(())
}

async fn time_out_has_its_context(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("time-out");
    let _held = take(&a, &name).await?;
    let Err(error) = b.acquire_timeout(&name, Duration::from_millis(100)).await else {
        fail!("a held lock was granted")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::TimedOut,
        Operation::Acquire,
        Some(&name),
    )?;
    ensure!(
        error.retry() == RetryAdvice::Now,
        "the advice is {:?}",
        error.retry()
    );
    Ok(())
}

async fn loss_has_its_context(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("loss");
    let guard = take_with(&client, &name, ctx.short().without_renewal()).await?;
    loses(&guard, ctx.expiry_bound()).await?;
    let Err(error) = guard.release().await else {
        fail!("the release of a lost guard succeeded")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::Lost,
        Operation::Release,
        Some(&name),
    )
}

async fn shutdown_has_its_context(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("shutdown");
    client.shutdown().await?;
    let Err(error) = client.acquire(&name).await else {
        fail!("a client that was shut down acquired")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::Shutdown,
        Operation::Acquire,
        Some(&name),
    )?;
    let Err(error) = client.try_acquire(&name).await else {
        fail!("a client that was shut down acquired")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::Shutdown,
        Operation::TryAcquire,
        Some(&name),
    )
}

async fn invalid_options_have_their_context(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("options");
    let options = AcquireOptions::new().with_ttl(Duration::ZERO);
    let Err(error) = client.acquire_with(&name, options.clone()).await else {
        fail!("a TTL of zero was accepted")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::InvalidOptions,
        Operation::Acquire,
        Some(&name),
    )?;
    ensure!(
        error.retry() == RetryAdvice::Never,
        "the advice is {:?}",
        error.retry()
    );
    let Err(error) = client.try_acquire_with(&name, options).await else {
        fail!("a TTL of zero was accepted")
    };
    complete(
        &ctx,
        &error,
        ErrorKind::InvalidOptions,
        Operation::TryAcquire,
        Some(&name),
    )
}

/// Checks that both ways to acquire refuse the options, and that nothing is held afterwards.
async fn are_refused(ctx: &Ctx, all: impl IntoIterator<Item = AcquireOptions>) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("refused");
    for options in all {
        let acquired = within(PROMPT, client.acquire_with(&name, options.clone())).await;
        invalid(&options, acquired.map(|outcome| outcome.map(drop)))?;
        let tried = within(PROMPT, client.try_acquire_with(&name, options.clone())).await;
        invalid(&options, tried.map(|outcome| outcome.map(drop)))?;
        take(&client, &name).await?.release().await?;
    }
    Ok(())
}

fn invalid(options: &AcquireOptions, outcome: Option<Result<(), LockError>>) -> Outcome {
    match outcome {
        Some(Err(error)) if error.kind() == ErrorKind::InvalidOptions => one_line(&error),
        other => {
            fail!("{options:?} should be refused as invalid options, and ended with {other:?}")
        }
    }
}

async fn ttl_out_of_range_is_refused(ctx: Ctx) -> Outcome {
    let range = ctx.capabilities().ttl;
    let below = range.min.saturating_sub(Duration::from_nanos(1));
    let above = range.max.saturating_add(Duration::from_millis(1));
    are_refused(
        &ctx,
        [Duration::ZERO, below, above, Duration::MAX]
            .map(|ttl| AcquireOptions::new().with_ttl(ttl)),
    )
    .await
}

async fn zero_and_endless_bounds_are_refused(ctx: Ctx) -> Outcome {
    let new = AcquireOptions::new;
    let max_holds = [Duration::ZERO, Duration::MAX].map(|most| new().with_max_hold(most));
    let timeouts = [Duration::ZERO, Duration::MAX].map(|timeout| new().with_timeout(timeout));
    are_refused(&ctx, max_holds.into_iter().chain(timeouts)).await
}

async fn oversized_metadata_is_refused(ctx: Ctx) -> Outcome {
    are_refused(
        &ctx,
        [AcquireOptions::new().with_metadata("x".repeat(AcquireOptions::MAX_METADATA + 1))],
    )
    .await
}

async fn invalid_names_are_refused(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let long = "x".repeat(LockName::MAX_LEN + 1);
    for name in ["", "a\0b", "a\nb", "\u{1b}[0m", "\u{7f}", long.as_str()] {
        let outcomes = [
            client.acquire(name).await.map(drop),
            client.try_acquire(name).await.map(drop),
            client
                .acquire_timeout(name, Duration::from_secs(1))
                .await
                .map(drop),
            client
                .with_lock(name, AcquireOptions::new(), |_| async {})
                .await,
        ];
        for outcome in outcomes {
            match outcome {
                Err(error) if error.kind() == ErrorKind::InvalidName => one_line(&error)?,
                other => fail!("the name {name:?} should be refused, and ended with {other:?}"),
            }
        }
    }
    Ok(())
}

async fn refused_options_leave_nothing(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("refused");
    for _ in 0..5 {
        ensure!(
            client
                .acquire_with(&name, AcquireOptions::new().with_ttl(Duration::ZERO))
                .await
                .is_err(),
            "a TTL of zero was accepted"
        );
    }
    let left = ctx.entries(&name).await?;
    ensure!(left.is_empty(), "refused options left {left:?}");
    Ok(())
}

async fn messages_are_one_line(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("one-line");
    let guard = take(&client, &name).await?;
    let outcomes = [
        client
            .acquire_timeout(&name, Duration::from_millis(20))
            .await
            .map(drop),
        client
            .acquire_with(&name, AcquireOptions::new().with_ttl(Duration::MAX))
            .await
            .map(drop),
        client
            .acquire_with(
                &name,
                AcquireOptions::new()
                    .with_mode(lock_core::Mode::Shared)
                    .with_timeout(Duration::from_millis(20)),
            )
            .await
            .map(drop),
    ];
    for error in outcomes.into_iter().filter_map(Result::err) {
        one_line(&error)?;
    }
    Ok(guard.release().await?)
}

async fn debug_shows_what_is_held_and_no_secrets(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("debug");
    let guard = take(&client, &name).await?;
    let shown = format!("{guard:?} {guard:#?}");
    let hold = format!("{:?}", guard.view());
    ensure!(
        shown.contains(name.as_str()) && hold.contains(name.as_str()),
        "the guard's debug output lacks its name: {shown}"
    );
    let client_shown = format!("{client:?} {client:#?}");
    ensure!(
        !client_shown.trim().is_empty(),
        "the client's debug output is empty"
    );
    no_secrets(&ctx, &format!("{shown} {hold} {client_shown}"))?;
    Ok(guard.release().await?)
}

async fn frozen_store_is_an_error_and_nothing_is_held(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let tried = ctx.name("tried");
    let inspected = ctx.name("inspected");
    ctx.freeze().await?;
    let bound = Duration::from_secs(30);
    let outcome = within(bound, a.try_acquire(&tried)).await;
    let inspected = match ctx.capabilities().inspect {
        true => within(bound, a.inspect(&inspected))
            .await
            .map(|outcome| outcome.map(drop)),
        false => Some(Err(LockError::new(ErrorKind::Unavailable, "not asked"))),
    };
    ctx.thaw().await?;
    match outcome {
        Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {
            complete(
                &ctx,
                &error,
                ErrorKind::Unavailable,
                Operation::TryAcquire,
                Some(&tried),
            )?;
            ensure!(
                error.retry() == RetryAdvice::Later,
                "the advice is {:?}",
                error.retry()
            );
        }
        other => fail!("a try on a frozen store ended with {other:?}"),
    }
    ensure!(
        matches!(inspected, Some(Err(_))),
        "inspecting a frozen store ended with {inspected:?}"
    );
    // The request may take effect now; then it must be undone long before its TTL has passed.
    Ok(becomes_free(&b, &tried, PROMPT * 2)
        .await?
        .release()
        .await?)
}

async fn store_is_usable_again_after_a_restart(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let name = ctx.name("usable");
    take(&client, &name).await?.release().await?;
    for _ in 0..2 {
        ctx.restart().await?;
        let again = within(PROMPT * 2, async {
            loop {
                match client.acquire_with(&name, ctx.short()).await {
                    Ok(guard) => return Ok(guard),
                    Err(error) if error.retry() == RetryAdvice::Never => {
                        return Err(Stop::from(error));
                    }
                    Err(_) => tick().await,
                }
            }
        });
        let Some(guard) = again.await else {
            fail!("the client was not usable after the restart")
        };
        guard?.release().await?;
    }
    Ok(())
}
