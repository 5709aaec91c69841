use std::{
    fmt::{self, Debug},
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use lock_core::backend::Tasks;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind, Value, aio::MultiplexedConnection,
};
use tokio::sync::watch;

use crate::{address::Address, error::Failure, keys::Keys, scripts::LockScript, sync::locked, upstream::Upstream};

/// A connection to the server that is made again whenever it is found broken or silent.
///
/// Everybody who needs it while it is being made waits for the same attempt, which runs in a task of its own: a caller
/// who gives up does not interrupt it, and the connection lives on the client's own runtime.
pub(crate) struct Link {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    upstream: Upstream,
    config: AsyncConnectionConfig,
    timeouts: Timeouts,
    tasks: Tasks,
    /// Told of changed keys and of the end of a connection; makes this a link that tracks what it reads.
    listener: Option<Arc<dyn Listener>>,
    state: Mutex<State>,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
}

/// Who is told what the server pushes over a tracking link. Called by the connection's driver: must not block.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A key that was read over the link has changed.
    fn changed(&self, key: &[u8]);

    /// Changes may have been missed: the connection ended, or the server forgot all keys at once.
    fn missed(&self);
}

#[derive(Default)]
struct State {
    current: Option<Connection>,
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    /// The last attempt was refused by the server, at that time: not repeated at once.
    refused: Option<(Instant, Failure)>,
    closed: bool,
}

/// A server that refuses a client is not asked again before this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The same for a link that tracks: what does without it asks for it again and again, and the refusal, mostly an access
/// rule, rarely passes.
const TRACKING_REFUSED_PAUSE: Duration = Duration::from_secs(30);

type Outcome = Result<Connection, Failure>;

/// One connection of a [`Link`]: requests over it take effect in the order in which they were sent.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: MultiplexedConnection,
    link: Weak<Shared>,
    health: Arc<Health>,
    /// The server, where it may become another one's turn.
    address: Option<Arc<Address>>,
    /// Whether each command is preceded by `ASKING`, for a server that does not keep the key's slot yet.
    asking: bool,
}

/// What is known of a connection and its server.
#[derive(Debug, Default)]
struct Health {
    /// Since when it owes an answer.
    owes: Mutex<Option<Instant>>,
    /// The scripts that were run over it.
    scripts: AtomicU8,
}

impl Link {
    pub(crate) fn new(upstream: Upstream, timeouts: Timeouts, tasks: Tasks, listener: Option<Arc<dyn Listener>>) -> Self {
        let mut config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(Some(timeouts.response));
        if let Some(listener) = &listener {
            config = config.set_push_sender(pushes_to(Arc::clone(listener)));
        }
        let shared = Arc::new(Shared { upstream, config, timeouts, tasks, listener, state: Mutex::default() });
        shared.upstream.register(&shared);
        Self { shared }
    }

    /// The connection, made now if there is none that works.
    ///
    /// # Cancel safety
    ///
    /// The attempt to connect goes on, for the next caller.
    pub(crate) async fn connection(&self) -> Outcome {
        let mut attempt = match self.shared.current_or_attempt() {
            Ok(outcome) => return outcome,
            Err(attempt) => attempt,
        };
        match attempt.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(interrupted())),
            Err(_) => Err(interrupted()),
        }
    }

    /// Whether there is a connection that seems to work.
    pub(crate) fn is_connected(&self) -> bool {
        let state = locked(&self.shared.state);
        state.current.as_ref().is_some_and(|current| self.shared.is_usable(current))
    }

    /// Gives up the connection; a later one is not kept.
    pub(crate) fn close(&self) {
        let closed = {
            let mut state = locked(&self.shared.state);
            state.closed = true;
            state.current.take()
        };
        drop(closed);
    }
}

impl Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = locked(&self.shared.state).current.is_some();
        f.debug_struct("Link").field("to", &self.shared.upstream).field("connected", &connected).finish_non_exhaustive()
    }
}

fn pushes_to(listener: Arc<dyn Listener>) -> impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static {
    move |push| {
        match (push.kind, push.data.first()) {
            (PushKind::Invalidate, Some(Value::Array(keys))) => {
                for key in keys {
                    if let Value::BulkString(key) = key {
                        listener.changed(key);
                    }
                }
            }
            // The whole data set was flushed, or the connection is gone.
            (PushKind::Invalidate | PushKind::Disconnection, _) => listener.missed(),
            _ => {}
        }
        Ok(())
    }
}

