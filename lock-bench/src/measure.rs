use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::time::sleep;

use crate::{
    Result,
    fleet::{Fleet, Program},
    passage::{self, Passage},
    plan::{Group, Key, Names, Scenario, Subject},
    progress::Progress,
    protocol::{Job, Tally},
    stores::{Counts, Requests, Store},
};

/// Settings of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) window: Duration,
}

/// Everything that the measurements need.
pub(crate) struct Bench<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) programs: &'a BTreeMap<Subject, Program>,
    /// Program that writes to other keys of the store.
    pub(crate) writers: Option<Program>,
    /// Number of cycles to time together: many, for locks that are faster than the clock.
    pub(crate) batch: fn(&Key) -> u64,
    /// Number of cycles that each task does before it waits for the others; 0 if none waits for
    /// another.
    pub(crate) share: fn(&Key) -> u64,
    /// Picks, of all requests, those that the locks sent.
    pub(crate) relevant: fn(&Key, Requests) -> Requests,
    pub(crate) settings: Settings,
}

/// Figures of one window, or the medians of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) cycles_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) median_wait_ms: f64,
    pub(crate) p99_wait_ms: f64,
    pub(crate) longest_wait_ms: f64,
    /// Calls that the store received, a stream being one call.
    pub(crate) rpcs_per_cycle: Option<f64>,
    /// Messages that the store received, those on streams included, by kind.
    pub(crate) messages_per_cycle: Counts,
    /// Reads by the server from its sockets, where it counts them: as many as requests, of clients
    /// that send one at a time.
    pub(crate) reads_per_cycle: Option<f64>,
    /// Time of the server's CPU, where it counts that.
    pub(crate) cpu_us_per_cycle: Option<f64>,
    /// Of several processes.
    pub(crate) passage: Option<Passage>,
    pub(crate) errors: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Key,
    /// Medians.
    pub(crate) figures: Figures,
    /// Throughput of each round.
    pub(crate) rounds: Vec<f64>,
}

const WRITERS: usize = 8;

