use std::{
    env,
    io::{Read, Write},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use lock_core::{AcquireOptions, FencingToken, LockName};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{ChildStdout, Command},
};

use crate::{
    Need, Start,
    case::{Outcome, PROMPT, Stop},
    context::{Ctx, within},
    suite::{BoxError, StartFn},
};

const ADDRESS: &str = "LOCK_CONFORMANCE_CHILD_ADDRESS";
const NAME: &str = "LOCK_CONFORMANCE_CHILD_NAME";
const TTL: &str = "LOCK_CONFORMANCE_CHILD_TTL_MS";
/// What the child's own lines begin with, among whatever else a backend prints.
const MARK: &str = "conformance-child: ";
/// A new process on a loaded machine.
const START_BOUND: Duration = Duration::from_secs(30);

/// What a child process is to do: acquire a lock and hold it until it is killed.
#[derive(Debug)]
pub(crate) struct Order {
    address: String,
    name: String,
    ttl: Duration,
}

impl Order {
    pub(crate) fn from_environment() -> Option<Self> {
        let ttl = env::var(TTL).ok()?.parse().ok()?;
        Some(Self { address: env::var(ADDRESS).ok()?, name: env::var(NAME).ok()?, ttl: Duration::from_millis(ttl) })
    }
}

/// The child's whole life.
pub(crate) fn serve(order: Order, start: &Arc<StartFn>) -> ExitCode {
    // The parent holds the other end: when it is gone, however it went, so is this process.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let served = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(BoxError::from);
    match served.and_then(|runtime| runtime.block_on(hold(order, start))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn hold(order: Order, start: &Arc<StartFn>) -> Result<(), BoxError> {
    let harness = match start(Some(order.address)).await? {
        Start::Ready(harness) => harness,
        Start::Skip(reason) => return Err(reason.into()),
    };
    let (client, name) = (harness.connect().await?, LockName::new(order.name)?);
    say("asking");
    let guard = client.acquire_with(&name, AcquireOptions::new().with_ttl(order.ttl)).await?;
    say(&format!("holding {}", guard.token().map_or(0, FencingToken::as_u64)));
    say(&format!("lost {:?}", guard.lost().await));
    std::future::pending().await
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
    /// A process that has connected and is asking for the lock with the short TTL.
    pub(crate) async fn asking(ctx: &Ctx, name: &LockName) -> Result<Self, Stop> {
        let address = ctx.harness().child_address().ok_or_else(|| Stop::Skip(Need::OtherProcess.missing()))?;
        let spawned = env::current_exe().and_then(|program| {
            Command::new(program)
                .env(ADDRESS, address)
                .env(NAME, name.as_str())
                .env(TTL, ctx.ttl().as_millis().to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
        });
        let mut process = spawned.map_err(|error| Stop::Fail(format!("cannot start a child process: {error}")))?;
        let stdout = process.stdout.take().ok_or_else(|| Stop::Fail("the child has no standard output".into()))?;
        let mut child = Self { process, lines: BufReader::new(stdout).lines() };
        child.line("asking", START_BOUND).await?;
        Ok(child)
    }

    /// A process that holds the lock, and its token.
    pub(crate) async fn holding(ctx: &Ctx, name: &LockName) -> Result<(Self, u64), Stop> {
        let mut child = Self::asking(ctx, name).await?;
        let token = child.granted(PROMPT).await?;
        Ok((child, token))
    }

    /// Waits until the child holds the lock; its token, or 0.
    pub(crate) async fn granted(&mut self, bound: Duration) -> Result<u64, Stop> {
        let token = self.line("holding ", bound).await?;
        token.parse().map_err(|error| Stop::Fail(format!("the child's token `{token}`: {error}")))
    }

    /// Waits until the child says that its guard is lost.
    pub(crate) async fn lost(&mut self, bound: Duration) -> Outcome {
        self.line("lost ", bound).await.map(drop)
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> Outcome {
        self.process.kill().await.map_err(|error| Stop::Fail(format!("cannot kill the child: {error}")))
    }

    /// SIGSTOP: the process is alive and does nothing.
    #[cfg(unix)]
    pub(crate) fn pause(&self) -> Outcome {
        self.signal(rustix::process::Signal::STOP)
    }

    /// SIGCONT.
    #[cfg(unix)]
    pub(crate) fn resume(&self) -> Outcome {
        self.signal(rustix::process::Signal::CONT)
    }

    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) -> Outcome {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let sent = id.map(|id| rustix::process::kill_process(id, signal));
        match sent {
            Some(Ok(())) => Ok(()),
            other => Err(Stop::Fail(format!("cannot signal the child: {other:?}"))),
        }
    }

    /// The rest of the child's next line that begins like this.
    async fn line(&mut self, begin: &str, bound: Duration) -> Result<String, Stop> {
        let mut seen = Vec::new();
        let found = within(bound, async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                if let Some(rest) = line.strip_prefix(MARK).and_then(|line| line.strip_prefix(begin)) {
                    return Some(rest.to_owned());
                }
                seen.push(line);
            }
            None
        });
        match found.await {
            Some(Some(rest)) => Ok(rest),
            Some(None) => Err(Stop::Fail(format!("the child ended before it said `{begin}`; it said {seen:?}"))),
            None => Err(Stop::Fail(format!("the child did not say `{begin}` within {bound:?}; it said {seen:?}"))),
        }
    }
}
