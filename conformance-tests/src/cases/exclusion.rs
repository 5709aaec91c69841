//! Validity intervals of two guards on one name never overlap.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_core::{AcquireOptions, DistributedLockExt, LockName};
use rand::{RngExt, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    case::{Outcome, PROMPT, Stop, cases, ensure},
    child::Child,
    context::{Client, Ctx, throughout, tick},
    seed,
    waiter::{Waiter, becomes_free, refused, take, take_with},
};

cases! { "exclusion";
    held_name_is_refused [];
    other_name_is_free [];
    name_is_free_right_after_each_release [];
    second_client_waits_and_then_holds [];
    two_acquisitions_of_one_client_exclude_each_other [];
    failed_tries_leave_the_holder_renewed [];
    second_name_leaves_the_first_held [];
    of_many_concurrent_tries_at_most_one_succeeds [];
    hundred_contenders_are_never_two_inside [];
    unprotected_counter_is_exact [];
    recorded_intervals_do_not_overlap [];
    restart_of_the_store_makes_no_second_holder [Isolated, Restart];
    other_process_is_excluded [OtherProcess];
}

async fn held_name_is_refused(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("held");
    let guard = take(&a, &name).await?;
    refused(&b, &name).await?;
    refused(&b, &name).await?;
    ensure!(
        !guard.is_lost(),
        "a refused try disturbed the holder: {:?}",
        guard.state()
    );
    Ok(guard.release().await?)
}

async fn other_name_is_free(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let held = take(&a, &ctx.name("one")).await?;
    let other = take(&b, &ctx.name("two")).await?;
    held.release().await?;
    Ok(other.release().await?)
}

async fn name_is_free_right_after_each_release(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("again");
    for round in 0..10 {
        let client = if round % 2 == 0 { &a } else { &b };
        take(client, &name).await?.release().await?;
    }
    Ok(())
}

async fn second_client_waits_and_then_holds(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("second");
    let first = take(&a, &name).await?;
    let waiter = Waiter::start(&b, &name, AcquireOptions::new());
    throughout(
        "the second client waits",
        Duration::from_millis(200),
        || waiter.is_pending(),
    )
    .await?;
    first.release().await?;
    let second = waiter.granted().await?;
    refused(&a, &name).await?;
    Ok(second.release().await?)
}

async fn two_acquisitions_of_one_client_exclude_each_other(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("one-client");
    let first = take(&client, &name).await?;
    refused(&client, &name).await?;
    let waiter = Waiter::start(&client, &name, AcquireOptions::new());
    throughout(
        "the second acquisition waits",
        Duration::from_millis(200),
        || waiter.is_pending(),
    )
    .await?;
    let owner = first.owner().clone();
    first.release().await?;
    let second = waiter.granted().await?;
    ensure!(
        *second.owner() != owner,
        "two acquisitions have the same owner id {owner}"
    );
    Ok(second.release().await?)
}

async fn failed_tries_leave_the_holder_renewed(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("renewed");
    let guard = take_with(&a, &name, ctx.short()).await?;
    for client in [&a, &b] {
        ensure!(
            client.try_acquire_with(&name, ctx.short()).await?.is_none(),
            "a held lock was granted again"
        );
        let timeout = Duration::from_millis(50);
        ensure!(
            client
                .acquire_with(&name, ctx.short().with_timeout(timeout))
                .await
                .is_err(),
            "a held lock was granted again"
        );
    }
    throughout("the holder holds", ctx.ttl() * 2, || !guard.is_lost()).await?;
    refused(&b, &name).await?;
    Ok(guard.release().await?)
}

async fn second_name_leaves_the_first_held(ctx: Ctx) -> Outcome {
    let (a, b) = ctx.connect_two().await?;
    let one = ctx.name("first");
    let two = ctx.name("first-and-second");
    let first = take(&a, &one).await?;
    let second = take(&a, &two).await?;
    refused(&b, &one).await?;
    second.release().await?;
    refused(&b, &one).await?;
    ensure!(!first.is_lost(), "releasing the second name lost the first");
    Ok(first.release().await?)
}

async fn of_many_concurrent_tries_at_most_one_succeeds(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 4).await?;
    for round in 0..5 {
        let name = ctx.name(&format!("tries-{round}"));
        let mut tries = JoinSet::new();
        for i in 0..20 {
            let client = clients[i % clients.len()].clone();
            let name = name.clone();
            tries.spawn(async move { client.try_acquire(&name).await });
        }
        let mut granted = Vec::new();
        while let Some(outcome) = tries.join_next().await {
            granted.extend(outcome.map_err(|error| Stop::Fail(error.to_string()))??);
        }
        ensure!(
            granted.len() <= 1,
            "{} of 20 concurrent tries succeeded",
            granted.len()
        );
        drop(granted);
        becomes_free(&clients[0], &name, PROMPT)
            .await?
            .release()
            .await?;
    }
    Ok(())
}

async fn hundred_contenders_are_never_two_inside(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 4).await?;
    let name = ctx.name("hundred");
    let inside = Arc::new(AtomicBool::new(false));
    let mut contenders = JoinSet::new();
    for i in 0..100 {
        let client = clients[i % clients.len()].clone();
        let name = name.clone();
        let inside = Arc::clone(&inside);
        contenders.spawn(async move {
            let guard = client.acquire(&name).await?;
            let alone = !inside.swap(true, SeqCst);
            tokio::task::yield_now().await;
            inside.store(false, SeqCst);
            guard.release().await?;
            ensure!(alone, "two contenders were inside at once");
            Ok(())
        });
    }
    all_well(contenders, Duration::from_secs(30)).await
}

