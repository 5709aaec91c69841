use std::{
    fmt::{self, Debug},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::backend::{Clock, Moment, Tasks};
use redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection};

use crate::{address::Address, error::Failure, keys::Keys, link::Shared, scripts::LockScript};

/// One connection of a [`Link`](crate::link::Link): requests over it take effect in the order in which they were sent.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Wire>,
    /// Whether each command is preceded by `ASKING`, for a server that does not keep the key's slot yet.
    asking: bool,
}

/// The connection itself, and what is known of it and its server.
struct Wire {
    inner: MultiplexedConnection,
    link: Weak<Shared>,
    /// The server, where it may become another one's turn.
    address: Option<Arc<Address>>,
    owes: Owes,
    /// Whether it is being asked for an answer, and nothing else.
    probed: AtomicBool,
    /// The scripts that were run over it.
    scripts: AtomicU8,
}

/// Since when an answer is owed, in nanoseconds since the clock's origin; zero if none is.
#[derive(Debug, Default)]
struct Owes(AtomicU64);

impl Connection {
    pub(crate) fn new(inner: MultiplexedConnection, link: Weak<Shared>, address: Option<Arc<Address>>) -> Self {
        let (owes, probed, scripts) = (Owes::default(), AtomicBool::default(), AtomicU8::default());
        Self { shared: Arc::new(Wire { inner, link, address, owes, probed, scripts }), asking: false }
    }

    /// Sends a command and waits for its answer. It may take effect although this fails or is dropped.
    pub(crate) async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        if self.asking {
            let mut only = redis::pipe();
            only.add_command(command.clone());
            let answer = self.run_all(&only, 1).await?.pop();
            return answer.unwrap_or_else(|| Err(Failure::unexpected("no answer to a command after ASKING")));
        }
        let sent = self.shared.owes.asked();
        let answer = command.query_async::<Value>(&mut self.shared.inner.clone()).await.map_err(Failure::sent);
        self.heard(&answer, sent);
        answer
    }

    /// Runs a script, in full if the server may not know it.
    pub(crate) async fn run_script(&self, script: &LockScript, keys: &Keys, args: impl Fn(&mut Cmd)) -> Result<Value, Failure> {
        if self.has_run(script) {
            let mut command = script.by_hash(keys);
            args(&mut command);
            match self.run(&command).await {
                Err(failure) if failure.is_unknown_script() => {}
                answer => return answer,
            }
        }
        let mut command = script.in_full(keys);
        args(&mut command);
        let answer = self.run(&command).await;
        if answer.is_ok() {
            self.ran(script);
        }
        answer
    }

    /// Whether the script has been run over this connection: the server then knows it, unless it was told to forget.
    pub(crate) fn has_run(&self, script: &LockScript) -> bool {
        self.shared.scripts.load(Ordering::Relaxed) & script.bit() != 0
    }

    pub(crate) fn ran(&self, script: &LockScript) {
        self.shared.scripts.fetch_or(script.bit(), Ordering::Relaxed);
    }

    /// Sends several commands at once; one answer for each, in order.
    pub(crate) async fn run_all(&self, commands: &Pipeline, count: usize) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let sent = self.shared.owes.asked();
        let mut inner = self.shared.inner.clone();
        let answers = match self.asking {
            // One after each command; those to `ASKING` itself say nothing.
            true => inner.send_packed_commands(&after_asking(commands), 0, count * 2).await,
            false => inner.send_packed_commands(commands, 0, count).await,
        };
        let answers = answers.map_err(Failure::sent);
        self.heard(&answers, sent);
        let (first, step) = if self.asking { (1, 2) } else { (0, 1) };
        let answers = answers?.into_iter().skip(first).step_by(step);
        let answers: Vec<_> = answers.map(|answer| answer.extract_error().map_err(Failure::sent)).collect();
        if let Some(end) = answers.iter().find(|answer| answer.as_ref().is_err_and(Failure::ends_connection)) {
            self.heard(end, sent);
        }
        Ok(answers)
    }

    /// Takes note of the answer to what was `sent` then.
    fn heard<T>(&self, answer: &Result<T, Failure>, sent: Moment) {
        match answer {
            Err(failure) if failure.ends_connection() => {
                self.shared.owes.still(sent);
                if let Some(link) = self.shared.link.upgrade() {
                    link.discard(self);
                }
            }
            Err(failure) if failure.is_timeout() => self.shared.owes.still(sent),
            _ => self.shared.owes.answered(),
        }
    }

    /// The same connection, to a server that is getting the key's slot.
    pub(crate) fn asking(self) -> Self {
        Self { asking: true, ..self }
    }

    /// Whether requests go to the same server now: what it did before counts there.
    pub(crate) fn leads_to_who_is_in_charge(&self) -> bool {
        self.shared.link.upgrade().is_some_and(|link| link.is_in_charge(self))
    }

    /// The server, where it may become another one's turn.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.shared.address.as_deref()
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether requests have gone unanswered for so long that the connection has to be replaced: a socket whose other
    /// end vanished gives no error, and a request that its caller gave up on reports no timeout.
    pub(crate) fn is_silent(&self, limit: Duration) -> bool {
        self.shared.owes.since().is_some_and(|since| Clock::Suspend.now().saturating_since(since) >= limit)
    }

    /// Whether the answer to a request is still due: its server may yet execute it.
    pub(crate) fn owes(&self) -> bool {
        self.shared.owes.since().is_some()
    }

    /// Asks for an answer in the background, so that [`owes`](Self::owes) gets to know of one.
    pub(crate) fn probe(&self, tasks: &Tasks) {
        if !self.shared.probed.swap(true, Ordering::Relaxed) {
            let this = self.clone();
            tasks.spawn(async move {
                // Whatever it says has been noted.
                let _ = this.run(&redis::cmd("PING")).await;
                this.shared.probed.store(false, Ordering::Relaxed);
            });
        }
    }
}

fn after_asking(commands: &Pipeline) -> Pipeline {
    let mut all = redis::pipe();
    for command in commands.cmd_iter() {
        all.cmd("ASKING").add_command(command.clone());
    }
    all
}

impl Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.shared.address).field("owes", &self.shared.owes).finish_non_exhaustive()
    }
}

impl Owes {
    /// A request is about to be sent; returns when.
    fn asked(&self) -> Moment {
        let now = Clock::Suspend.now();
        let _ = self.0.compare_exchange(0, nanos(now), Ordering::Relaxed, Ordering::Relaxed);
        now
    }

    /// What was sent last, and all before it, has been answered; those after it are looked at again when they time out.
    fn answered(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    /// What was sent then has not been answered.
    fn still(&self, sent: Moment) {
        let earlier = |since| if since == 0 || since > nanos(sent) { Some(nanos(sent)) } else { None };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    fn since(&self) -> Option<Moment> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Moment::from_origin(Duration::from_nanos(since))),
        }
    }
}

fn nanos(moment: Moment) -> u64 {
    // 584 years of uptime fit.
    u64::try_from(moment.since_origin().as_nanos()).unwrap_or(u64::MAX)
}
