use std::{sync::Arc, time::Duration};

use lock_core::{
    ErrorKind, FencingToken, LockError, LockGuard, LockName, OwnerId, Terms,
    backend::{Clock, Contact, Grant, Holds, Keeper, LossTrigger, Moment, Patience, Tasks, bounded},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::{
    error::Failure,
    keys::Keys,
    lines::Limits,
    pace::{Backoff, poll},
    quorum::{
        ballot::{Ballot, Outcome, Step},
        entry::QuorumHolding,
        line::{Sights, Waiting},
        member::Members,
        renewal::QuorumRenewer,
        stake::{Stake, Voted},
    },
    renewal::Kept,
    validity::Validity,
    watcher::Watcher,
};

/// Everything that one quorum client's locks, guards and background tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    /// Longest time for which a waiter relies on being told.
    pub(crate) poll: Duration,
    /// Longest time for the answer to a request.
    pub(crate) request: Duration,
    /// Longest time that one attempt to acquire usually takes.
    pub(crate) attempt: Duration,
    pub(crate) validity: Validity,
    pub(crate) members: Arc<Members>,
    pub(crate) sights: Arc<Sights>,
    pub(crate) watcher: Watcher,
    pub(crate) keeper: Arc<Keeper<QuorumRenewer>>,
    pub(crate) holds: Arc<Holds>,
}

const CLOCK: Clock = Clock::Suspend;

/// How often a try is made in all when the votes split, which does not show that somebody holds the lock.
const TRIES: u32 = 4;

/// What came of one attempt; unless it was won nothing is left of it, as far as servers have answered.
enum Attempt {
    Won(LockGuard),
    Busy { split: bool },
    OutOfReach(LockError),
}

impl Core {
    /// Connects to a majority, and to the others in the background.
    pub(crate) async fn connected(&self, limit: Duration, home: &Tasks) -> Result<(), LockError> {
        let mut connecting = self.members.ask_within(limit, |member| {
            let home = home.clone();
            async move { member.servers.open(&home).await }
        });
        let mut connected = 0;
        while let Some((_, answer)) = connecting.next().await {
            connected += usize::from(answer.is_some());
            if connected >= self.members.majority().needed() {
                return Ok(());
            }
            if connecting.failures.len() >= self.members.majority().blocking() {
                break;
            }
        }
        Err(self.out_of_reach(&connecting.failures))
    }

    pub(crate) async fn acquire(self: &Arc<Self>, name: &LockName, terms: Terms) -> Result<LockGuard, LockError> {
        let patience = Patience::new(Contact::new(CLOCK), &terms, self.request);
        bounded(&self.holds, Some(&patience), async {
            let keys = Keys::new(&self.prefix, name);
            if self.watcher.nobody_waits(&keys.lock) {
                patience.asked();
                match self.attempt(name, &keys, &terms).await {
                    Attempt::Won(guard) => return Ok(guard),
                    Attempt::Busy { .. } => patience.answered(),
                    Attempt::OutOfReach(error) => patience.failed(error)?,
                }
            }
            // Boxed, so that a lock that is free does not carry it along.
            Box::pin(self.wait(name, &keys, &terms, &patience)).await
        })
        .await
    }