async fn unprotected_counter_is_exact(ctx: Ctx) -> Outcome {
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 10;
    let clients = connect_many(&ctx, 3).await?;
    let name = ctx.name("counter");
    let counter = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for i in 0..TASKS {
        let client = clients[i as usize % clients.len()].clone();
        let name = name.clone();
        let counter = Arc::clone(&counter);
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let guard = client.acquire(&name).await?;
                let read = counter.load(SeqCst);
                tokio::task::yield_now().await;
                counter.store(read + 1, SeqCst);
                guard.release().await?;
            }
            Ok(())
        });
    }
    all_well(tasks, Duration::from_secs(60)).await?;
    let sum = counter.load(SeqCst);
    ensure!(
        sum == TASKS * ROUNDS,
        "{} of {} increments were lost",
        TASKS * ROUNDS - sum,
        TASKS * ROUNDS
    );
    Ok(())
}

/// The time from the instant at which a guard was handed out to the last at which its holder could
/// have relied on it.
#[derive(Clone, Copy, Debug)]
struct Interval {
    from: Instant,
    until: Instant,
}

/// Lets holders release, drop, let the lock expire and give up, in a seeded mix.
async fn recorded_intervals_do_not_overlap(ctx: Ctx) -> Outcome {
    let clients = connect_many(&ctx, 3).await?;
    let name = ctx.name("history");
    let history = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for seed in 0..8 {
        let ctx = ctx.clone();
        let client = clients[seed as usize % clients.len()].clone();
        let name = name.clone();
        let history = Arc::clone(&history);
        tasks.spawn(async move {
            let mut random = seed::random(seed);
            for _ in 0..8 {
                if let Some(interval) = hold_somehow(&ctx, &client, &name, &mut random).await? {
                    history
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(interval);
                }
            }
            Ok(())
        });
    }
    all_well(tasks, Duration::from_secs(80)).await?;
    let mut history = std::mem::take(&mut *history.lock().unwrap_or_else(PoisonError::into_inner));
    history.sort_by_key(|interval| interval.from);
    ensure!(
        history.len() >= 8,
        "only {} acquisitions of 64 succeeded",
        history.len()
    );
    match history.windows(2).find(|pair| pair[1].from < pair[0].until) {
        Some(pair) => Err(Stop::Fail(format!("two holders at once: {pair:?}"))),
        None => Ok(()),
    }
}

async fn hold_somehow(
    ctx: &Ctx,
    client: &Client,
    name: &LockName,
    random: &mut StdRng,
) -> Result<Option<Interval>, Stop> {
    let runs_out = random.random_ratio(1, 12);
    let mut options = ctx
        .short()
        .with_timeout(Duration::from_millis(random.random_range(1..2000)));
    if runs_out {
        options = options.without_renewal();
    }
    let Ok(guard) = client.acquire_with(name, options).await else {
        return Ok(None);
    };
    let from = Instant::now();
    tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    if runs_out {
        // Read before the clock: the interval ends at the last instant at which the guard was seen
        // to be valid.
        let mut until = from;
        while !guard.is_lost() {
            until = Instant::now();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        return Ok(Some(Interval { from, until }));
    }
    let until = Instant::now();
    if random.random_ratio(1, 2) {
        let _ = guard.release().await;
    } else {
        drop(guard);
    }
    Ok(Some(Interval { from, until }))
}

async fn restart_of_the_store_makes_no_second_holder(ctx: Ctx) -> Outcome {
    let ctx = ctx.isolated().await?;
    let (a, b) = ctx.connect_two().await?;
    let name = ctx.name("restart");
    let guard = take_with(&a, &name, ctx.short()).await?;
    ctx.restart().await?;
    let waiter = Waiter::start(&b, &name, ctx.short());
    // A store that forgot the lock may grant it again, but not while the first guard is valid.
    let hold = guard.view();
    let end = Instant::now() + ctx.ttl() * 2;
    while waiter.is_pending() && !hold.is_lost() && Instant::now() < end {
        tick().await;
    }
    ensure!(
        waiter.is_pending() || hold.is_lost(),
        "the restart made a second holder while {:?} remained",
        hold.remaining()
    );
    let _ = guard.release().await;
    drop(waiter.granted_within(ctx.expiry_bound() + PROMPT).await?);
    Ok(())
}

async fn other_process_is_excluded(ctx: Ctx) -> Outcome {
    let client = ctx.connect().await?;
    let name = ctx.name("process");
    let guard = take(&client, &name).await?;
    let mut child = Child::asking(&ctx, &name).await?;
    refused(&client, &name).await?;
    guard.release().await?;
    child.granted(PROMPT).await?;
    refused(&client, &name).await?;
    child.kill().await
}

pub(super) async fn connect_many(ctx: &Ctx, count: usize) -> Result<Vec<Client>, Stop> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(ctx.connect().await?);
    }
    Ok(clients)
}

/// Waits for all tasks; the first failure fails the case.
pub(super) async fn all_well(mut tasks: JoinSet<Outcome>, bound: Duration) -> Outcome {
    let all = async {
        while let Some(outcome) = tasks.join_next().await {
            outcome.map_err(|error| Stop::Fail(format!("a task panicked: {error}")))??;
        }
        Ok(())
    };
    tokio::time::timeout(bound, all)
        .await
        .unwrap_or_else(|_| Err(Stop::Fail(format!("not done within {bound:?}"))))
}
