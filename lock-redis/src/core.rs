use std::{sync::Arc, time::Duration};

use lock_core::{
    ErrorKind, LockError, LockGuard, LockName, Terms,
    backend::{Clock, Contact, Holds, Keeper, Patience, bounded},
};

use crate::{
    claim::{Answer, Claim, Granted},
    error::Failure,
    lines::{Limits, Turn},
    link::Connection,
    pace::{Backoff, UNHEARD_LOOK, poll},
    renewal::RedisRenewer,
    replicas::Replicas,
    servers::{Route, Servers},
    validity::Validity,
    watcher::{Place, Watcher},
};

/// Everything that one client's locks, guards and background tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    /// Longest time for which a waiter relies on being told.
    pub(crate) poll: Duration,
    /// Longest time for the answer to a request.
    pub(crate) request: Duration,
    /// Shortest time for which an acquisition puts up with a server that cannot be reached.
    pub(crate) patience: Duration,
    /// Longest time that one attempt to acquire usually takes.
    pub(crate) attempt: Duration,
    pub(crate) validity: Validity,
    pub(crate) servers: Arc<Servers>,
    /// Who must confirm what was acquired.
    pub(crate) replicas: Option<Arc<Replicas>>,
    pub(crate) watcher: Watcher,
    pub(crate) keeper: Arc<Keeper<RedisRenewer>>,
    pub(crate) holds: Arc<Holds>,
}

impl Core {
    pub(crate) async fn acquire(self: &Arc<Self>, name: &LockName, terms: Terms) -> Result<LockGuard, LockError> {
        let patience = Patience::new(Contact::new(Clock::Suspend), &terms, self.request).at_least(self.patience);
        bounded(&self.holds, Some(&patience), async {
            let mut claim = Claim::new(self, name, terms);
            if self.watcher.nobody_waits(claim.key()) {
                patience.asked();
                match self.request(&mut claim, Via::Commands).await {
                    Ok((Answer::Granted(granted), via)) => return self.confirmed(claim, granted, &via.connection).await,
                    Ok((Answer::Busy(_) | Answer::Late, _)) => patience.answered(),
                    Err(failure) => patience.failed(claim.error(failure))?,
                }
            }
            if let Some(holder) = claim.holder() {
                patience.held_by(holder, None);
            }
            let place = self.watcher.join(claim.key(), Limits::new(claim.ttl(), self.attempt));
            patience.follow(place.contact());
            // Boxed, so that a lock that is free does not carry it along.
            Box::pin(self.wait(claim, &place, &patience)).await
        })
        .await
    }

    async fn wait(&self, mut claim: Claim, place: &Place, patience: &Patience) -> Result<LockGuard, LockError> {
        let (mut trouble, mut late) = (Backoff::in_trouble(), false);
        loop {
            let turn = place.turn().await;
            let via = if turn.prompt.is_some() { Via::Commands } else { Via::Tracking };
            patience.asked();
            let answer = self.request(&mut claim, via).await;
            match &answer {
                // Twice in a row it was not the caller who took too long, but the store.
                Ok((Answer::Late, _)) if late => patience.failed(claim.error(Failure::timed_out()))?,
                Ok(_) => patience.answered(),
                Err(_) => {}
            }
            late = matches!(answer, Ok((Answer::Late, _)));
            match answer {
                Ok((Answer::Granted(mut granted), used)) => {
                    place.contact().held_by(claim.owner(), None);
                    self.found(place, turn, &used, Some(claim.ttl()), UNHEARD_LOOK);
                    granted.handed_on_since = turn.prompt;
                    return self.confirmed(claim, granted, &used.connection).await;
                }
                Ok((Answer::Busy(expires_in), used)) => {
                    trouble = Backoff::in_trouble();
                    if let Some(holder) = claim.holder() {
                        place.contact().held_by(holder, None);
                    }
                    // If the release was on its way somebody else was faster: at once over the tracking link.
                    self.found(place, turn, &used, expires_in, Duration::ZERO);
                }
                Ok((Answer::Late, _)) => place.pause(trouble.pause()),
                Err(failure) => {
                    patience.failed(claim.error(failure))?;
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
                    Ok((Answer::Late, _)) => return Err(claim.error(Failure::timed_out())),
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

    /// Tells the line what an attempt found; `look` is when to look over the tracking link after a prompted one.
    fn found(&self, place: &Place, turn: Turn, used: &Used, expires_in: Option<Duration>, look: Duration) {
        match turn.prompt {
            _ if used.tracked => place.taken(turn, expires_in, poll(self.poll, false)),
            Some(_) => place.taken_unheard(turn, expires_in, look),
            None => place.taken_unheard(turn, expires_in, poll(self.poll, true)),
        }
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