impl Bench<'_> {
    /// Measures a group: its subjects take turns, round by round.
    pub(crate) async fn group(&self, group: &Group, progress: &Progress) -> Result<Vec<Row>> {
        let mut windows: Vec<Vec<Figures>> = vec![Vec::new(); group.runs.len()];
        for round in 1..=self.settings.rounds {
            for (run, windows) in group.runs.iter().zip(&mut windows) {
                progress.begin(&format!("{} (round {round}): {run}", group.title));
                let figures = self
                    .window(*run)
                    .await
                    .map_err(|error| format!("{run}: {error}"))?;
                progress.end(&format!("{:.0} cycles/s", figures.cycles_per_s));
                windows.push(figures);
            }
        }
        Ok(group
            .runs
            .iter()
            .zip(windows)
            .map(|(key, windows)| Row::of(*key, &windows))
            .collect())
    }

    async fn window(&self, key: Key) -> Result<Figures> {
        self.store.tidy().await?;
        let program = self
            .programs
            .get(&key.subject)
            .ok_or("there is no program for it")?;
        let prefix = unique_prefix();
        let job = |process| Job {
            batch: (self.batch)(&key),
            share: (self.share)(&key),
            hold_us: key.scenario.hold().as_micros() as u64,
            cycles: key.scenario.cycles(),
            ..self.job(&prefix, key.scenario.names(), process, key.tasks)
        };
        let mut fleet = Fleet::start(
            program,
            (0..key.processes).map(|process| job(process).arguments()),
        )
        .await?;
        let mut others = self.start_writers(key.scenario).await?;
        if key.scenario.cycles() > 0 {
            return self.shares(&key, fleet).await;
        }
        for fleet in others.iter_mut().chain([&mut fleet]) {
            fleet.say("start").await?;
        }
        sleep(warm_up(key)).await;
        let before = self.store.requests().await?;
        let opened = Instant::now();
        fleet
            .say(&format!("measure {}", self.settings.window.as_secs_f64()))
            .await?;
        sleep(self.settings.window).await;
        let length = opened.elapsed();
        let after = self.store.requests().await?;
        for fleet in others.iter_mut().chain([&mut fleet]) {
            fleet.say("stop").await?;
        }
        if let Some(mut others) = others {
            others.tallies().await?;
            others.dismiss().await;
        }
        let tallies = fleet.tallies().await?;
        fleet.dismiss().await;
        let mut figures = Figures::of(&tallies, self.settings.window)?;
        if let (Some(before), Some(after)) = (before, after) {
            let cycles = figures.cycles_per_s * length.as_secs_f64();
            figures.count((self.relevant)(&key, after.since(&before)), cycles);
        }
        Ok(figures)
    }

    /// Measures contenders that end by themselves.
    async fn shares(&self, key: &Key, mut fleet: Fleet) -> Result<Figures> {
        let before = self.store.requests().await?;
        fleet.say("start").await?;
        fleet.say("stop").await?;
        let tallies = fleet.tallies().await?;
        let after = self.store.requests().await?;
        fleet.dismiss().await;
        let seconds = passage::seconds(&tallies).unwrap_or_default();
        let mut figures = Figures::of(&tallies, Duration::from_secs_f64(seconds))?;
        if let (Some(before), Some(after)) = (before, after) {
            let cycles = figures.cycles_per_s * seconds;
            figures.count((self.relevant)(key, after.since(&before)), cycles);
        }
        Ok(figures)
    }

    async fn start_writers(&self, scenario: Scenario) -> Result<Option<Fleet>> {
        if scenario != Scenario::ContendedWithWriters {
            return Ok(None);
        }
        let program = self.writers.as_ref().ok_or("this store has no writers")?;
        let job = self.job(&unique_prefix(), Names::Own, 0, WRITERS);
        Fleet::start(program, [job.arguments()]).await.map(Some)
    }

    fn job(&self, prefix: &str, names: Names, process: usize, tasks: usize) -> Job {
        Job {
            url: self.store.url().to_owned(),
            prefix: prefix.to_owned(),
            names,
            process,
            tasks,
            batch: 1,
            share: 0,
            hold_us: 0,
            cycles: 0,
        }
    }
}

/// Makes a prefix, so that no measurement meets the names of another.
pub(crate) fn unique_prefix() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("bench-{}", LAST.fetch_add(1, Ordering::Relaxed))
}

/// Time in which every contender has had its turn at least once.
fn warm_up(key: Key) -> Duration {
    let turn = Duration::from_millis(2) + key.scenario.hold();
    Duration::from_millis(500) + turn * u32::try_from(key.contenders()).unwrap_or(u32::MAX)
}

impl Figures {
    fn of(processes: &[Tally], window: Duration) -> Result<Self> {
        let tally = Tally::sum(processes);
        if let (true, Some(error)) = (tally.cycles_ns.is_empty(), &tally.first_error) {
            return Err(format!("not one cycle succeeded: {error}").into());
        }
        let cycles = histogram(&tally.cycles_ns)?;
        let waits = histogram(&tally.waits_ns)?;
        let ms = |nanos: u64| nanos as f64 / 1e6;
        Ok(Self {
            cycles_per_s: (tally.cycles_ns.len() as u64 * tally.batch) as f64
                / window.as_secs_f64(),
            p50_ms: ms(cycles.value_at_quantile(0.5)),
            p99_ms: ms(cycles.value_at_quantile(0.99)),
            median_wait_ms: ms(waits.value_at_quantile(0.5)),
            p99_wait_ms: ms(waits.value_at_quantile(0.99)),
            longest_wait_ms: ms(waits.max()),
            passage: Passage::of(processes),
            errors: tally.errors,
            ..Self::default()
        })
    }

