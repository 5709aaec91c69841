//! The contents of the store and of the runtime return to their baseline.

use std::time::Duration;

use lock_core::{AcquireOptions, DistributedLockExt, GuardState};
use tokio::task::JoinSet;

use super::exclusion::all_well;
use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure},
    context::{Client, Ctx, eventually, tick, within},
    waiter::{Waiter, becomes_free, enqueue, loses, queued, take, take_with},
};

cases! { "leaks";
    twenty_failed_tries_leave_nothing [Entries];
    idle_names_leave_nothing [Entries];
    expired_locks_leave_nothing [Entries];
    cycles_leave_no_residue [Isolated, Residue];
    failed_tries_leave_no_residue [Isolated, Residue];
    timed_out_waits_leave_no_residue [Isolated, Residue];
    dropped_waits_leave_no_residue [Isolated, Residue];
    lost_guards_leave_no_residue [Isolated, Residue];
    kept_views_leave_no_residue [Isolated, Residue];
    shutdown_leaves_no_residue [Isolated, Residue];
    runtime_tasks_return_to_the_baseline [Isolated];
}

async fn twenty_failed_tries_leave_nothing(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("tries");
    let held = take(&a, &name).await?;
    let baseline = ctx.entries(&name).await?.len();
    for _ in 0..20 {
        ensure!(
            b.try_acquire(&name).await?.is_none(),
            "a held lock was granted"
        );
        let left = ctx.entries(&name).await?;
        ensure!(
            left.len() == baseline,
            "a failed try left an entry: {left:?}"
        );
    }
    held.release().await?;
    let left = ctx.entries(&name).await?;
    ensure!(left.is_empty(), "after the release there are {left:?}");
    Ok(())
}

async fn idle_names_leave_nothing(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let names: Vec<_> = (0..100).map(|i| ctx.name(&format!("idle-{i}"))).collect();
    for name in &names {
        take(&client, name).await?.release().await?;
    }
    for name in &names {
        let left = ctx.entries(name).await?;
        ensure!(left.is_empty(), "the idle name `{name}` has {left:?}");
    }
    Ok(())
}

async fn expired_locks_leave_nothing(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("expired");
    let guard = take_with(&client, &name, ctx.short().without_renewal()).await?;
    loses(&guard, ctx.expiry_bound()).await?;
    // The holder does nothing more about it.
    let gone = within(ctx.expiry_bound(), async {
        while !ctx.entries(&name).await?.is_empty() {
            tick().await;
        }
        Ok(())
    });
    gone.await
        .unwrap_or_else(|| Err(Stop::Fail("an expired lock left an entry".into())))
}

/// Makes a client on a store of its own, lets it do everything once, and returns its baseline.
async fn warm(ctx: &Ctx) -> Result<(Ctx, Client, usize), Stop> {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let name = ctx.name("warm-up");
    let held = take(&client, &name).await?;
    enqueue(&ctx, &client, &name, AcquireOptions::new(), 1)
        .await?
        .give_up()
        .await;
    held.release().await?;
    becomes_free(&client, &name, PROMPT)
        .await?
        .release()
        .await?;
    // The count settles once the client has been idle for a moment.
    let baseline = within(PROMPT, async {
        let mut last = ctx.residue().await?;
        for _ in 0..20 {
            tick().await;
            last = last.min(ctx.residue().await?);
        }
        Ok::<_, Stop>(last)
    });
    let baseline = baseline
        .await
        .unwrap_or_else(|| Err(Stop::Fail("the residue cannot be read".into())))?;
    Ok((ctx, client, baseline))
}

async fn cycles_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    for i in 0..100 {
        take(&client, &ctx.name(&format!("cycle-{i}")))
            .await?
            .release()
            .await?;
    }
    let name = ctx.name("dropped");
    for _ in 0..20 {
        drop(becomes_free(&client, &name, PROMPT).await?);
    }
    ctx.residue_comes_down_to(baseline).await
}

async fn failed_tries_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let held = take(&client, &ctx.name("tries")).await?;
    for _ in 0..50 {
        ensure!(
            client.try_acquire(held.name()).await?.is_none(),
            "a held lock was granted"
        );
    }
    held.release().await?;
    ctx.residue_comes_down_to(baseline).await
}