fn interrupted() -> Failure {
    Failure::unsent(io::Error::new(io::ErrorKind::NotConnected, "the runtime that was connecting has ended"))
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

impl Shared {
    fn current_or_attempt(self: &Arc<Self>) -> Result<Outcome, watch::Receiver<Option<Outcome>>> {
        let mut useless = None;
        let mut state = locked(&self.state);
        if let Some(current) = &state.current {
            if self.is_usable(current) {
                return Ok(Ok(current.clone()));
            }
            useless = state.current.take();
        }
        if let Some((when, failure)) = &state.refused
            && when.elapsed() < self.refused_pause()
        {
            return Ok(Err(failure.clone()));
        }
        let attempt = match &state.attempt {
            // Its task ended without an outcome when its runtime was shut down.
            Some(attempt) if attempt.has_changed().is_ok() => attempt.clone(),
            _ => {
                let (sender, receiver) = watch::channel(None);
                self.tasks.spawn(Arc::clone(self).attempt(sender));
                state.attempt = Some(receiver.clone());
                receiver
            }
        };
        drop(state);
        if useless.is_some() {
            self.missed();
        }
        Err(attempt)
    }

    async fn attempt(self: Arc<Self>, sender: watch::Sender<Option<Outcome>>) {
        let outcome = match tokio::time::timeout(self.timeouts.connect, Arc::clone(&self).connect()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::unsent(timed_out())),
        };
        let outcome = outcome.map_err(|failure| {
            let limit = self.timeouts.connect;
            failure.while_trying(format!("cannot connect to {} within {limit:?}", self.upstream))
        });
        {
            let mut state = locked(&self.state);
            state.attempt = None;
            state.refused = None;
            match &outcome {
                Ok(connection) if !state.closed => state.current = Some(connection.clone()),
                Err(failure) if failure.is_refusal() => state.refused = Some((Instant::now(), failure.clone())),
                _ => {}
            }
        }
        sender.send_replace(Some(outcome));
        // The server's turn may have ended just before it became the current one.
        self.recheck();
    }

    async fn connect(self: Arc<Self>) -> Outcome {
        let (info, address) = self.upstream.find().await?;
        tokio::select! {
            connected = Arc::clone(&self).connect_to(info, address.clone()) => connected,
            () = self.upstream.until_not(address.as_deref()) => Err(Failure::unsent(io::Error::from(io::ErrorKind::NotConnected))),
        }
    }

    async fn connect_to(self: Arc<Self>, info: ConnectionInfo, address: Option<Arc<Address>>) -> Outcome {
        let client = Client::open(self.prepared(info)).map_err(Failure::bad_setting)?;
        let inner = client.get_multiplexed_async_connection_with_config(&self.config).await.map_err(Failure::unsent)?;
        let connection = Connection { inner, link: Arc::downgrade(&self), health: Arc::default(), address, asking: false };
        match connection.run(&redis::cmd("PING")).await.map_err(Failure::without_effect)? {
            Value::SimpleString(pong) if pong == "PONG" => {}
            _ => return Err(Failure::unexpected("no PONG in answer to PING").without_effect()),
        }
        self.upstream.check(&connection).await.map_err(Failure::without_effect)?;
        if self.listener.is_some() {
            connection.run(redis::cmd("CLIENT").arg("TRACKING").arg("ON")).await.map_err(Failure::without_effect)?;
        }
        Ok(connection)
    }

    fn prepared(&self, info: ConnectionInfo) -> ConnectionInfo {
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let mut settings = info.redis_settings().clone();
        if self.listener.is_some() {
            settings = settings.set_protocol(ProtocolVersion::RESP3);
        }
        info.set_tcp_settings(tcp).set_redis_settings(settings)
    }

    fn is_usable(&self, connection: &Connection) -> bool {
        !connection.health.is_silent(self.timeouts.response) && self.upstream.is_in_charge(connection.address.as_deref())
    }

    /// Gives up a connection to a server whose turn has ended.
    pub(crate) fn recheck(&self) {
        let stale = locked(&self.state).current.clone().filter(|current| !self.upstream.is_in_charge(current.address.as_deref()));
        if let Some(stale) = stale {
            self.discard(&stale.health);
        }
    }

    fn refused_pause(&self) -> Duration {
        if self.listener.is_some() { TRACKING_REFUSED_PAUSE } else { REFUSED_PAUSE }
    }

    fn discard(&self, health: &Arc<Health>) {
        let discarded = {
            let mut state = locked(&self.state);
            let is_current = state.current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.health, health));
            if is_current { state.current.take() } else { None }
        };
        if discarded.is_some() {
            self.missed();
        }
    }

    fn missed(&self) {
        if let Some(listener) = &self.listener {
            listener.missed();
        }
    }
}

impl Connection {
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
    fn is_silent(&self, limit: Duration) -> bool {
        locked(&self.owes).is_some_and(|since| since.elapsed() >= limit)
    }
}
