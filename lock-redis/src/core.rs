use std::{sync::Arc, time::Duration};

use lock_core::{
    ErrorKind, LockError, LockGuard, LockName, Terms,
    backend::{Clock, Holds, Keeper, bounded},
};

use crate::{
    claim::{Answer, Claim, Granted},
    error::Failure,
    link::Connection,
    renewal::RedisRenewer,
    replicas::Replicas,
    servers::{Route, Servers},
    watcher::{Place, Watcher},
};

/// Everything that one client's locks, guards and background tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    /// Longest time for which a waiter relies on being told.
    pub(crate) poll: Duration,
    /// Longest time for which an acquisition puts up with a server that cannot be reached.
    pub(crate) patience: Duration,
    pub(crate) servers: Arc<Servers>,
    /// Who must confirm what was acquired.
    pub(crate) replicas: Option<Arc<Replicas>>,
    pub(crate) watcher: Watcher,
    pub(crate) keeper: Arc<Keeper<RedisRenewer>>,
    pub(crate) holds: Arc<Holds>,
}

/// How often to look where the server does not report changes.
const BLIND_POLL: Duration = Duration::from_millis(200);

/// First pause after a failed attempt; doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Core {
    pub(crate) async fn acquire(self: &Arc<Self>, name: &LockName, terms: Terms) -> Result<LockGuard, LockError> {
        let timeout = terms.timeout;
        bounded(&self.holds, timeout, async {
            let mut claim = Claim::new(self, name, terms);
            let mut trouble = Trouble::new();
            if self.watcher.nobody_waits(claim.key()) {
                match self.request(&mut claim, Via::Commands).await {
                    Ok((Answer::Granted(granted), via)) => return self.confirmed(claim, granted, &via.connection).await,
                    Ok((Answer::Busy(_), _)) => {}
                    Err(failure) if trouble.is_over(&failure, self.patience) => return Err(claim.error(failure)),
                    Err(_) => {}
                }
            }
            let place = self.watcher.join(claim.key());
            // Boxed, so that a lock that is free does not carry it along.
            Box::pin(self.wait(claim, &place, trouble)).await
        })
        .await
    }

    async fn wait(&self, mut claim: Claim, place: &Place, mut trouble: Trouble) -> Result<LockGuard, LockError> {
        loop {
            let epoch = place.turn().await;
            match self.request(&mut claim, Via::Tracking).await {
                Ok((Answer::Granted(granted), via)) => {
                    place.taken(epoch, Some(claim.ttl()), self.poll_over(&via));
                    return self.confirmed(claim, granted, &via.connection).await;
                }
                Ok((Answer::Busy(expires_in), via)) => {
                    trouble = Trouble::new();
                    place.taken(epoch, expires_in, self.poll_over(&via));
                }
                Err(failure) => {
                    trouble.since = Some(place.trouble(trouble.began()));
                    if trouble.is_over(&failure, self.patience) {
                        return Err(claim.error(failure));
                    }
                    place.pause(trouble.pause());
                }
            }
        }
    }

    pub(crate) async fn try_acquire(self: &Arc<Self>, name: &LockName, terms: Terms) -> Result<Option<LockGuard>, LockError> {
        bounded(&self.holds, None, async {
            let mut claim = Claim::new(self, name, terms);
            let mut retried = false;
            loop {
                match self.request(&mut claim, Via::Commands).await {
                    Ok((Answer::Granted(granted), via)) => return self.confirmed(claim, granted, &via.connection).await.map(Some),
                    Ok((Answer::Busy(_), _)) => return Ok(None),
                    // A connection that broke while it was idle is found broken by the next request.
                    Err(failure) if failure.ends_connection() && failure.sent && !retried => retried = true,
                    Err(failure) => return Err(claim.error(failure)),
                }
            }
        })
        .await
    }

    /// The guard, once the replicas that must confirm it have done so.
    async fn confirmed(&self, claim: Claim, granted: Granted, connection: &Connection) -> Result<LockGuard, LockError> {
        let Some(replicas) = &self.replicas else { return Ok(claim.guard(granted, connection)) };
        // Boxed, so that who waits for no replicas does not carry it along.
        match Box::pin(replicas.confirm(&claim.kept())).await {
            Ok(()) if claim.is_in_time(&granted) => Ok(claim.guard(granted, connection)),
            Ok(()) => Err(claim.give_back(LockError::new(ErrorKind::Unavailable, "the replicas confirmed too late"), connection).await),
            Err(error) => Err(claim.give_back(error, connection).await),
        }
    }

    async fn request(&self, claim: &mut Claim, via: Via) -> Result<(Answer, Used), Failure> {
        let key = Arc::clone(claim.key());
        let mut route = self.servers.route(&key);
        loop {
            let used = match via {
                Via::Commands => Used { connection: route.commands().await?, tracked: false },
                Via::Tracking => tracking_or_commands(&mut route).await?,
            };
            match claim.request(used.connection.clone(), used.tracked).await {
                Err(failure) if route.follow(&failure).await => {}
                answer => return Ok((answer.map_err(|failure| self.servers.given_up(failure))?, used)),
            }
        }
    }

    fn poll_over(&self, used: &Used) -> Duration {
        let poll = if used.tracked { self.poll } else { BLIND_POLL.min(self.poll) };
        // So that the waiters of many clients do not keep in step.
        poll.mul_f64(0.75 + rand::random::<f64>() / 4.0)
    }
}

/// A server or an access rule that does not allow tracking makes waiters poll.
async fn tracking_or_commands(route: &mut Route<'_>) -> Result<Used, Failure> {
    match route.tracking().await {
        Ok(connection) => Ok(Used { connection, tracked: true }),
        Err(failure) if failure.is_refusal() => Ok(Used { connection: route.commands().await?, tracked: false }),
        Err(failure) => Err(failure),
    }
}

/// Over which link to send a request.
#[derive(Clone, Copy)]
enum Via {
    Commands,
    Tracking,
}

struct Used {
    connection: Connection,
    tracked: bool,
}

/// How long the server has been out of reach.
struct Trouble {
    since: Option<lock_core::backend::Moment>,
    pause: Duration,
}

impl Trouble {
    fn new() -> Self {
        Self { since: None, pause: PAUSE }
    }

    fn began(&self) -> lock_core::backend::Moment {
        self.since.unwrap_or_else(|| Clock::Suspend.now())
    }

    /// Whether to give up: the failure will not pass, or has lasted too long.
    fn is_over(&mut self, failure: &Failure, patience: Duration) -> bool {
        let since = *self.since.insert(self.began());
        let now = Clock::Suspend.now();
        failure.kind() != ErrorKind::Unavailable || now.saturating_since(since) >= patience
    }

    fn pause(&mut self) -> Duration {
        let pause = self.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        pause
    }
}