    async fn wait(self: &Arc<Self>, name: &LockName, keys: &Keys, terms: &Terms, patience: &Patience) -> Result<LockGuard, LockError> {
        let waiting = Waiting::join(&self.watcher, &self.sights, &keys.lock, Limits::new(terms.ttl, self.attempt));
        patience.follow(waiting.place().contact());
        let (place, mut splits, mut trouble) = (waiting.place(), Backoff::after_splits(), Backoff::in_trouble());
        loop {
            let turn = place.turn().await;
            patience.asked();
            let error = if waiting.may_be_free() {
                let attempt = self.attempt(name, keys, terms).await;
                if !matches!(attempt, Attempt::OutOfReach(_)) {
                    // The line's trouble is over, and whoever is its head goes on at once.
                    place.answered();
                    patience.answered();
                    trouble = Backoff::in_trouble();
                }
                match attempt {
                    Attempt::Won(guard) => return Ok(guard),
                    Attempt::Busy { split: false } => continue,
                    Attempt::Busy { split: true } => {
                        place.pause(splits.pause());
                        continue;
                    }
                    Attempt::OutOfReach(error) => error,
                }
            } else {
                let look = waiting.look(&self.members).await;
                if let Some(owner) = &look.owner {
                    splits = Backoff::after_splits();
                    place.contact().held_by(owner, None);
                }
                match look.answered >= self.members.majority().needed() {
                    // Trouble is not over before it is tried: servers that can be read may grant nothing.
                    true if waiting.is_worth_a_try() => continue,
                    true => {
                        place.taken(turn, look.ends_in, poll(self.poll, look.blind));
                        patience.answered();
                        trouble = Backoff::in_trouble();
                        continue;
                    }
                    false => self.out_of_reach(&look.failures),
                }
            };
            patience.failed(error)?;
            place.pause(trouble.pause());
        }
    }

    pub(crate) async fn try_acquire(self: &Arc<Self>, name: &LockName, terms: Terms) -> Result<Option<LockGuard>, LockError> {
        bounded(&self.holds, None, async {
            let (keys, mut splits, mut tries) = (Keys::new(&self.prefix, name), Backoff::after_splits(), 1);
            loop {
                match self.attempt(name, &keys, &terms).await {
                    Attempt::Won(guard) => return Ok(Some(guard)),
                    Attempt::Busy { split: true } if tries < TRIES => tokio::time::sleep(splits.pause()).await,
                    Attempt::Busy { .. } => return Ok(None),
                    Attempt::OutOfReach(error) => return Err(error),
                }
                tries += 1;
            }
        })
        .await
    }

    /// Asks all servers once, under an owner id of its own: what is undone of one attempt cannot hit the next.
    async fn attempt(self: &Arc<Self>, name: &LockName, keys: &Keys, terms: &Terms) -> Attempt {
        let (tell, mut told) = mpsc::unbounded_channel();
        let (sent, validity) = (CLOCK.now(), self.validity.of(terms.ttl));
        let ballot = Ballot::new(&self.members.suspects(), sent, validity, self.members.limit);
        let kept = Kept { keys: keys.clone(), owner: OwnerId::random(), ttl: terms.ttl, validity };
        let voted = tell.clone();
        // Telling fails when the attempt is over.
        let stake = Stake::ask_for(self, kept, terms.metadata.as_deref(), move |vote| drop(voted.send(News::Voted(vote))));
        let (outcome, failures) = decide(ballot, &mut told, |server, token| {
            let raised = tell.clone();
            stake.raise(server, token, move |answer| drop(raised.send(News::Raised(server, answer))));
        })
        .await;
        if let Outcome::Won(token) = outcome {
            return Attempt::Won(self.guard(name, stake, FencingToken::new(token), sent, terms));
        }
        stake.returned(self.members.limit).await;
        match outcome {
            Outcome::Busy { split } => Attempt::Busy { split },
            Outcome::Won(_) | Outcome::OutOfReach => {
                let error = self.out_of_reach(&failures);
                Attempt::OutOfReach(if stake.is_in_doubt() { error.indeterminate() } else { error })
            }
        }
    }

    fn guard(self: &Arc<Self>, name: &LockName, stake: Stake, token: FencingToken, sent: Moment, terms: &Terms) -> LockGuard {
        let kept = Arc::clone(&stake.kept);
        let (lease, keep) = self.keeper.keep(Arc::clone(&kept), sent, kept.validity, terms);
        let (name, owner) = (name.clone(), kept.owner.clone());
        let entry = Arc::new(QuorumHolding::new(self, stake));
        let guard = self.holds.grant(Grant { name, owner: owner.clone(), token: Some(token), lease, keep: Some(keep), entry });
        self.watcher.hold(&kept.keys.lock, owner, LossTrigger::of(&guard), Arc::clone(&self.members) as _);
        guard
    }

