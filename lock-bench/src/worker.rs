use std::{
    io::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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

    /// The next command, in words; `None` at the end, or when the benchmark is gone.
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
                    tasks.spawn(contend(contender, Arc::clone(&course), job.batch, job.share));
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
    /// Where those meet who have done their share.
    round: Barrier,
    /// What was decided there: all stop after the same round.
    last_round: AtomicBool,
}

impl Course {
    fn new(tasks: usize) -> Self {
        let (window, round) = (OnceLock::new(), Barrier::new(tasks));
        Self { window, stop: AtomicBool::new(false), round, last_round: AtomicBool::new(false) }
    }

    /// Waits until all have done their share; says whether to go on.
    async fn next_round(&self) -> bool {
        if self.round.wait().await.is_leader() {
            self.last_round.store(self.stop.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.round.wait().await;
        !self.last_round.load(Ordering::Relaxed)
    }

    fn open(&self, length: Duration) {
        let now = Instant::now();
        let _ = self.window.set((now, now + length));
    }

    fn counts(&self, at: Instant) -> bool {
        self.window.get().is_some_and(|(start, end)| (*start..*end).contains(&at))
    }
}

async fn contend<C: Contender>(contender: C, course: Arc<Course>, batch: u64, share: u64) -> Tally {
    let (mut tally, mut done) = (Tally { batch, ..Tally::default() }, 0_u64);
    loop {
        let goes_on = match share {
            0 => !course.stop.load(Ordering::Relaxed),
            share if done > 0 && done % share == 0 => course.next_round().await,
            _ => true,
        };
        if !goes_on {
            return tally;
        }
        done += 1;
        let (start, mut held_for) = (Instant::now(), Duration::ZERO);
        for _ in 0..batch {
            if let Err(error) = cycle(&contender, batch == 1, &mut held_for).await {
                tally.errors += 1;
                tally.first_error.get_or_insert_with(|| error.to_string());
                // Does not spin where nothing can be locked.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let end = Instant::now();
        if batch > 1 {
            // Locks that never wait would not let the other tasks run.
            tokio::task::yield_now().await;
        }
        if course.counts(end) {
            let each = (end - start) / u32::try_from(batch).unwrap_or(u32::MAX);
            tally.cycles_ns.push(nanos(each));
            tally.waits_ns.push(nanos(each.saturating_sub(held_for)));
        }
    }
}

async fn cycle<C: Contender>(contender: &C, time_release: bool, releasing: &mut Duration) -> Result<()> {
    let held = contender.acquire().await?;
    if !time_release {
        return contender.release(held).await;
    }
    let acquired = Instant::now();
    contender.release(held).await?;
    *releasing = acquired.elapsed();
    Ok(())
}

async fn collect(tasks: &mut JoinSet<Tally>, batch: u64) -> Tally {
    let mut sum = Tally { batch, ..Tally::default() };
    while let Some(tally) = tasks.join_next().await {
        match tally {
            Ok(tally) => sum.add(tally),
            Err(error) => sum.add(Tally { errors: 1, first_error: Some(error.to_string()), ..Tally::default() }),
        }
    }
    sum
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.waits_ns.extend(other.waits_ns);
        self.cycles_ns.extend(other.cycles_ns);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
