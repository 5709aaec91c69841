//! `lockctl bench`: quick figures for a store, from where it is run.

use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use polylock::{DistributedLock, DistributedLockExt, LockError};
use serde::Serialize;

use crate::{Done, output, store};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// URL of the locks
    #[arg(env = "LOCK_URL", hide_env_values = true)]
    url: Option<String>,
    /// Time for each of the figures
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = store::duration)]
    duration: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Times of one thing, in milliseconds.
#[derive(Debug, Serialize)]
struct Figure {
    what: &'static str,
    count: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Up to an hour, in nanoseconds.
fn histogram() -> Histogram<u64> {
    const HOUR: u64 = 3_600_000_000_000;
    Histogram::new_with_max(HOUR, 3).unwrap_or_else(|_| unreachable!("the bounds are in order"))
}

impl Bench {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let url = store::url(self.url.as_deref())?;
        // Two clients, so that a hand-over goes through the store.
        let (locks, other) = tokio::try_join!(polylock::connect(url), polylock::connect(url))?;
        let name = format!("lockctl-bench/{:016x}", rand::random::<u64>());
        let figures = [
            self.cycles(&*locks, &name).await?,
            self.refusals(&*locks, &*other, &name).await?,
            self.hand_overs(&*locks, &*other, &name).await?,
        ];
        // What cannot be given back ends by itself, with its lease.
        let _ = tokio::join!(locks.shutdown(), other.shutdown());
        match self.json {
            true => output::json(&figures),
            false => print(&figures),
        }
        Ok(Done::Settled)
    }

    /// Acquire and release, of a lock that nobody else wants.
    async fn cycles(&self, locks: &dyn DistributedLock, name: &str) -> Result<Figure, LockError> {
        let mut times = histogram();
        let began = Instant::now();
        while began.elapsed() < self.duration {
            let each = Instant::now();
            locks.acquire(name).await?.release().await?;
            note(&mut times, each.elapsed());
        }
        Ok(figure("acquire and release, free", &times, began.elapsed()))
    }

    /// Tries of a lock that somebody else holds.
    async fn refusals(
        &self,
        locks: &dyn DistributedLock,
        other: &dyn DistributedLock,
        name: &str,
    ) -> Result<Figure, LockError> {
        let guard = other.acquire(name).await?;
        let mut times = histogram();
        let began = Instant::now();
        while began.elapsed() < self.duration {
            let each = Instant::now();
            drop(locks.try_acquire(name).await?);
            note(&mut times, each.elapsed());
        }
        let took = began.elapsed();
        guard.release().await?;
        Ok(figure("try, taken", &times, took))
    }

    /// From the beginning of a release in one client to the grant in another that waits.
    async fn hand_overs(
        &self,
        locks: &dyn DistributedLock,
        other: &dyn DistributedLock,
        name: &str,
    ) -> Result<Figure, LockError> {
        let mut times = histogram();
        let began = Instant::now();
        let mut guard = locks.acquire(name).await?;
        let mut next = [other, locks].into_iter().cycle();
        while began.elapsed() < self.duration
            && let Some(waiter) = next.next()
        {
            let release = async {
                // The waiter is in the queue by then, or nearly.
                tokio::time::sleep(Duration::from_millis(5)).await;
                let freed = Instant::now();
                guard.release().await.map(|()| freed)
            };
            let (acquired, freed) = tokio::try_join!(waiter.acquire(name), release)
                .map(|(acquired, freed)| (acquired, freed.elapsed()))?;
            note(&mut times, freed);
            guard = acquired;
        }
        let took = began.elapsed();
        guard.release().await?;
        Ok(figure("hand-over between two clients", &times, took))
    }
}

fn note(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

fn figure(what: &'static str, times: &Histogram<u64>, took: Duration) -> Figure {
    let ms = |nanos: u64| nanos as f64 / 1e6;
    Figure {
        what,
        count: times.len(),
        per_second: times.len() as f64 / took.as_secs_f64(),
        p50_ms: ms(times.value_at_quantile(0.5)),
        p99_ms: ms(times.value_at_quantile(0.99)),
        max_ms: ms(times.max()),
    }
}

fn print(figures: &[Figure]) {
    let mut table = output::table(["", "count", "per second", "p50 ms", "p99 ms", "max ms"]);
    for it in figures {
        table.add_row([
            it.what.to_owned(),
            it.count.to_string(),
            format!("{:.0}", it.per_second),
            format!("{:.2}", it.p50_ms),
            format!("{:.2}", it.p99_ms),
            format!("{:.2}", it.max_ms),
        ]);
    }
    println!("{table}");
}