async fn timed_out_waits_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let held = take(&client, &ctx.name("waits")).await?;
    let mut waits = JoinSet::new();
    for i in 0..50 {
        let client = client.clone();
        let name = held.name().clone();
        waits.spawn(async move {
            let timeout = Duration::from_millis(20 + i);
            ensure!(
                client.acquire_timeout(&name, timeout).await.is_err(),
                "a held lock was granted"
            );
            Ok(())
        });
    }
    all_well(waits, PROMPT * 2).await?;
    held.release().await?;
    ctx.residue_comes_down_to(baseline).await
}

async fn dropped_waits_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let held = take(&client, &ctx.name("dropped")).await?;
    let waiters: Vec<_> = (0..50)
        .map(|_| Waiter::start(&client, held.name(), AcquireOptions::new()))
        .collect();
    queued(&ctx, &client, held.name(), 50).await?;
    for waiter in waiters {
        waiter.give_up().await;
    }
    held.release().await?;
    ctx.residue_comes_down_to(baseline).await
}

async fn lost_guards_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let mut guards = Vec::new();
    for i in 0..10 {
        guards.push(
            take_with(
                &client,
                &ctx.name(&format!("lost-{i}")),
                ctx.short().without_renewal(),
            )
            .await?,
        );
    }
    for guard in &guards {
        loses(guard, ctx.expiry_bound()).await?;
    }
    drop(guards);
    ctx.residue_comes_down_to(baseline).await
}

async fn kept_views_leave_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let mut views = Vec::new();
    for (i, options) in [
        AcquireOptions::new(),
        ctx.short(),
        ctx.short().without_renewal(),
    ]
    .into_iter()
    .enumerate()
    {
        let guard = take_with(&client, &ctx.name(&format!("viewed-{i}")), options).await?;
        views.push(guard.view());
        guard.release().await?;
    }
    ctx.residue_comes_down_to(baseline).await?;
    ensure!(
        views
            .iter()
            .all(|view| view.state() == GuardState::Released),
        "a view does not tell the release"
    );
    Ok(())
}

async fn shutdown_leaves_no_residue(ctx: Ctx) -> Outcome {
    let (ctx, client, baseline) = warm(&ctx).await?;
    let other = ctx.connect().await?;
    let mut guards = Vec::new();
    for i in 0..10 {
        guards.push(take(&other, &ctx.name(&format!("shutdown-{i}"))).await?);
    }
    let _waiter = enqueue(&ctx, &other, guards[0].name(), AcquireOptions::new(), 1).await?;
    other.shutdown().await?;
    drop(guards);
    ctx.residue_comes_down_to(baseline).await?;
    client.shutdown().await?;
    ctx.residue_comes_down_to(baseline).await
}

/// Counted by the runtime itself.
async fn runtime_tasks_return_to_the_baseline(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let client = ctx.connect().await?;
    let work = |rounds: usize| {
        let ctx = ctx.clone();
        let client = client.clone();
        async move {
            for round in 0..rounds {
                let name = ctx.name(&format!("tasks-{round}"));
                let held = take(&client, &name).await?;
                enqueue(&ctx, &client, &name, AcquireOptions::new(), 1)
                    .await?
                    .give_up()
                    .await;
                let _ = client
                    .acquire_timeout(&name, Duration::from_millis(5))
                    .await;
                drop(held);
                becomes_free(&client, &name, PROMPT)
                    .await?
                    .release()
                    .await?;
            }
            Ok::<_, Stop>(())
        }
    };
    // The same names, because where several servers share them a client connects to each server
    // when it first needs it.
    work(20).await?;
    let metrics = tokio::runtime::Handle::current().metrics();
    let mut baseline = metrics.num_alive_tasks();
    for _ in 0..20 {
        tick().await;
        baseline = baseline.min(metrics.num_alive_tasks());
    }
    work(20).await?;
    let back = eventually("the tasks end", PROMPT, || {
        metrics.num_alive_tasks() <= baseline
    })
    .await;
    back.map_err(|_| {
        Stop::Fail(format!(
            "{} tasks are alive, the baseline was {baseline}",
            metrics.num_alive_tasks()
        ))
    })
}
