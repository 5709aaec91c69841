//! Workers count in a file, first without and then with a lock around read, add and write.
//!
//! ```text
//! cargo run --example counter
//! cargo run --example counter --features etcd -- etcd://127.0.0.1:2379 --processes 4
//! cargo run --example counter --features redis -- redis://127.0.0.1:6379 --processes 4
//! ```

use std::{
    error::Error,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    process::{self, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Parser, ValueEnum};
use polylock::{Consistency, DistributedLock, DistributedLockExt, FencingToken, LockUrl};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Counts in a file with many workers, without and with a lock, and tells what was lost.
#[derive(Clone, Parser)]
struct Args {
    /// URL of the locks: mem://, etcd://host:port or redis://host:port
    #[arg(default_value = "mem://")]
    url: String,
    /// Workers in each process
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Increments by each worker
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    increments: u32,
    /// Operating system processes; more than one need a server
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    processes: u32,
    /// Makes this one of several processes that count in this file
    #[arg(long, hide = true, requires = "name")]
    file: Option<PathBuf>,
    /// Name of the lock
    #[arg(long, hide = true)]
    name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Phase {
    Unlocked,
    Locked,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = tokio::select! {
        // First, so that it is in place before there is a file or a process to leave behind.
        biased;
        () = interrupted() => {
            eprintln!("counter: interrupted");
            return ExitCode::from(130);
        }
        outcome = run(&args) => outcome,
    };
    match outcome {
        Ok(exact) => ExitCode::from(u8::from(!exact)),
        Err(error) => {
            eprintln!("counter: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: &Args) -> Result<bool> {
    match (&args.file, &args.name) {
        (Some(file), Some(name)) => {
            obey_parent(Team::connect(args, CounterFile(file.clone()), name.clone()).await?).await
        }
        _ => compare(args).await,
    }
}

/// Runs the two phases and reports their outcome; `false` if the lock let something get lost.
async fn compare(args: &Args) -> Result<bool> {
    let url: LockUrl = args.url.parse()?;
    let scheme = url.scheme();
    let local = polylock::registry().capabilities(&url)?.consistency == Consistency::ProcessLocal;
    if args.processes > 1 && local {
        return Err(format!(
            "{scheme}:// locks within one process; for --processes {} give a server's URL",
            args.processes
        )
        .into());
    }
    let directory = tempfile::tempdir()?;
    let file = CounterFile(directory.path().join("counter"));
    let mut teams = Teams::gather(args, file.clone()).await?;
    let total = u64::from(args.processes) * u64::from(args.workers) * u64::from(args.increments);
    let team = match args.processes {
        1 => format!("{} workers", args.workers),
        many => format!("{many} processes of {} workers", args.workers),
    };
    println!("{total} increments of a number in a file, by {team}, locks on {scheme}://");

    let took = teams.count(Phase::Unlocked, &file).await?;
    report("without the lock", total, file.read()?.value, took);
    let took = teams.count(Phase::Locked, &file).await?;
    let end = file.read()?;
    report("with the lock", total, end.value, took);
    println!(
        "  fencing tokens   {} to {}, each larger than the one before",
        end.first, end.last
    );
    Ok(end.value == total)
}

fn report(phase: &str, total: u64, counted: u64, took: Duration) {
    let lost = total.saturating_sub(counted);
    let rate = total as f64 / took.as_secs_f64();
    println!("  {phase:<16} {counted:>8} counted {lost:>8} lost {rate:>10.0} increments/s");
}

/// The workers of one process.
struct Team {
    locks: Arc<dyn DistributedLock>,
    file: CounterFile,
    name: String,
    workers: u32,
    increments: u32,
}

impl Team {
    async fn connect(args: &Args, file: CounterFile, name: String) -> Result<Self> {
        let locks = polylock::connect(&args.url).await?;
        Ok(Self {
            locks,
            file,
            name,
            workers: args.workers,
            increments: args.increments,
        })
    }

    async fn count(&self, phase: Phase) -> Result<()> {
        let mut workers: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..self.workers {
            let locks = Arc::clone(&self.locks);
            let file = self.file.clone();
            let name = self.name.clone();
            let increments = self.increments;
            workers.spawn(async move {
                for _ in 0..increments {
                    match phase {
                        Phase::Unlocked => add_one(&file, 0).await?,
                        Phase::Locked => add_one_locked(&*locks, &name, &file).await?,
                    }
                }
                Ok(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }
}

/// The same for every backend.
async fn add_one_locked(locks: &dyn DistributedLock, name: &str, file: &CounterFile) -> Result<()> {
    let guard = locks.acquire(name).await?;
    add_one(file, guard.token().map_or(0, FencingToken::as_u64)).await?;
    Ok(guard.release().await?)
}

/// Reads, adds and writes, with a chance for others in between, as any real work has.
async fn add_one(file: &CounterFile, token: u64) -> Result<()> {
    let before = file.read()?;
    tokio::task::yield_now().await;
    // As a fenced resource does: refuses a writer with an older token than it has seen.
    if token != 0 && token <= before.last {
        return Err(format!(
            "refused the token {token}, for {} was here before",
            before.last
        )
        .into());
    }
    let first = if before.first == 0 {
        token
    } else {
        before.first
    };
    Ok(file.write(Line {
        value: before.value + 1,
        first,
        last: token,
    })?)
}

/// A number in a file, with the tokens of its first and last writer.
#[derive(Clone)]
struct CounterFile(PathBuf);

#[derive(Clone, Copy, Default)]
struct Line {
    value: u64,
    first: u64,
    last: u64,
}

impl CounterFile {
    fn read(&self) -> Result<Line> {
        let text = fs::read_to_string(&self.0)?;
        let numbers = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()?;
        match numbers[..] {
            [value, first, last] => Ok(Line { value, first, last }),
            _ => Err("the counter file is garbled".into()),
        }
    }

    fn write(&self, Line { value, first, last }: Line) -> io::Result<()> {
        // Always of the same length and in one piece, so that only counts get lost without the
        // lock, not digits.
        let text = format!("{value:020} {first:020} {last:020}\n");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.0)?
            .write_all(text.as_bytes())
    }
}

/// All workers: in this process, or in several others.
enum Teams {
    Here(Team),
    Elsewhere(Vec<Other>),
}

impl Teams {
    async fn gather(args: &Args, file: CounterFile) -> Result<Self> {
        // New in each run: an earlier one may have been killed while it held the lock.
        let name = format!(
            "examples/counter/{}-{:x}",
            process::id(),
            SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos()
        );
        if args.processes == 1 {
            return Ok(Self::Here(Team::connect(args, file, name).await?));
        }
        let mut others = (0..args.processes)
            .map(|_| Other::start(args, &file, &name))
            .collect::<Result<Vec<_>>>()?;
        for other in &mut others {
            other.expect("ready").await?;
        }
        Ok(Self::Elsewhere(others))
    }

    async fn count(&mut self, phase: Phase, file: &CounterFile) -> Result<Duration> {
        file.write(Line::default())?;
        let start = Instant::now();
        match self {
            Self::Here(team) => team.count(phase).await?,
            Self::Elsewhere(others) => {
                for other in others.iter_mut() {
                    other.tell(phase).await?;
                }
                for other in others {
                    other.expect("done").await?;
                }
            }
        }
        Ok(start.elapsed())
    }
}

/// A process that runs a team: it is told the phase on its standard input, and ends with it.
struct Other {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(args: &Args, file: &CounterFile, name: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(&args.url)
            .arg("--file")
            .arg(&file.0)
            .args(["--name", name]);
        command.args([
            "--workers",
            &args.workers.to_string(),
            "--increments",
            &args.increments.to_string(),
        ]);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("the new process has no pipes".into());
        };
        Ok(Self {
            _process: process,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    async fn tell(&mut self, phase: Phase) -> Result<()> {
        let phase = phase
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        Ok(self
            .input
            .write_all(format!("{phase}\n").as_bytes())
            .await?)
    }

    async fn expect(&mut self, answer: &str) -> Result<()> {
        match self.output.next_line().await? {
            Some(line) if line == answer => Ok(()),
            _ => Err("one of the processes failed".into()),
        }
    }
}

/// Runs a process that was started by [`Other::start`].
async fn obey_parent(team: Team) -> Result<bool> {
    let (phases, mut told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(io::Result::ok) {
            let _ = phases.send(Phase::from_str(&line, false));
        }
        // The parent is gone, or has all that it wanted.
        process::exit(0);
    });
    println!("ready");
    while let Some(phase) = told.recv().await {
        team.count(phase?).await?;
        println!("done");
    }
    Ok(true)
}

#[cfg(unix)]
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn interrupted() {
    let _ = tokio::signal::ctrl_c().await;
}