    fn count(&mut self, requests: Requests, cycles: f64) {
        if cycles > 0.0 {
            self.rpcs_per_cycle = Some(requests.calls.sum() / cycles);
            self.messages_per_cycle = requests.messages.divided_by(cycles);
            self.reads_per_cycle = requests.reads.map(|reads| reads / cycles);
            self.cpu_us_per_cycle = requests.cpu_s.map(|seconds| seconds * 1e6 / cycles);
        }
    }

    /// The p99 wait against the median one, if anybody waited.
    pub(crate) fn waits_apart(&self) -> Option<f64> {
        (self.median_wait_ms > 0.0).then(|| self.p99_wait_ms / self.median_wait_ms)
    }

    fn medians(windows: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(windows.iter().map(figure)).unwrap_or_default();
        let passages: Vec<_> = windows.iter().filter_map(|window| window.passage).collect();
        Self {
            cycles_per_s: of(|window| window.cycles_per_s),
            p50_ms: of(|window| window.p50_ms),
            p99_ms: of(|window| window.p99_ms),
            median_wait_ms: of(|window| window.median_wait_ms),
            p99_wait_ms: of(|window| window.p99_wait_ms),
            longest_wait_ms: of(|window| window.longest_wait_ms),
            rpcs_per_cycle: median(windows.iter().filter_map(|window| window.rpcs_per_cycle)),
            messages_per_cycle: medians_by_kind(windows),
            reads_per_cycle: median(windows.iter().filter_map(|window| window.reads_per_cycle)),
            cpu_us_per_cycle: median(windows.iter().filter_map(|window| window.cpu_us_per_cycle)),
            passage: Passage::medians(&passages),
            errors: windows.iter().map(|window| window.errors).sum(),
        }
    }
}

impl Row {
    fn of(key: Key, windows: &[Figures]) -> Self {
        Self {
            key,
            figures: Figures::medians(windows),
            rounds: windows.iter().map(|window| window.cycles_per_s).collect(),
        }
    }
}

fn histogram(values: &[u64]) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    for value in values {
        histogram.record(*value)?;
    }
    Ok(histogram)
}

fn medians_by_kind(windows: &[Figures]) -> Counts {
    let kinds: BTreeSet<&String> = windows
        .iter()
        .flat_map(|window| window.messages_per_cycle.0.keys())
        .collect();
    let of = |kind: &str| {
        median(
            windows
                .iter()
                .map(|window| window.messages_per_cycle.of(kind)),
        )
        .unwrap_or_default()
    };
    Counts(
        kinds
            .into_iter()
            .map(|kind| (kind.clone(), of(kind)))
            .collect(),
    )
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_window() {
        let cycles_ns: Vec<u64> = (1..=1000).map(|ms| ms * 1_000_000).collect();
        let waits_ns = cycles_ns.iter().map(|nanos| nanos / 2).collect();
        let tally = Tally {
            batch: 4,
            cycles_ns,
            waits_ns,
            errors: 1,
            ..Tally::default()
        };
        let figures = Figures::of(&[tally], Duration::from_secs(2)).unwrap();
        assert_eq!((figures.cycles_per_s, figures.errors), (2000.0, 1));
        for (figure, expected) in [
            (figures.p50_ms, 500.0),
            (figures.p99_ms, 990.0),
            (figures.median_wait_ms, 250.0),
            (figures.longest_wait_ms, 500.0),
        ] {
            assert!(
                (figure / expected - 1.0).abs() < 0.002,
                "{figure} instead of {expected}"
            );
        }
    }

    #[test]
    fn nothing_but_errors_is_an_error() {
        let tally = Tally {
            errors: 3,
            first_error: Some("no server".into()),
            ..Tally::default()
        };
        assert!(
            Figures::of(&[tally], Duration::from_secs(1))
                .unwrap_err()
                .to_string()
                .contains("no server")
        );
    }

    #[test]
    fn medians_are_not_moved_by_one_odd_round() {
        assert_eq!(median([3.0, 1000.0, 1.0].into_iter()), Some(3.0));
        assert_eq!(median([4.0, 2.0].into_iter()), Some(3.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
