use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use polylock::{AcquireOptions, DistributedLock, DistributedLockExt, LockGuard};
use serde::Serialize;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    Result, cli,
    fleet::Fleet,
    measure::{median, unique_prefix},
    progress::Progress,
    protocol::Event,
    stores::Store,
    worker::{Commands, say},
};

/// Plan to measure the cost of holding many names in one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldingPlan {
    pub(crate) names: usize,
    /// Appended to the store's URL; a short TTL shows many renewals in a short time.
    pub(crate) parameters: &'static str,
    /// The kind of message that renews leases.
    pub(crate) renewal: &'static str,
}

/// Cost to one process of the names that it holds: medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Held {
    pub(crate) names: usize,
    /// `null` where the store has no leases.
    pub(crate) leases: Option<f64>,
    pub(crate) renewals_per_s: f64,
    /// Messages to the store of all kinds, renewals included.
    pub(crate) messages_per_s: f64,
    /// Reads by the server from its sockets, where it counts them.
    pub(crate) reads_per_s: Option<f64>,
    pub(crate) bytes_per_guard: f64,
    pub(crate) seconds_to_acquire: f64,
}

/// Time for one-off work after the acquisitions to finish.
const SETTLE: Duration = Duration::from_secs(3);
/// Long enough for many renewals, so that one more or less does not matter.
const WINDOW: Duration = Duration::from_secs(9);

impl HoldingPlan {
    /// Steps in each round.
    pub(crate) const STEPS: usize = 2;

    /// Measures one name and many names in turn.
    pub(crate) async fn measure(
        &self,
        store: &dyn Store,
        rounds: usize,
        progress: &Progress,
    ) -> Result<Vec<Held>> {
        let sizes = [1, self.names];
        let mut windows = [const { Vec::new() }; 2];
        for round in 1..=rounds {
            for (names, windows) in sizes.iter().zip(&mut windows) {
                progress.begin(&format!(
                    "held by one process (round {round}): {names} names"
                ));
                let held = self.window(store, *names).await?;
                progress.end(&format!(
                    "{:.0} bytes per guard, {:.2} renewals/s",
                    held.bytes_per_guard, held.renewals_per_s
                ));
                windows.push(held);
            }
        }
        Ok(windows
            .iter()
            .filter_map(|windows| Held::medians(windows))
            .collect())
    }

    async fn window(&self, store: &dyn Store, names: usize) -> Result<Held> {
        store.tidy().await?;
        let leases_before = store.leases().await?;
        let url = format!("{}{}", store.url(), self.parameters);
        let arguments = [
            "--url",
            &url,
            "--prefix",
            &unique_prefix(),
            "--names",
            &names.to_string(),
        ]
        .map(str::to_owned);
        let mut fleet = Fleet::start(&cli::own_program("hold")?, [arguments.to_vec()]).await?;
        fleet.say("start").await?;
        let Event::Holding {
            seconds,
            rss_before_kib,
            ..
        } = fleet.event().await?
        else {
            return Err("the names are not held".into());
        };
        sleep(SETTLE).await;
        let before = store.requests().await?;
        let opened = Instant::now();
        sleep(WINDOW).await;
        let length = opened.elapsed().as_secs_f64();
        let after = store.requests().await?;
        let leases = store.leases().await?;
        fleet.say("measure").await?;
        let Event::Holding { rss_kib, .. } = fleet.event().await? else {
            return Err("the memory in use is not known".into());
        };
        fleet.dismiss().await;
        let requests = after.unwrap_or_default().since(&before.unwrap_or_default());
        let messages = requests.messages.divided_by(length);
        Ok(Held {
            names,
            leases: leases
                .zip(leases_before)
                .map(|(now, before)| now.saturating_sub(before) as f64),
            renewals_per_s: messages.of(self.renewal),
            messages_per_s: messages.sum(),
            reads_per_s: requests.reads.map(|reads| reads / length),
            bytes_per_guard: rss_kib.saturating_sub(rss_before_kib) as f64 * 1024.0 / names as f64,
            seconds_to_acquire: seconds,
        })
    }
}

impl Held {
    fn medians(windows: &[Self]) -> Option<Self> {
        let of = |figure: fn(&Self) -> f64| median(windows.iter().map(figure));
        Some(Self {
            names: windows.first()?.names,
            leases: median(windows.iter().filter_map(|window| window.leases)),
            renewals_per_s: of(|window| window.renewals_per_s)?,
            messages_per_s: of(|window| window.messages_per_s)?,
            reads_per_s: median(windows.iter().filter_map(|window| window.reads_per_s)),
            bytes_per_guard: of(|window| window.bytes_per_guard)?,
            seconds_to_acquire: of(|window| window.seconds_to_acquire)?,
        })
    }
}

/// Number of names that are acquired at the same time.
const TASKS: usize = 64;
/// Number of names to lock before the first look at the memory, so that by then everything exists
/// that any use of the client needs, whatever it holds.
const WARM_UP: usize = 1000;

/// Runs the worker: acquires all names, and reports the cost.
pub(crate) async fn serve(job: cli::NamesJob) -> Result<()> {
    let locks = polylock::connect(&job.url).await?;
    for guard in acquire(&locks, &format!("{}-warm-up", job.prefix), WARM_UP).await? {
        guard.release().await?;
    }
    let rss_before_kib = rss_kib()?;
    let mut commands = Commands::new();
    let mut guards = Vec::new();
    let mut seconds = 0.0;
    say(&Event::Ready)?;
    while let Some(command) = commands.next().await {
        if command == "start" {
            let start = Instant::now();
            guards = acquire(&locks, &job.prefix, job.names).await?;
            seconds = start.elapsed().as_secs_f64();
        }
        for guard in &guards {
            guard.ensure_held()?;
        }
        say(&Event::Holding {
            seconds,
            rss_before_kib,
            rss_kib: rss_kib()?,
        })?;
    }
    locks.shutdown().await?;
    Ok(())
}

async fn acquire(
    locks: &Arc<dyn DistributedLock>,
    prefix: &str,
    names: usize,
) -> Result<Vec<LockGuard>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS.min(names) {
        let locks = Arc::clone(locks);
        let next = Arc::clone(&next);
        let prefix = prefix.to_owned();
        tasks.spawn(async move {
            let mut guards = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= names {
                    return Ok::<_, crate::Error>(guards);
                }
                guards.push(
                    locks
                        .acquire_with(format!("{prefix}-{number}"), AcquireOptions::new())
                        .await?,
                );
            }
        });
    }
    let mut all = Vec::with_capacity(names);
    while let Some(guards) = tasks.join_next().await {
        all.extend(guards??);
    }
    Ok(all)
}

/// Memory of this process that is in RAM.
pub(crate) fn rss_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("the memory in use is only known on Linux")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_its_own_memory() {
        let before = rss_kib().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = rss_kib().unwrap();
        assert!(
            after >= before + (60 << 10),
            "{before} KiB, and {after} KiB with {} bytes more",
            block.len()
        );
    }
}
