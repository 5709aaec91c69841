use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, LockError, LockGuard, LockInfo, LockName, Terms,
    backend::{Clock, GuardSet, LeaseKeeper, StoreHealth, WaitLimit, bounded},
};
use redis::Value;

use crate::{
    backoff::{Backoff, HAND_OVER_POLL, poll},
    error::Failure,
    keys::Keys,
    pending::{Answer, Granted, PendingEntry, Queueing},
    queue_entry::{Entered, QueueEntry, RENEW_INTERVAL},
    renewal::RedisRenewer,
    replicas::Replicas,
    scripts,
    transport::connection::once_more,
    transport::reconnect::Connection,
    transport::routing::{Route, Servers},
    validity::Validity,
    waiters::contended::Contended,
    waiters::local::{Limits, Turn},
    waiters::tracking::Watcher,
    watch::HolderReader,
};

/// Everything that one client's locks, guards and background tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    /// Tells this client's entries in queues from those of others.
    pub(crate) id: String,
    pub(crate) entered: Entered,
    pub(crate) contended: Contended,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    /// How long a counter outlives the lease.
    pub(crate) counter_ttl: Duration,
    /// Longest time for which a waiter relies on being told.
    pub(crate) poll: Duration,
    /// Longest time for the answer to a request.
    pub(crate) request: Duration,
    /// Shortest time for which an acquisition puts up with a server that cannot be reached.
    pub(crate) wait_limit: Duration,
    /// Longest time that one attempt to acquire usually takes.
    pub(crate) attempt: Duration,
    pub(crate) validity: Validity,
    pub(crate) servers: Arc<Servers>,
    /// Replicas that must confirm the acquisition.
    pub(crate) replicas: Option<Arc<Replicas>>,
    pub(crate) watcher: Watcher,
    pub(crate) keeper: Arc<LeaseKeeper<RedisRenewer>>,
    pub(crate) guards: Arc<GuardSet>,
}

