use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    ErrorKind, FencingToken, LockError, LockGuard, LockInfo, LockName, OwnerId, Terms,
    backend::{
        Clock, Grant, GuardSet, LeaseKeeper, Moment, StoreHealth, Tasks, WaitLimit, bounded,
    },
};
use tokio::sync::mpsc;

use crate::{
    backoff::Backoff,
    error::Failure,
    keys::Keys,
    quorum::{
        attempt::{Attempt, QueuePart},
        decide::{Event, decide},
        entry::QuorumEntry,
        holders,
        queue_entry::Entered,
        renewal::QuorumRenewer,
        round::{Outcome, Round},
        server::QuorumServers,
        wait::Wait,
        waiter::TrackedLocks,
    },
    renewal::StoredEntry,
    scripts,
    validity::Validity,
    waiters::contended::Contended,
    waiters::tracking::Watcher,
    watch::HolderReader,
};

/// Everything that one quorum client's locks, guards and background tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    /// How long a counter outlives the lease.
    pub(crate) counter_ttl: Duration,
    /// Longest time for which a waiter relies on being told.
    pub(crate) poll: Duration,
    /// Longest time for the answer to a request.
    pub(crate) request: Duration,
    /// Longest time that one attempt to acquire usually takes.
    pub(crate) attempt: Duration,
    pub(crate) validity: Validity,
    pub(crate) quorum: Arc<QuorumServers>,
    pub(crate) tracked_locks: Arc<TrackedLocks>,
    /// Tells this client's entries in queues from those of others.
    pub(crate) id: String,
    pub(crate) entered: Entered,
    pub(crate) contended: Contended,
    pub(crate) watcher: Watcher,
    pub(crate) keeper: Arc<LeaseKeeper<QuorumRenewer>>,
    pub(crate) guards: Arc<GuardSet>,
}

const CLOCK: Clock = Clock::Suspend;

/// How often a try is made in all when the votes split, which does not show that somebody holds the
/// lock.
const TRIES: u32 = 4;

const TOO_LATE: &str = "a majority granted the lock, but it was no longer valid when their answers were taken: they came late, or \
                        their caller's task had not run meanwhile; a longer TTL leaves more time";

/// What came of one attempt; unless it was won nothing is left of it, as far as servers have
/// answered.
pub(super) enum AttemptOutcome {
    Won(LockGuard),
    Busy { split: bool },
    OutOfReach(LockError),
}

impl Core {
    /// Connects to a majority, and to the others in the background.
    pub(crate) async fn connected(&self, limit: Duration, home: &Tasks) -> Result<(), LockError> {
        let mut connecting = self.quorum.ask_within(limit, |member| {
            let home = home.clone();
            async move { member.servers.open(&home).await }
        });
        let mut connected = 0;
        while let Some((_, answer)) = connecting.next().await {
            connected += usize::from(answer.is_some());
            if connected >= self.quorum.majority().needed() {
                return Ok(());
            }
            if connecting.failures.len() >= self.quorum.majority().blocking() {
                break;
            }
        }
        Err(self.out_of_reach(&connecting.failures))
    }

    /// The owner that a majority of the servers has, or that may have one together with servers
    /// that did not answer; and, if it is to be `tracked`, whether its next change is reported.
    pub(crate) async fn holder(
        &self,
        name: &LockName,
        keys: &Keys,
        tracked: bool,
    ) -> Result<(Option<LockInfo>, bool), LockError> {
        bounded(&self.guards, None, async {
            let mut answers = self.quorum.ask(|member| {
                let keys = keys.clone();
                let name = name.clone();
                async move {
                    let (answer, tracked) = member.look(&keys, tracked).await?;
                    Ok((scripts::parse_info(&name, &answer)?, tracked))
                }
            });
            let mut infos = Vec::new();
            let mut reported = true;
            let majority = self.quorum.majority();
            while holders::common(
                majority,
                &infos,
                majority.servers() - infos.len() - answers.failures.len(),
            )
            .is_none()
                && let Some((_, answer)) = answers.next().await
            {
                reported &= answer.as_ref().is_none_or(|(_, tracked)| *tracked);
                infos.extend(answer.map(|(info, _)| info));
            }
            if infos.len() < majority.needed() {
                return Err(self.out_of_reach(&answers.failures));
            }
            Ok((
                holders::common(majority, &infos, 0).unwrap_or_else(|| holders::likely(&infos)),
                reported,
            ))
        })
        .await
    }

    pub(crate) async fn acquire(
        self: &Arc<Self>,
        name: &LockName,
        terms: Terms,
    ) -> Result<LockGuard, LockError> {
        let wait_limit = WaitLimit::new(StoreHealth::new(CLOCK), &terms, self.request);
        bounded(&self.guards, Some(&wait_limit), async {
            let keys = Keys::new(&self.prefix, name);
            let is_contended = self.contended.is(&keys.lock);
            if self.watcher.nobody_waits(&keys.lock) && !is_contended {
                wait_limit.asked();
                match self.attempt(name, &keys, &terms, None).await {
                    AttemptOutcome::Won(guard) => return Ok(guard),
                    AttemptOutcome::Busy { .. } => wait_limit.answered(),
                    AttemptOutcome::OutOfReach(error) => wait_limit.failed(error)?,
                }
            }
            // Boxed to keep the future of a free lock small.
            Box::pin(Wait::begin(self, name, &keys, &terms, &wait_limit).granted()).await
        })
        .await
    }

