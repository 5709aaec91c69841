use std::{
    fmt::{self, Debug},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection};

use crate::{address::Address, error::Failure, keys::Keys, link::Shared, scripts::LockScript, sync::locked};

/// One connection of a [`Link`](crate::link::Link): requests over it take effect in the order in which they were sent.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: MultiplexedConnection,
    link: Weak<Shared>,
    pub(crate) health: Arc<Health>,
    /// The server, where it may become another one's turn.
    pub(crate) address: Option<Arc<Address>>,
    /// Whether each command is preceded by `ASKING`, for a server that does not keep the key's slot yet.
    asking: bool,
}

/// What is known of a connection and its server.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Since when it owes an answer.
    owes: Mutex<Option<Instant>>,
    /// The scripts that were run over it.
    scripts: AtomicU8,
}

impl Connection {
    pub(crate) fn new(inner: MultiplexedConnection, link: Weak<Shared>, address: Option<Arc<Address>>) -> Self {
        Self { inner, link, health: Arc::default(), address, asking: false }
    }

    /// Sends a command and waits for its answer. It may take effect although this fails or is dropped.
    pub(crate) async fn run(&self, command: &Cmd) -> Result<Value, Failure> {
        if self.asking {
            let mut only = redis::pipe();
            only.add_command(command.clone());
            let answer = self.run_all(&only, 1).await?.pop();
            return answer.unwrap_or_else(|| Err(Failure::unexpected("no answer to a command after ASKING")));
        }
        self.health.asked();
        let answer = command.query_async::<Value>(&mut self.inner.clone()).await.map_err(Failure::sent);
        self.heard(&answer);
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
        self.health.scripts.load(Ordering::Relaxed) & script.bit() != 0
    }

    pub(crate) fn ran(&self, script: &LockScript) {
        self.health.scripts.fetch_or(script.bit(), Ordering::Relaxed);
    }

    /// Sends several commands at once; one answer for each, in order.
    pub(crate) async fn run_all(&self, commands: &Pipeline, count: usize) -> Result<Vec<Result<Value, Failure>>, Failure> {
        self.health.asked();
        let mut inner = self.inner.clone();
        let answers = match self.asking {
            // One after each command; those to `ASKING` itself say nothing.
            true => inner.send_packed_commands(&after_asking(commands), 0, count * 2).await,
            false => inner.send_packed_commands(commands, 0, count).await,
        };
        let answers = answers.map_err(Failure::sent);
        self.heard(&answers);
        let (first, step) = if self.asking { (1, 2) } else { (0, 1) };
        let answers = answers?.into_iter().skip(first).step_by(step);
        let answers: Vec<_> = answers.map(|answer| answer.extract_error().map_err(Failure::sent)).collect();
        if let Some(end) = answers.iter().find(|answer| answer.as_ref().is_err_and(Failure::ends_connection)) {
            self.heard(end);
        }
        Ok(answers)
    }

    fn heard<T>(&self, answer: &Result<T, Failure>) {
        match answer {
            Err(failure) if failure.ends_connection() => {
                if let Some(link) = self.link.upgrade() {
                    link.discard(&self.health);
                }
            }
            // No answer: the connection goes on owing it.
            Err(failure) if failure.is_timeout() => {}
            _ => self.health.answered(),
        }
    }

    /// The same connection, to a server that is getting the key's slot.
    pub(crate) fn asking(self) -> Self {
        Self { asking: true, ..self }
    }

    /// Whether requests go to the same server now: what it did before counts there.
    pub(crate) fn leads_to_who_is_in_charge(&self) -> bool {
        self.link.upgrade().is_some_and(|link| link.is_in_charge(self))
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.health, &other.health)
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
        f.debug_struct("Connection").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Health {
    fn asked(&self) {
        locked(&self.owes).get_or_insert_with(Instant::now);
    }

    fn answered(&self) {
        *locked(&self.owes) = None;
    }

    /// Whether requests have gone unanswered for so long that the connection has to be replaced: a socket whose other
    /// end vanished gives no error, and a request that its caller gave up on reports no timeout.
    pub(crate) fn is_silent(&self, limit: Duration) -> bool {
        locked(&self.owes).is_some_and(|since| since.elapsed() >= limit)
    }
}
