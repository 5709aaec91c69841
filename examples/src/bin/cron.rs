//! A job that runs once in each period, however many processes are up.

use std::{
    error::Error,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use polylock::{DistributedLock, DistributedLockExt, FencingToken, LockError};

/// Runs a report once in each period.
#[derive(Debug, Parser)]
struct Options {
    /// Period
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Ends after so many periods
    #[arg(long)]
    periods: Option<u64>,
    /// File of the reports
    #[arg(long, default_value = "reports.txt")]
    reports: PathBuf,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let locks = lock_examples::locks().await?;
    let mut left = options.periods.unwrap_or(u64::MAX);
    while left > 0 {
        let (number, begins_in) = next_period(options.every);
        tokio::select! {
            () = tokio::time::sleep(begins_in) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        // An outage costs this period at most; the next one is tried again.
        if let Err(error) = run(&*locks, number, &options).await {
            eprintln!("period {number}: {error}");
        }
        left -= 1;
    }
    locks.shutdown().await?;
    Ok(())
}

/// Number of the next period since 1970, and the time until it begins.
fn next_period(every: Duration) -> (u128, Duration) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let number = now.as_nanos() / every.as_nanos() + 1;
    let begins = u64::try_from(number * every.as_nanos()).unwrap_or(u64::MAX);
    (number, Duration::from_nanos(begins).saturating_sub(now))
}

async fn run(
    locks: &dyn DistributedLock,
    number: u128,
    options: &Options,
) -> Result<(), LockError> {
    let Some(guard) = locks.try_acquire("cron/report").await? else {
        // Somebody else does it.
        return Ok(());
    };
    if let Err(error) = report(&options.reports, number, guard.token()) {
        eprintln!("period {number}: {error}");
    }
    // A short job would be done by the time at which a process with another clock begins: so the
    // lock is held for half of the period.
    tokio::time::sleep(options.every / 2).await;
    guard.release().await
}

/// The job.
fn report(file: &Path, number: u128, token: Option<FencingToken>) -> std::io::Result<()> {
    let token = token.map(|token| token.to_string()).unwrap_or_default();
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{number} {token}")
}
