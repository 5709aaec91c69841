use std::{
    fmt::{self, Debug},
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lock_core::backend::{Tasks, locked};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, ProtocolVersion, Value};
use tokio::sync::watch;

pub(crate) use crate::transport::{connection::Connection, pushes::Listener};
use crate::{
    error::Failure,
    transport::address::Address,
    transport::breaker::{Breaker, WAIT_MAX},
    transport::pushes::pushes_to,
    transport::upstream::Upstream,
};

/// A connection to the server that is made again whenever it is found broken or silent.
///
/// Everybody who needs it while it is being made waits for the same attempt, which runs in a task
/// of its own: a caller who gives up does not interrupt it, and the connection lives on the
/// client's own runtime.
pub(crate) struct Link {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    upstream: Upstream,
    breaker: Arc<Breaker>,
    config: AsyncConnectionConfig,
    timeouts: Timeouts,
    tasks: Tasks,
    /// Told of changed keys and of the end of a connection; makes this a link that tracks what it
    /// reads.
    listener: Option<Arc<dyn Listener>>,
    state: Mutex<State>,
}

/// Time to wait for what.
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

#[derive(Default)]
struct State {
    current: Option<Connection>,
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    /// The last attempt was refused by the server: not repeated before this.
    refused: Option<(Instant, Failure)>,
    /// How often in a row.
    refusals: u32,
    closed: bool,
    /// Nothing is left of what was made on a runtime that has ended.
    moved: bool,
}

/// A server that refuses a client is not asked again before this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// The same where it lets the client in, but not track, after some refusals: mostly an access rule,
/// which rarely passes; but until that is seen, each hand-over waits for a poll.
const TRACKING_REFUSED_PAUSE: Duration = Duration::from_secs(4);

/// Most requests that may be on their way to the socket. More than there are: who waits for room
/// and is not polled any more keeps the room that he was given.
const BUFFER: usize = 1 << 20;

type Outcome = Result<Connection, Failure>;

impl Link {
    pub(crate) fn new(
        upstream: Upstream,
        timeouts: Timeouts,
        tasks: Tasks,
        listener: Option<Arc<dyn Listener>>,
        breaker: Arc<Breaker>,
    ) -> Self {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(timeouts.response));
        config = config.set_pipeline_buffer_size(BUFFER);
        if let Some(listener) = &listener {
            config = config.set_push_sender(pushes_to(Arc::clone(listener)));
        }
        let shared = Arc::new(Shared {
            upstream,
            breaker,
            config,
            timeouts,
            tasks,
            listener,
            state: Mutex::default(),
        });
        shared.upstream.register(&shared);
        Self { shared }
    }

    /// The connection, made now if there is none that works, within the time for it and that for an
    /// answer.
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
        match tokio::time::timeout(
            WAIT_MAX + connect + response,
            attempt.wait_for(Option::is_some),
        )
        .await
        {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(interrupted())),
            Ok(Err(_)) => Err(interrupted()),
            // It ends within the first of these by itself, wherever its runtime runs.
            Err(_) => Err(Failure::unsent(timed_out())
                .while_trying("the runtime that the client was made on runs no tasks".to_owned())),
        }
    }

    /// Returns the connection if there is one that works; else one is made in the background.
    pub(crate) fn ready(&self) -> Option<Connection> {
        self.shared.current_or_attempt().ok()?.ok()
    }

    /// Returns whether there is a connection that seems to work.
    pub(crate) fn is_connected(&self) -> bool {
        let state = locked(&self.shared.state);
        state
            .current
            .as_ref()
            .is_some_and(|current| self.shared.is_usable(current))
    }

    /// A link to the same server that tracks nothing, with another limit for answers.
    pub(crate) fn another(&self, response: Duration) -> Self {
        let Shared {
            upstream,
            timeouts,
            tasks,
            breaker,
            ..
        } = &*self.shared;
        Self::new(
            upstream.clone(),
            Timeouts {
                response,
                ..*timeouts
            },
            tasks.clone(),
            None,
            Arc::clone(breaker),
        )
    }

    /// Returns why the server cannot be reached at the moment, if that is known.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared.breaker.failure()
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
        f.debug_struct("Link")
            .field("to", &self.shared.upstream)
            .field("connected", &connected)
            .finish_non_exhaustive()
    }
}

