use std::{
    env,
    io::{Read, Write},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, FencingToken, LockName, backend::Clock,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{ChildStdout, Command},
};

use crate::{
    Need, Start,
    case::{Outcome, PROMPT, Stop},
    context::{Ctx, within},
    started::StartFn,
    suite::BoxError,
};

const ADDRESS: &str = "LOCK_CONFORMANCE_CHILD_ADDRESS";
const NAME: &str = "LOCK_CONFORMANCE_CHILD_NAME";
const TTL: &str = "LOCK_CONFORMANCE_CHILD_TTL_MS";
const ROUNDS: &str = "LOCK_CONFORMANCE_CHILD_ROUNDS";
/// Marks the child's own lines among whatever else a backend prints.
const MARK: &str = "conformance-child: ";
/// Rounds of a contender that is to be killed. It reports nothing, for nobody reads it.
pub(crate) const ENDLESS: usize = usize::MAX;
/// Time for a new process to come up on a loaded machine.
const START_BOUND: Duration = Duration::from_secs(30);

/// Order to a child process: acquire a lock and hold it until the process is killed, or acquire and
/// release it again and again.
#[derive(Debug)]
pub(crate) struct Order {
    address: String,
    name: String,
    ttl: Duration,
    rounds: Option<usize>,
}

impl Order {
    pub(crate) fn from_environment() -> Option<Self> {
        let ttl = env::var(TTL).ok()?.parse().ok()?;
        Some(Self {
            address: env::var(ADDRESS).ok()?,
            name: env::var(NAME).ok()?,
            ttl: Duration::from_millis(ttl),
            rounds: env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()),
        })
    }
}