impl Core {
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        name: &LockName,
        terms: Terms,
    ) -> Result<LockGuard, LockError> {
        let wait_limit = WaitLimit::new(StoreHealth::new(Clock::Suspend), &terms, self.request)
            .at_least(self.wait_limit);
        bounded(&self.guards, Some(&wait_limit), async {
            let mut entry = PendingEntry::new(self, name, terms);
            if self.watcher.nobody_waits(entry.key()) && !self.contended.is(entry.key()) {
                wait_limit.asked();
                match self.request(&mut entry, None).await {
                    Ok((Answer::Granted(granted), connection)) => {
                        return self.confirmed(entry, granted, &connection).await;
                    }
                    Ok((Answer::Busy { .. } | Answer::Late, _)) => wait_limit.answered(),
                    Err(failure) => wait_limit.failed(entry.error(failure))?,
                }
            }
            if let Some(holder) = entry.holder() {
                wait_limit.held_by(&holder.owner, holder.value.as_deref());
            }
            let limits = Limits::new(entry.ttl(), self.attempt);
            let queued = QueueEntry::new(self, entry.keys(), limits);
            wait_limit.follow(queued.place().health());
            // Boxed to keep the future of a free lock small.
            Box::pin(self.wait(entry, queued, &wait_limit)).await
        })
        .await
    }

    async fn wait(
        &self,
        mut entry: PendingEntry,
        mut queued: QueueEntry,
        wait_limit: &WaitLimit,
    ) -> Result<LockGuard, LockError> {
        let mut failures = Backoff::after_failures();
        let mut late = false;
        let mut refused = false;
        loop {
            let turn = queued.place().turn().await;
            // Told that the entry before its own has ended: first by now, or soon told otherwise.
            if turn.prompt.is_none() && queued.before.is_some() && !queued.is_due() {
                queued.before = None;
                match wait_limit.ask(self.listen(&queued, turn, None)).await {
                    Ok(is_there) => {
                        wait_limit.answered();
                        if is_there {
                            continue;
                        }
                        queued.place().progressed();
                    }
                    Err(failure) => {
                        wait_limit.failed(entry.error(failure))?;
                        queued.place().pause(failures.pause());
                        continue;
                    }
                }
            }
            let queueing = Some((&mut queued, turn));
            let answer = wait_limit.ask(self.request(&mut entry, queueing)).await;
            let place = queued.place();
            match &answer {
                // Twice in a row it was not the caller who took too long, but the store.
                Ok((Answer::Late, _)) if late => {
                    wait_limit.failed(entry.error(Failure::timed_out()))?;
                }
                Ok(_) => wait_limit.answered(),
                Err(_) => {}
            }
            late = matches!(answer, Ok((Answer::Late, _)));
            let failure = match answer {
                Ok((Answer::Granted(mut granted), connection)) => {
                    place.health().held_by(entry.owner(), None);
                    queued.granted();
                    self.contended.note(entry.key(), refused);
                    place.taken_untracked(turn, Some(entry.ttl()), HAND_OVER_POLL);
                    granted.handed_over_since = turn.prompt;
                    return self.confirmed(entry, granted, &connection).await;
                }
                Ok((Answer::Busy { expires_in, before }, _)) => {
                    refused = true;
                    failures = Backoff::after_failures();
                    if let Some(holder) = entry.holder() {
                        place
                            .health()
                            .held_by(&holder.owner, holder.value.as_deref());
                    }
                    // If the release was on its way somebody else was faster.
                    if turn.prompt.is_some() {
                        place.taken_untracked(turn, expires_in, Duration::ZERO);
                        continue;
                    }
                    // The store has just answered: what is asked of it here does not count.
                    queued.before = before;
                    match self.listen(&queued, turn, expires_in).await {
                        Ok(is_there) => {
                            wait_limit.answered();
                            if !is_there {
                                queued.place().progressed();
                                queued.place().answered();
                            }
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
                Ok((Answer::Late, _)) => {
                    place.pause(failures.pause());
                    continue;
                }
                Err(failure) => failure,
            };
            wait_limit.failed(entry.error(failure))?;
            queued.place().pause(failures.pause());
        }
    }

    /// Has the server report the end of what the waiter waits for: the entry before its own, or the
    /// holder's lease. Returns whether that is still there; then the waiter sleeps. If the first in
    /// the queue does not take a free lock, it looks again after `free_for`.
    async fn listen(
        &self,
        queued: &QueueEntry,
        turn: Turn,
        free_for: Option<Duration>,
    ) -> Result<bool, Failure> {
        let keys = queued.keys();
        let entry = queued.before.as_ref().map(|before| before.key.as_str());
        queued.place().listen(entry);
        let mut route = self.servers.route(&keys.lock);
        let command = match &queued.before {
            Some(before) => redis::cmd("GET").arg(&before.key).take(),
            None => redis::cmd("PTTL").arg(&*keys.lock).take(),
        };
        let (answer, tracked) = loop {
            let used = Via::Tracking.connection(&mut route).await?;
            match used.connection.run(&command).await {
                Err(failure) if route.follow(&failure).await => {}
                answer => {
                    let answer = answer.map_err(|failure| self.servers.given_up(failure));
                    break (answer.map_err(Failure::without_effect)?, used.tracked);
                }
            }
        };
        let (is_there, expires_in) = match (&queued.before, answer) {
            (Some(before), Value::BulkString(arrival)) => (before.arrival == arrival, free_for),
            (Some(_), Value::Nil) => (false, None),
            (None, Value::Int(left)) => (
                left != -2,
                u64::try_from(left).ok().map(Duration::from_millis),
            ),
            _ => {
                return Err(Failure::unexpected(
                    "neither an entry nor a PTTL from a look",
                ));
            }
        };
        if is_there {
            let place = queued.place();
            let most = poll(self.poll.min(RENEW_INTERVAL), !tracked);
            if tracked {
                place.taken(turn, expires_in, most);
            } else {
                place.taken_untracked(turn, expires_in, most);
            }
        }
        Ok(is_there)
    }

    pub(crate) async fn try_acquire(
        self: &Arc<Self>,
        name: &LockName,
        terms: Terms,
    ) -> Result<Option<LockGuard>, LockError> {
        bounded(&self.guards, None, async {
            let mut entry = PendingEntry::new(self, name, terms);
            let mut retried = false;
            loop {
                match self.request(&mut entry, None).await {
                    Ok((Answer::Granted(granted), connection)) => {
                        return self.confirmed(entry, granted, &connection).await.map(Some);
                    }
                    Ok((Answer::Busy { .. }, _)) => return Ok(None),
                    Ok((Answer::Late, _)) => return Err(entry.error(Failure::timed_out())),
                    // A connection that broke while it was idle is found broken by the next
                    // request.
                    Err(failure) if failure.found_broken() && !retried => {
                        retried = true;
                    }
                    Err(failure) => return Err(entry.error(failure)),
                }
            }
        })
        .await
    }

    /// The guard, once the replicas that must confirm it have done so.
    async fn confirmed(
        &self,
        entry: PendingEntry,
        granted: Granted,
        connection: &Connection,
    ) -> Result<LockGuard, LockError> {
        let Some(replicas) = &self.replicas else {
            return Ok(entry.guard(granted, connection));
        };
        // Boxed to keep the common future small.
        match Box::pin(replicas.confirm(&entry.stored())).await {
            Ok(()) if entry.is_in_time(&granted) => Ok(entry.guard(granted, connection)),
            Ok(()) => Err(entry
                .give_back(
                    LockError::new(ErrorKind::Unavailable, "the replicas confirmed too late"),
                    connection,
                )
                .await),
            Err(error) => Err(entry.give_back(error, connection).await),
        }
    }

    /// Returns what [`scripts::INSPECT`] says, and whether the lock's next change is reported; asks
    /// once more if the connection is found broken.
    pub(crate) async fn inspect(&self, keys: &Keys, via: Via) -> Result<(Value, bool), Failure> {
        let ask = || async {
            let mut route = self.servers.route(&keys.lock);
            loop {
                let used = via.connection(&mut route).await?;
                match used
                    .connection
                    .run_script(&scripts::INSPECT, keys, |_| {})
                    .await
                {
                    Err(failure) if route.follow(&failure).await => {}
                    answer => {
                        return answer
                            .map(|answer| (answer, used.tracked))
                            .map_err(|failure| self.servers.given_up(failure));
                    }
                }
            }
        };
        once_more(ask).await.map_err(Failure::without_effect)
    }

    /// Returns who holds a lock, and whether its next change is reported.
    pub(crate) async fn holder(
        &self,
        name: &LockName,
        keys: &Keys,
        via: Via,
    ) -> Result<(Option<LockInfo>, bool), LockError> {
        bounded(&self.guards, None, async {
            let (answer, tracked) = self.inspect(keys, via).await?;
            Ok((
                scripts::parse_info(name, &answer).map_err(Failure::without_effect)?,
                tracked,
            ))
        })
        .await
    }

    /// Asks once, over as many servers of a cluster as it takes; as a waiter if it is queued.
    async fn request(
        &self,
        entry: &mut PendingEntry,
        mut queued: Option<(&mut QueueEntry, Turn)>,
    ) -> Result<(Answer, Connection), Failure> {
        let key = Arc::clone(entry.key());
        let mut route = self.servers.route(&key);
        loop {
            let connection = route.commands().await?;
            let sent = Clock::Suspend.now();
            let queueing = match &queued {
                None => Queueing::Respect,
                Some((queued, turn)) if turn.prompt.is_some() => queued.to_hand_over(),
                Some((queued, _)) => {
                    queued.entering(&connection);
                    queued.to_wait()
                }
            };
            let renews = matches!(queueing, Queueing::Wait { renew: true, .. });
            match entry.request(connection.clone(), queueing).await {
                Err(failure) if route.follow(&failure).await => {}
                answer => {
                    let answer = answer.map_err(|failure| self.servers.given_up(failure))?;
                    if let Some((queued, _)) = &mut queued
                        && renews
                    {
                        queued.renewed(sent);
                    }
                    return Ok((answer, connection));
                }
            }
        }
    }
}

/// A server or an access rule that does not allow tracking makes waiters poll.
async fn tracking_or_commands(route: &mut Route<'_>) -> Result<Used, Failure> {
    match route.tracking().await {
        Ok(connection) => Ok(Used {
            connection,
            tracked: true,
        }),
        Err(failure) if failure.is_refusal() => Ok(Used {
            connection: route.commands().await?,
            tracked: false,
        }),
        Err(failure) => Err(failure),
    }
}

/// Over which link to send a request.
#[derive(Clone, Copy)]
pub(crate) enum Via {
    Commands,
    Tracking,
}

impl Via {
    async fn connection(self, route: &mut Route<'_>) -> Result<Used, Failure> {
        match self {
            Self::Commands => Ok(Used {
                connection: route.commands().await?,
                tracked: false,
            }),
            Self::Tracking => tracking_or_commands(route).await,
        }
    }
}

#[async_trait]
impl HolderReader for Core {
    async fn look(
        &self,
        name: &LockName,
        keys: &Keys,
    ) -> Result<(Option<LockInfo>, bool), LockError> {
        self.holder(name, keys, Via::Tracking).await
    }

    fn guards(&self) -> &GuardSet {
        &self.guards
    }

    fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    fn poll(&self) -> Duration {
        self.poll
    }
}

struct Used {
    connection: Connection,
    tracked: bool,
}
