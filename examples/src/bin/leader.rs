//! A loop that only one process runs: the leader, which steps down in order.

use std::{error::Error, time::Duration};

use clap::Parser;
use polylock::{AcquireOptions, DistributedLockExt, LockGuard};
use tokio::time::{MissedTickBehavior, interval};

/// Leads as soon as nobody else does.
#[derive(Debug, Parser)]
struct Options {
    /// Name, for whoever asks who leads
    #[arg(long, default_value = "anonymous")]
    name: String,
    /// Steps down after so many steps
    #[arg(long)]
    steps: Option<u64>,
    /// Pause between two steps
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    every: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let locks = lock_examples::locks().await?;
    let mut steps = options.steps.unwrap_or(u64::MAX);
    while steps > 0 {
        let campaign = AcquireOptions::new().with_metadata(&options.name);
        let guard = tokio::select! {
            guard = locks.acquire_with("leader", campaign) => guard?,
            _ = tokio::signal::ctrl_c() => break,
        };
        println!("{} leads, with token {:?}", options.name, guard.token());
        let is_over = tokio::select! {
            reason = guard.lost() => {
                eprintln!("{} leads no more: {reason}", options.name);
                false
            }
            () = lead(&guard, &options, &mut steps) => true,
            _ = tokio::signal::ctrl_c() => true,
        };
        // Whoever waits leads at once, and not after a TTL. A lost guard has nothing to release.
        let released = guard.release().await;
        if is_over {
            released?;
            break;
        }
    }
    locks.shutdown().await?;
    Ok(())
}

/// Does one step after the other, each only while the lock is held.
async fn lead(guard: &LockGuard, options: &Options, steps: &mut u64) {
    let mut pace = interval(options.every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *steps > 0 && guard.is_held() {
        pace.tick().await;
        println!("{} step {steps}", options.name);
        *steps -= 1;
    }
}
