use std::{
    io::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    sync::Barrier,
    task::JoinSet,
};

use crate::{
    Result,
    protocol::{Event, Job, Tally},
    subjects::{Client, Contender},
};

/// The commands from the benchmark.
pub(crate) struct Commands(Lines<BufReader<Stdin>>);

impl Commands {
    pub(crate) fn new() -> Self {
        Self(BufReader::new(tokio::io::stdin()).lines())
    }

    /// Waits for the next command, in words; `None` at the end, or when the benchmark is gone.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.0.next_line().await.ok().flatten()
    }
}

pub(crate) fn say(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    std::io::stdout().lock().write_all(line.as_bytes())?;
    Ok(())
}

/// Serves one measurement with a client of this kind.
pub(crate) async fn serve<C: Client>(job: Job) -> Result<()> {
    let client = C::connect(&job).await?;
    let mut contenders = Vec::new();
    for task in 0..job.tasks {
        contenders.push(client.contender(&job.name(task)).await?);
    }
    let course = Arc::new(Course::new(job.tasks));
    let mut commands = Commands::new();
    let mut tasks = JoinSet::new();
    say(&Event::Ready)?;
    while let Some(command) = commands.next().await {
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("start", _) => {
                for contender in contenders.drain(..) {
                    tasks.spawn(contend(contender, Arc::clone(&course), job.clone()));
                }
            }
            ("measure", seconds) => course.open(Duration::from_secs_f64(seconds.parse()?)),
            ("stop", _) => {
                course.stop.store(true, Ordering::Relaxed);
                say(&Event::Done(collect(&mut tasks, job.batch).await))?;
            }
            _ => return Err(format!("`{command}` is no command of a worker").into()),
        }
    }
    client.close().await;
    Ok(())
}

/// The course of one measurement, as the benchmark dictates it.
#[derive(Debug)]
struct Course {
    window: OnceLock<(Instant, Instant)>,
    stop: AtomicBool,
    /// Barrier at which the tasks meet that have done their share.
    round: Barrier,
    /// Decision made at the barrier: all stop after the same round.
    last_round: AtomicBool,
}

impl Course {
    fn new(tasks: usize) -> Self {
        let window = OnceLock::new();
        let round = Barrier::new(tasks);
        Self {
            window,
            stop: AtomicBool::new(false),
            round,
            last_round: AtomicBool::new(false),
        }
    }

    /// Waits until all have done their share; returns whether to go on.
    async fn next_round(&self) -> bool {
        if self.round.wait().await.is_leader() {
            self.last_round
                .store(self.stop.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.round.wait().await;
        !self.last_round.load(Ordering::Relaxed)
    }

    fn open(&self, length: Duration) {
        let now = Instant::now();
        let _ = self.window.set((now, now + length));
    }

    fn counts(&self, at: Instant) -> bool {
        self.window
            .get()
            .is_some_and(|(start, end)| (*start..*end).contains(&at))
    }
}

async fn contend<C: Contender>(contender: C, course: Arc<Course>, job: Job) -> Tally {
    let batch = job.batch;
    let hold = Duration::from_micros(job.hold_us);
    let notes_grants = job.hold_us > 0 || job.cycles > 0;
    let mut tally = Tally {
        batch,
        ..Tally::default()
    };
    let mut done = 0_u64;
    loop {
        let goes_on = match job.share {
            0 if job.cycles > 0 => done < job.cycles,
            0 => !course.stop.load(Ordering::Relaxed),
            share if done > 0 && done.is_multiple_of(share) => course.next_round().await,
            _ => true,
        };
        if !goes_on {
            return tally;
        }
        done += 1;
        let start = Instant::now();
        let mut held = Held::default();
        for _ in 0..batch {
            if let Err(error) = cycle(&contender, batch == 1, hold, &mut held).await {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| error.to_string());
                // Avoids spinning where nothing can be locked.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let end = Instant::now();
        if batch > 1 {
            // Locks that never wait would otherwise not let the other tasks run.
            tokio::task::yield_now().await;
        }
        if job.cycles > 0 || course.counts(end) {
            let each = (end - start) / u32::try_from(batch).unwrap_or(u32::MAX);
            tally.cycles_ns.push(nanos(each));
            tally.waits_ns.push(nanos(each.saturating_sub(held.time)));
            if notes_grants {
                let start = end - held.time;
                tally
                    .grants_ns
                    .push([unix_nanos(start), unix_nanos(start + held.until_release)]);
            }
        }
    }
}

/// How long an acquisition lasted.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    until_release: Duration,
    /// To the end of its release.
    time: Duration,
}

async fn cycle<C: Contender>(
    contender: &C,
    time_release: bool,
    hold: Duration,
    timed: &mut Held,
) -> Result<()> {
    let held = contender.acquire().await?;
    if !time_release {
        return contender.release(held).await;
    }
    let acquired = Instant::now();
    if !hold.is_zero() {
        tokio::time::sleep(hold).await;
    }
    let until_release = acquired.elapsed();
    contender.release(held).await?;
    *timed = Held {
        until_release,
        time: acquired.elapsed(),
    };
    Ok(())
}

/// An instant on the clock that all processes of a machine share.
fn unix_nanos(at: Instant) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    nanos(now.saturating_sub(at.elapsed()))
}

async fn collect(tasks: &mut JoinSet<Tally>, batch: u64) -> Tally {
    let mut sum = Tally {
        batch,
        ..Tally::default()
    };
    while let Some(tally) = tasks.join_next().await {
        match tally {
            Ok(tally) => sum.add(tally),
            Err(error) => sum.add(Tally {
                errors: 1,
                first_error: Some(error.to_string()),
                ..Tally::default()
            }),
        }
    }
    sum
}

impl Tally {
    pub(crate) fn sum(processes: &[Self]) -> Self {
        let mut sum = Self {
            batch: processes.first().map_or(1, |tally| tally.batch),
            ..Self::default()
        };
        processes.iter().for_each(|tally| sum.add(tally.clone()));
        sum
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.waits_ns.extend(other.waits_ns);
        self.cycles_ns.extend(other.cycles_ns);
        self.grants_ns.extend(other.grants_ns);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