/// Runs the child from start to end.
pub(crate) fn serve(order: Order, start: &Arc<StartFn>) -> ExitCode {
    // The parent holds the other end: when the parent is gone, however it ended, so is this
    // process.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let served = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BoxError::from);
    match served.and_then(|runtime| runtime.block_on(obey(order, start))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn obey(order: Order, start: &Arc<StartFn>) -> Result<(), BoxError> {
    let harness = match start(Some(order.address)).await? {
        Start::Ready(harness) => harness,
        Start::Skip(reason) => return Err(reason.into()),
    };
    let client = harness.connect().await?;
    let name = LockName::new(order.name)?;
    let options = AcquireOptions::new().with_ttl(order.ttl);
    say("asking");
    if let Some(rounds) = order.rounds {
        return contend(&*client, &name, &options, rounds).await;
    }
    let guard = client.acquire_with(&name, options).await?;
    say(&format!(
        "holding {}",
        guard.token().map_or(0, FencingToken::as_u64)
    ));
    say(&format!("lost {:?}", guard.lost().await));
    std::future::pending().await
}

async fn contend(
    client: &dyn DistributedLock,
    name: &LockName,
    options: &AcquireOptions,
    rounds: usize,
) -> Result<(), BoxError> {
    for _ in 0..rounds {
        let guard = client.acquire_with(name, options.clone()).await?;
        if rounds == ENDLESS {
            let _ = guard.release().await;
            continue;
        }
        let from = Clock::Suspend.now().since_origin();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let is_held = !guard.is_lost();
        let until = Clock::Suspend.now().since_origin();
        // A guard that was lost meanwhile promises nothing about the time since.
        if is_held {
            say(&format!("held {} {}", from.as_nanos(), until.as_nanos()));
        }
        let _ = guard.release().await;
    }
    say("done");
    Ok(())
}

/// Time during which one process held a lock, on the clock that all processes of the machine share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Interval {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

impl Interval {
    fn parse(line: &str) -> Option<Self> {
        let (from, until) = line.strip_prefix("held ")?.split_once(' ')?;
        Some(Self {
            from: Duration::from_nanos(from.parse().ok()?),
            until: Duration::from_nanos(until.parse().ok()?),
        })
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{MARK}{line}").and_then(|()| out.flush());
}

/// Another process that holds, or waits for, a lock.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a process, which has connected and is asking for the lock, with the short TTL.
    pub(crate) async fn asking(ctx: &Ctx, name: &LockName) -> Result<Self, Stop> {
        Self::start(ctx, name, None).await
    }

    /// Starts a process that acquires and releases the lock so many times.
    pub(crate) async fn contending(
        ctx: &Ctx,
        name: &LockName,
        rounds: usize,
    ) -> Result<Self, Stop> {
        Self::start(ctx, name, Some(rounds)).await
    }

    async fn start(ctx: &Ctx, name: &LockName, rounds: Option<usize>) -> Result<Self, Stop> {
        let address = ctx
            .harness()
            .child_address()
            .ok_or_else(|| Stop::lacks(Need::OtherProcess))?;
        let spawned = env::current_exe().and_then(|program| {
            Command::new(program)
                .env(ADDRESS, address)
                .env(NAME, name.as_str())
                .env(TTL, ctx.ttl().as_millis().to_string())
                .envs(rounds.map(|rounds| (ROUNDS, rounds.to_string())))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
        });
        let mut process = spawned
            .map_err(|error| Stop::Fail(format!("cannot start a child process: {error}")))?;
        let stdout = process
            .stdout
            .take()
            .ok_or_else(|| Stop::Fail("the child has no standard output".into()))?;
        let mut child = Self {
            process,
            lines: BufReader::new(stdout).lines(),
        };
        child.line("asking", START_BOUND).await?;
        Ok(child)
    }

    /// Starts a process that holds the lock; returns it with its token.
    pub(crate) async fn holding(ctx: &Ctx, name: &LockName) -> Result<(Self, u64), Stop> {
        let mut child = Self::asking(ctx, name).await?;
        let token = child.granted(PROMPT).await?;
        Ok((child, token))
    }

    /// Waits until the child holds the lock; returns its token, or 0.
    pub(crate) async fn granted(&mut self, bound: Duration) -> Result<u64, Stop> {
        let token = self.line("holding ", bound).await?;
        token
            .parse()
            .map_err(|error| Stop::Fail(format!("the child's token `{token}`: {error}")))
    }

    /// Returns the intervals in which a contender held the lock, until it is done or the time is up.
    pub(crate) async fn intervals(&mut self, bound: Duration) -> (Vec<Interval>, bool) {
        let mut intervals = Vec::new();
        let done = within(bound, async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                let line = line.strip_prefix(MARK).unwrap_or_default();
                intervals.extend(Interval::parse(line));
                if line == "done" {
                    return true;
                }
            }
            false
        });
        let done = done.await == Some(true);
        (intervals, done)
    }

    /// Waits until the child says that its guard is lost.
    pub(crate) async fn lost(&mut self, bound: Duration) -> Outcome {
        self.line("lost ", bound).await.map(drop)
    }

    /// Kills the process (SIGKILL).
    pub(crate) async fn kill(mut self) -> Outcome {
        self.process
            .kill()
            .await
            .map_err(|error| Stop::Fail(format!("cannot kill the child: {error}")))
    }

    /// Stops the process (SIGSTOP): it stays alive and does nothing.
    #[cfg(unix)]
    pub(crate) fn pause(&self) -> Outcome {
        self.signal(rustix::process::Signal::STOP)
    }

    /// Resumes the process (SIGCONT).
    #[cfg(unix)]
    pub(crate) fn resume(&self) -> Outcome {
        self.signal(rustix::process::Signal::CONT)
    }

    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) -> Outcome {
        let id = self
            .process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        let sent = id.map(|id| rustix::process::kill_process(id, signal));
        match sent {
            Some(Ok(())) => Ok(()),
            other => Err(Stop::Fail(format!("cannot signal the child: {other:?}"))),
        }
    }

    /// Returns the rest of the child's next line that begins with this prefix.
    async fn line(&mut self, begin: &str, bound: Duration) -> Result<String, Stop> {
        let mut seen = Vec::new();
        let found = within(bound, async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                if let Some(rest) = line
                    .strip_prefix(MARK)
                    .and_then(|line| line.strip_prefix(begin))
                {
                    return Some(rest.to_owned());
                }
                seen.push(line);
            }
            None
        });
        match found.await {
            Some(Some(rest)) => Ok(rest),
            Some(None) => Err(Stop::Fail(format!(
                "the child ended before it said `{begin}`; it said {seen:?}"
            ))),
            None => Err(Stop::Fail(format!(
                "the child did not say `{begin}` within {bound:?}; it said {seen:?}"
            ))),
        }
    }
}
