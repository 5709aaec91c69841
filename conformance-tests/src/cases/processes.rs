//! Processes exclude each other, and one that dies at any moment leaves nothing locked.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::{
    case::{Outcome, Stop, cases, ensure, fail},
    child::{Child, ENDLESS, Interval},
    context::Ctx,
    seed,
    waiter::becomes_free,
};

cases! { "processes";
    contending_processes_are_never_two_inside [OtherProcess];
    processes_killed_at_any_moment_leave_their_names_free [OtherProcess];
}

async fn contending_processes_are_never_two_inside(ctx: Ctx) -> Outcome {
    const PROCESSES: usize = 3;
    const ROUNDS: usize = 20;
    let name = ctx.name("contended");
    let mut children = Vec::new();
    for _ in 0..PROCESSES {
        children.push(Child::contending(&ctx, &name, ROUNDS).await?);
    }
    let bound = Instant::now() + Duration::from_secs(60);
    let mut held = Vec::new();
    let mut unfinished = 0;
    for child in &mut children {
        let (intervals, done) = child.intervals(bound - Instant::now()).await;
        held.extend(intervals);
        unfinished += usize::from(!done);
    }
    held.sort_unstable();
    if let Some([first, second]) = overlap(&held) {
        fail!(
            "two processes held the lock at once, for {:?}; {} grants were seen",
            first.until.min(second.until) - second.from,
            held.len()
        );
    }
    ensure!(
        unfinished == 0,
        "{unfinished} of {PROCESSES} processes did not finish; {} of {} grants were seen",
        held.len(),
        PROCESSES * ROUNDS
    );
    Ok(())
}

fn overlap(held: &[Interval]) -> Option<[Interval; 2]> {
    let pairs = held.windows(2).map(|pair| [pair[0], pair[1]]);
    pairs
        .into_iter()
        .find(|[first, second]| second.from < first.until)
}

/// An entry that is written in one step and gets its TTL in another stays for ever when the process
/// dies in between.
async fn processes_killed_at_any_moment_leave_their_names_free(ctx: Ctx) -> Outcome {
    const PROCESSES: usize = 6;
    let client = ctx.connect().await?;
    let names: Vec<_> = (0..PROCESSES)
        .map(|i| ctx.name(&format!("killed-{i}")))
        .collect();
    let mut children = Vec::new();
    for name in &names {
        children.push(Child::contending(&ctx, name, ENDLESS).await?);
    }
    let mut random = seed::random(6);
    for child in children {
        let delay = random.random_range(0..20_000);
        tokio::time::sleep(Duration::from_micros(delay)).await;
        child.kill().await?;
    }
    let killed = Instant::now();
    let bound = ctx.expiry_bound();
    let mut locked = Vec::new();
    for name in &names {
        let left = bound
            .saturating_sub(killed.elapsed())
            .max(Duration::from_millis(500));
        match becomes_free(&client, name, left).await {
            Ok(guard) => guard.release().await?,
            Err(Stop::Fail(_)) => locked.push(name),
            Err(other) => return Err(other),
        }
    }
    ensure!(
        locked.is_empty(),
        "{} of {PROCESSES} names are locked {:?} after their processes were killed, at a TTL of {:?}: \
         an entry has no TTL, or a longer one",
        locked.len(),
        killed.elapsed(),
        ctx.ttl()
    );
    Ok(())
}