/// Returns for how long a refusal counts, after so many before it.
fn refused_pause(failure: &Failure, before: u32) -> Duration {
    let longest = match failure.denies_tracking() {
        true => TRACKING_REFUSED_PAUSE,
        false => REFUSED_PAUSE,
    };
    (REFUSED_PAUSE * 2_u32.pow(before.min(8))).min(longest)
}

fn interrupted() -> Failure {
    Failure::unsent(io::Error::new(
        io::ErrorKind::NotConnected,
        "the runtime that was connecting has ended",
    ))
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
        if let Some((until, failure)) = &state.refused
            && Instant::now() < *until
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
        let outcome = match self.breaker.pass().await {
            Ok(()) => Arc::clone(&self).attempt_now().await,
            // Another connection's attempt found out for this one.
            Err(failure) => Err(failure),
        };
        {
            let mut state = locked(&self.state);
            (state.attempt, state.refused) = (None, None);
            match &outcome {
                Ok(connection) => {
                    state.refusals = 0;
                    if !state.closed {
                        state.current = Some(connection.clone());
                    }
                }
                Err(failure) if failure.is_refusal() => {
                    let pause = refused_pause(failure, state.refusals);
                    state.refusals = state.refusals.saturating_add(1);
                    state.refused = Some((Instant::now() + pause, failure.clone()));
                }
                Err(_) => {}
            }
        }
        sender.send_replace(Some(outcome));
        // The server's turn may have ended just before it became the current one.
        self.recheck();
    }

    async fn attempt_now(self: Arc<Self>) -> Outcome {
        let limit = self.timeouts.connect;
        let trying = format!("cannot connect to {}", self.upstream);
        let outcome = match tokio::time::timeout(limit, Arc::clone(&self).connect()).await {
            Ok(outcome) => outcome.map_err(|failure| failure.while_trying(trying)),
            Err(_) => {
                Err(Failure::unsent(timed_out()).while_trying(format!("{trying} within {limit:?}")))
            }
        };
        self.breaker.record(&outcome);
        outcome
    }

    async fn connect(self: Arc<Self>) -> Outcome {
        let (info, address) = self.upstream.find().await?;
        tokio::select! {
            connected = Arc::clone(&self).connect_to(info, address.clone()) => connected,
            () = self.upstream.until_not(address.as_deref()) => Err(Failure::unsent(io::Error::from(io::ErrorKind::NotConnected))),
        }
    }

    async fn connect_to(
        self: Arc<Self>,
        info: ConnectionInfo,
        address: Option<Arc<Address>>,
    ) -> Outcome {
        let client = Client::open(self.prepared(info)).map_err(Failure::bad_setting)?;
        let inner = client
            .get_multiplexed_async_connection_with_config(&self.config)
            .await
            .map_err(Failure::unsent)?;
        let connection = Connection::new(inner, Arc::downgrade(&self), address);
        match connection
            .run(&redis::cmd("PING"))
            .await
            .map_err(Failure::without_effect)?
        {
            Value::SimpleString(pong) if pong == "PONG" => {}
            _ => return Err(Failure::unexpected("no PONG in answer to PING").without_effect()),
        }
        self.upstream
            .check(&connection)
            .await
            .map_err(Failure::without_effect)?;
        if self.listener.is_some() {
            let tracking = connection
                .run(redis::cmd("CLIENT").arg("TRACKING").arg("ON"))
                .await;
            tracking.map_err(|failure| failure.without_effect().on_tracking())?;
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

    /// Returns whether it is still its server's turn.
    pub(crate) fn is_in_charge(&self, connection: &Connection) -> bool {
        self.upstream.is_in_charge(connection.address())
    }

    /// It is another server's turn.
    pub(crate) fn moved_on(&self) {
        self.breaker.reset();
        self.recheck();
    }

    /// Gives up a connection that is of no more use.
    pub(crate) fn broke(&self, connection: &Connection) {
        self.breaker.broke();
        self.discard(connection);
    }

    /// Gives up a connection to a server whose turn has ended.
    pub(crate) fn recheck(&self) {
        let stale = locked(&self.state)
            .current
            .clone()
            .filter(|current| !self.is_in_charge(current));
        if let Some(stale) = stale {
            self.discard(&stale);
        }
    }

    fn discard(&self, connection: &Connection) {
        let discarded = {
            let mut state = locked(&self.state);
            let is_current = state
                .current
                .as_ref()
                .is_some_and(|current| current.is(connection));
            if is_current {
                state.current.take()
            } else {
                None
            }
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
mod tests;