    pub(crate) async fn try_acquire(
        self: &Arc<Self>,
        name: &LockName,
        terms: Terms,
    ) -> Result<Option<LockGuard>, LockError> {
        bounded(&self.guards, None, async {
            let keys = Keys::new(&self.prefix, name);
            let mut splits = Backoff::after_splits();
            let mut tries = 1;
            loop {
                match self.attempt(name, &keys, &terms, None).await {
                    AttemptOutcome::Won(guard) => return Ok(Some(guard)),
                    AttemptOutcome::Busy { split: true } if tries < TRIES => {
                        tokio::time::sleep(splits.pause()).await;
                    }
                    AttemptOutcome::Busy { .. } => return Ok(None),
                    AttemptOutcome::OutOfReach(error) => return Err(error),
                }
                tries += 1;
            }
        })
        .await
    }

    /// Asks all servers once, under an owner id of its own: what is undone of one attempt cannot
    /// hit the next. Whoever waits tells its part in the queue.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        name: &LockName,
        keys: &Keys,
        terms: &Terms,
        queued: Option<&QueuePart>,
    ) -> AttemptOutcome {
        let (sender, mut events) = mpsc::unbounded_channel();
        let sent = CLOCK.now();
        let validity = self.validity.of(terms.ttl);
        let round = Round::new(&self.quorum.silent(), sent, validity, self.quorum.limit);
        let stored = StoredEntry {
            keys: keys.clone(),
            owner: OwnerId::random(),
            ttl: terms.ttl,
            counter_ttl: self.counter_ttl,
            validity,
        };
        let queue = queued.cloned().unwrap_or_else(|| QueuePart {
            server: self.quorum.queue_order(&keys.lock).next().unwrap_or(0),
            entry: String::new(),
        });
        let voted = sender.clone();
        let metadata = terms.metadata.as_deref();
        // Telling fails when the attempt is over.
        let attempt = Attempt::ask_for(self, stored, metadata, queue, move |vote| {
            drop(voted.send(Event::Voted(vote)));
        });
        let (outcome, failures) = decide(round, &mut events, |server, token| {
            let raised = sender.clone();
            attempt.raise(server, token, move |answer| {
                drop(raised.send(Event::Raised(server, answer)));
            });
        })
        .await;
        if let Outcome::Won(token) = outcome {
            let token = FencingToken::new(token);
            return AttemptOutcome::Won(self.guard(name, attempt, token, sent, terms));
        }
        attempt.returned(self.quorum.limit).await;
        match outcome {
            Outcome::Busy { split } => AttemptOutcome::Busy { split },
            Outcome::Won(_) | Outcome::OutOfReach | Outcome::TooLate => {
                let error = match outcome {
                    Outcome::TooLate => LockError::new(ErrorKind::Unavailable, TOO_LATE),
                    _ => self.out_of_reach(&failures),
                };
                AttemptOutcome::OutOfReach(if attempt.is_in_doubt() {
                    error.indeterminate()
                } else {
                    error
                })
            }
        }
    }

    fn guard(
        self: &Arc<Self>,
        name: &LockName,
        attempt: Attempt,
        token: FencingToken,
        sent: Moment,
        terms: &Terms,
    ) -> LockGuard {
        let stored = Arc::clone(&attempt.stored);
        let (lease, renewal) =
            self.keeper
                .register(Arc::clone(&stored), sent, stored.validity, terms);
        let name = name.clone();
        let owner = stored.owner.clone();
        let entry = Arc::new(QuorumEntry::new(self, attempt));
        let grant = Grant::new(name, owner.clone(), lease, entry)
            .with_token(token)
            .with_renewal(renewal);
        let (guard, trigger) = self.guards.grant_watched(grant);
        self.watcher.hold(
            &stored.keys.lock,
            owner,
            trigger,
            Arc::clone(&self.quorum) as _,
        );
        guard
    }

    /// Returns what the servers' failures amount to.
    pub(crate) fn out_of_reach(&self, failures: &[(usize, Failure)]) -> LockError {
        let majority = self.quorum.majority();
        let refusals = failures.iter().filter(|(_, failure)| failure.is_refusal());
        // Only then is trying again in vain.
        let refused = if refusals.clone().count() >= majority.blocking() {
            refusals.clone().next()
        } else {
            None
        };
        let kind = refused.map_or(ErrorKind::Unavailable, |(_, failure)| failure.kind());
        let needed = majority.needed();
        let servers = majority.servers();
        let telling = failures
            .iter()
            .find(|(_, failure)| failure.is_handshake())
            .or(failures.first());
        let Some((server, failure)) = refused.or(telling) else {
            return LockError::new(
                kind,
                format!("fewer than {needed} of {servers} servers answered in time"),
            );
        };
        let address = self
            .quorum
            .iter()
            .nth(*server)
            .map_or("", |member| &member.address);
        let failure = failure.clone().while_trying(address.to_owned());
        let message = format!(
            "fewer than {needed} of {servers} servers serve the request; {}",
            failure.message()
        );
        LockError::new(kind, message).caused_by(failure.into_cause())
    }
}

#[async_trait]
impl HolderReader for Core {
    async fn look(
        &self,
        name: &LockName,
        keys: &Keys,
    ) -> Result<(Option<LockInfo>, bool), LockError> {
        self.holder(name, keys, true).await
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
