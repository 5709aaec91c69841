use std::{
    fmt::{self, Debug},
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lock_core::backend::{Tasks, locked};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::watch;

pub(crate) use crate::connection::Connection;
use crate::{address::Address, error::Failure, upstream::Upstream};

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

impl Timeouts {
    /// Enough for a request over a connection that has to be made, and once more.
    pub(crate) fn attempt(self) -> Duration {
        (self.connect + self.response) * 2
    }
}

/// Who is told what the server pushes over a tracking link. Called by the connection's driver: must not block.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A key that was read over the link has changed.
    fn changed(&self, key: &[u8]);

    /// Changes of `concerned` keys may have been missed: the connection ended, another server keeps them, or the server forgot all
    /// at once.
    fn missed(&self, concerned: &dyn Fn(&str) -> bool);
}

#[derive(Default)]
struct State {
    current: Option<Connection>,
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    /// When the last attempt failed.
    failed: Option<Instant>,
    /// The last attempt was refused by the server, at that time: not repeated at once.
    refused: Option<(Instant, Failure)>,
    closed: bool,
    /// Nothing is left of what was made on a runtime that has ended.
    moved: bool,
}

/// From a failed attempt to the next: however many want a connection to a server that is down, it is asked this often at most.
const FAILED_PAUSE: Duration = Duration::from_millis(50);

/// A server that refuses a client is not asked again before this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The same for a link that tracks: what does without it asks for it again and again, and the refusal, mostly an access
/// rule, rarely passes.
const TRACKING_REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// How many requests may be on their way to the socket. More than there are: who waits for room and is not polled any more keeps
/// the room that he was given.
const BUFFER: usize = 1 << 20;

type Outcome = Result<Connection, Failure>;

impl Link {
    pub(crate) fn new(upstream: Upstream, timeouts: Timeouts, tasks: Tasks, listener: Option<Arc<dyn Listener>>) -> Self {
        let mut config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(Some(timeouts.response));
        config = config.set_pipeline_buffer_size(BUFFER);
        if let Some(listener) = &listener {
            config = config.set_push_sender(pushes_to(Arc::clone(listener)));
        }
        let shared = Arc::new(Shared { upstream, config, timeouts, tasks, listener, state: Mutex::default() });
        shared.upstream.register(&shared);
        Self { shared }
    }

    /// The connection, made now if there is none that works, within the time for it and that for an answer.
    ///
    /// # Cancel safety
    ///
    /// The attempt to connect goes on, for the next caller.
    pub(crate) async fn connection(&self) -> Outcome {
        let mut attempt = match self.shared.current_or_attempt() {
            Ok(outcome) => return outcome,
            Err(attempt) => attempt,
        };
        let Timeouts { connect, response } = self.shared.timeouts;
        match tokio::time::timeout(FAILED_PAUSE + connect + response, attempt.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(interrupted())),
            Ok(Err(_)) => Err(interrupted()),
            // It ends within the first of these by itself, wherever its runtime runs.
            Err(_) => Err(Failure::unsent(timed_out()).while_trying("the runtime that the client was made on runs no tasks".to_owned())),
        }
    }

    /// Whether there is a connection that seems to work.
    pub(crate) fn is_connected(&self) -> bool {
        let state = locked(&self.shared.state);
        state.current.as_ref().is_some_and(|current| self.shared.is_usable(current))
    }

    /// A link to the same server that tracks nothing, with another limit for answers.
    pub(crate) fn another(&self, response: Duration) -> Self {
        let Shared { upstream, timeouts, tasks, .. } = &*self.shared;
        Self::new(upstream.clone(), Timeouts { response, ..*timeouts }, tasks.clone(), None)
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
            (PushKind::Invalidate | PushKind::Disconnection, _) => listener.missed(&|_| true),
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
        if self.tasks.have_moved() && !std::mem::replace(&mut state.moved, true) {
            // Nothing drives any more what was made on the runtime that has ended.
            (useless, state.attempt) = (state.current.take(), None);
        }
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
                let pause = state.failed.map_or(Duration::ZERO, |failed| FAILED_PAUSE.saturating_sub(failed.elapsed()));
                self.tasks.spawn(Arc::clone(self).attempt(sender, pause));
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

    async fn attempt(self: Arc<Self>, sender: watch::Sender<Option<Outcome>>, pause: Duration) {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
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
            (state.attempt, state.refused) = (None, None);
            state.failed = outcome.is_err().then(Instant::now);
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
        let connection = Connection::new(inner, Arc::downgrade(&self), address);
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
        !connection.is_silent(self.timeouts.response) && self.is_in_charge(connection)
    }

    /// Whether it is still its server's turn.
    pub(crate) fn is_in_charge(&self, connection: &Connection) -> bool {
        self.upstream.is_in_charge(connection.address())
    }

    /// Gives up a connection to a server whose turn has ended.
    pub(crate) fn recheck(&self) {
        let stale = locked(&self.state).current.clone().filter(|current| !self.is_in_charge(current));
        if let Some(stale) = stale {
            self.discard(&stale);
        }
    }

    fn refused_pause(&self) -> Duration {
        if self.listener.is_some() { TRACKING_REFUSED_PAUSE } else { REFUSED_PAUSE }
    }

    pub(crate) fn discard(&self, connection: &Connection) {
        let discarded = {
            let mut state = locked(&self.state);
            let is_current = state.current.as_ref().is_some_and(|current| current.is(connection));
            if is_current { state.current.take() } else { None }
        };
        if discarded.is_some() {
            self.missed();
        }
    }

    fn missed(&self) {
        if let Some(listener) = &self.listener {
            listener.missed(&|_| true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::{net::TcpListener, task::JoinSet};

    use super::*;

    #[tokio::test]
    async fn a_server_that_fails_is_asked_seldom_however_many_want_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Relaxed);
            }
        });
        let info = Client::open(url).unwrap().get_connection_info().clone();
        let timeouts = Timeouts { connect: Duration::from_secs(1), response: Duration::from_secs(1) };
        let link = Arc::new(Link::new(Upstream::Fixed(info), timeouts, Tasks::current(), None));
        let (start, mut names) = (Instant::now(), JoinSet::new());
        for _ in 0..100 {
            let link = Arc::clone(&link);
            names.spawn(async move {
                for _ in 0..20 {
                    link.connection().await.unwrap_err();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        names.join_all().await;
        let most = start.elapsed().as_millis() / FAILED_PAUSE.as_millis() + 1;
        assert!((2..=most).contains(&(asked.load(Relaxed) as u128)), "{asked:?} times in {:?}", start.elapsed());
    }
}
