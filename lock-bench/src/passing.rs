use std::time::Instant;

use polylock::{AcquireOptions, DistributedLockExt};
use serde::Serialize;

use crate::{
    Result, cli,
    fleet::Fleet,
    holding::rss_kib,
    measure::{median, unique_prefix},
    progress::Progress,
    protocol::Event,
    stores::Store,
    worker::{Commands, say},
};

/// Plan to measure the leftovers of names that were locked once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassingPlan {
    pub(crate) names: usize,
}

/// Leftovers of names that were locked once and released: medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Passed {
    pub(crate) names: usize,
    pub(crate) first_half_seconds: f64,
    pub(crate) second_half_seconds: f64,
    /// Memory of the process that is not given back, for each name.
    pub(crate) bytes_left_per_name: f64,
}

impl PassingPlan {
    /// Steps in each round.
    pub(crate) const STEPS: usize = 1;

    pub(crate) async fn measure(
        &self,
        store: &dyn Store,
        rounds: usize,
        progress: &Progress,
    ) -> Result<Passed> {
        let mut windows = Vec::new();
        for round in 1..=rounds {
            progress.begin(&format!(
                "locked once (round {round}): {} names",
                self.names
            ));
            let passed = self.window(store).await?;
            progress.end(&format!(
                "{:.2} s, {:.2} bytes per name left",
                passed.seconds(),
                passed.bytes_left_per_name
            ));
            windows.push(passed);
        }
        let of =
            |figure: fn(&Passed) -> f64| median(windows.iter().map(figure)).unwrap_or_default();
        Ok(Passed {
            names: self.names,
            first_half_seconds: of(|window| window.first_half_seconds),
            second_half_seconds: of(|window| window.second_half_seconds),
            bytes_left_per_name: of(|window| window.bytes_left_per_name),
        })
    }

    async fn window(&self, store: &dyn Store) -> Result<Passed> {
        store.tidy().await?;
        let arguments = [
            "--url",
            store.url(),
            "--prefix",
            &unique_prefix(),
            "--names",
            &self.names.to_string(),
        ]
        .map(str::to_owned);
        let mut fleet = Fleet::start(&cli::own_program("pass")?, [arguments.to_vec()]).await?;
        fleet.say("start").await?;
        let outcome = match fleet.event().await? {
            Event::Passed {
                first_half_seconds,
                second_half_seconds,
                rss_before_kib,
                rss_kib,
            } => Passed {
                names: self.names,
                first_half_seconds,
                second_half_seconds,
                bytes_left_per_name: rss_kib.saturating_sub(rss_before_kib) as f64 * 1024.0
                    / self.names as f64,
            },
            other => return Err(format!("the names did not pass: {other:?}").into()),
        };
        fleet.dismiss().await;
        Ok(outcome)
    }
}

impl Passed {
    pub(crate) fn seconds(&self) -> f64 {
        self.first_half_seconds + self.second_half_seconds
    }
}

/// Runs the worker: locks and releases each name once, one after the other.
pub(crate) async fn serve(job: cli::NamesJob) -> Result<()> {
    let locks = polylock::connect(&job.url).await?;
    let pass = async |range: std::ops::Range<usize>| {
        let start = Instant::now();
        for number in range {
            locks
                .acquire_with(format!("{}-{number}", job.prefix), AcquireOptions::new())
                .await?
                .release()
                .await?;
        }
        Ok::<_, crate::Error>(start.elapsed().as_secs_f64())
    };
    let half = job.names / 2;
    let warm_up = 1000;
    pass(job.names..job.names + warm_up).await?;
    let rss_before_kib = rss_kib()?;
    let mut commands = Commands::new();
    say(&Event::Ready)?;
    while commands.next().await.is_some() {
        let first_half_seconds = pass(0..half).await?;
        let second_half_seconds = pass(half..2 * half).await?;
        say(&Event::Passed {
            first_half_seconds,
            second_half_seconds,
            rss_before_kib,
            rss_kib: rss_kib()?,
        })?;
    }
    Ok(locks.shutdown().await?)
}