    /// What the servers' failures amount to.
    pub(crate) fn out_of_reach(&self, failures: &[(usize, Failure)]) -> LockError {
        let majority = self.members.majority();
        let refusals = failures.iter().filter(|(_, failure)| failure.is_refusal());
        // Only then is trying again in vain.
        let refused = if refusals.clone().count() >= majority.blocking() { refusals.clone().next() } else { None };
        let kind = refused.map_or(ErrorKind::Unavailable, |(_, failure)| failure.kind());
        let (needed, servers) = (majority.needed(), majority.servers());
        let mut message = format!("fewer than {needed} of {servers} servers answered in time");
        let telling = failures.iter().find(|(_, failure)| failure.is_handshake()).or(failures.first());
        if let Some((server, failure)) = refused.or(telling) {
            let address = self.members.iter().nth(*server).map_or("", |member| &member.address);
            let error = LockError::from(failure.clone());
            message = format!("{message}; {address}: {}", failure.advice());
            return LockError::new(kind, message).caused_by(error);
        }
        LockError::new(kind, message)
    }
}

enum News {
    Voted(Voted),
    Raised(usize, Option<bool>),
}

/// Takes the servers' answers until the ballot is decided; `raise` sends a server the token.
async fn decide(mut ballot: Ballot, told: &mut UnboundedReceiver<News>, raise: impl Fn(usize, u64)) -> (Outcome, Vec<(usize, Failure)>) {
    let mut failures = Vec::new();
    let mut take = |ballot: &mut Ballot, news| match news {
        News::Voted(Voted { server, vote, failure }) => {
            ballot.voted(server, vote);
            failures.extend(failure.map(|failure| (server, failure)));
        }
        News::Raised(server, answer) => ballot.raised(server, answer),
    };
    loop {
        // What has come counts, also if the time was up before this task went on.
        while let Ok(news) = told.try_recv() {
            take(&mut ballot, news);
        }
        match ballot.step(CLOCK.now()) {
            Step::Over(outcome) => return (outcome, failures),
            Step::Raise { token, servers } => servers.into_iter().for_each(|server| raise(server, token)),
            Step::Wait(until) => tokio::select! {
                () = CLOCK.sleep_until(until) => {}
                Some(news) = told.recv() => take(&mut ballot, news),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quorum::ballot::Vote;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn answers_that_came_during_a_stall_count() {
        let (tell, mut told) = mpsc::unbounded_channel();
        for (server, token) in [7, 9].into_iter().enumerate() {
            tell.send(News::Voted(Voted { server, vote: Vote::Granted(token), failure: None })).unwrap();
        }
        // The time for the votes is up from the beginning, and that for the raise as soon as it has begun.
        let ballot = Ballot::new(&[false; 3], CLOCK.now(), TTL, Duration::ZERO);
        let raise = |server, token| {
            assert_eq!((server, token), (0, 9));
            tell.send(News::Raised(server, Some(true))).unwrap();
        };
        let (outcome, failures) = decide(ballot, &mut told, raise).await;
        assert!(outcome == Outcome::Won(9) && failures.is_empty(), "{outcome:?}");
    }

    #[tokio::test]
    async fn without_answers_the_time_is_up() {
        let (tell, mut told) = mpsc::unbounded_channel();
        tell.send(News::Voted(Voted { server: 2, vote: Vote::Granted(7), failure: None })).unwrap();
        let ballot = Ballot::new(&[false; 3], CLOCK.now(), TTL, Duration::ZERO);
        let (outcome, _) = decide(ballot, &mut told, |_, _| unreachable!("no majority")).await;
        assert_eq!(outcome, Outcome::OutOfReach);
    }
}
