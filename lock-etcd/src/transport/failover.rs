use std::{future::Future, sync::Arc, time::Duration};

use etcd_client::{Client, Error as EtcdError, ResponseHeader, Txn, TxnResponse};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lock_core::{ErrorKind, LockError, backend::Pauses};
use tokio::time::{Instant, error::Elapsed, sleep, timeout, timeout_at};

use super::{
    batch,
    cluster::{Cluster, kv},
    history::Positioned,
    unanswered::UnansweredRequest,
};
use crate::error::Failure;

/// The answer to a request that may have been made more than once.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    pub(crate) answer: T,
    /// An earlier attempt got no answer: this answer may describe its effect.
    pub(crate) indeterminate: bool,
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The period at which a member that does not answer is asked for its term: longer than nearly all
/// requests take.
const ELECTION_CHECK_PERIOD: Duration = Duration::from_millis(200);
/// The time after an election within which a request that it did not drop is answered.
const LATE_ANSWER_LIMIT: Duration = Duration::from_millis(50);

impl Cluster {
    /// Makes a request until it is answered, on each member in turn, for at most the request
    /// timeout.
    ///
    /// The request must be safe to repeat: its outcome may be unknown when it is sent again. An
    /// error is marked indeterminate if any attempt may have taken effect. An answer that shows
    /// that the store went back is an error, too.
    pub(crate) async fn call<T, F, R>(&self, request: F) -> Result<T, Failure>
    where
        T: Positioned,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        self.call_repeatedly(request)
            .await
            .map(|answered| answered.answer)
    }

    /// Like [`call`](Self::call), and tells whether an earlier attempt may have taken effect.
    async fn call_repeatedly<T, F, R>(&self, request: F) -> Result<Answered<T>, Failure>
    where
        T: Positioned,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        self.repeat(request, self.times.request, self.times.attempt())
            .await
    }

    /// Runs a transaction that is safe to repeat.
    pub(crate) async fn txn(&self, txn: &Txn) -> Result<TxnResponse, Failure> {
        let answer = self.call(|etcd| {
            let mut kv = kv(etcd);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        answer.await.inspect(|answer| {
            self.answered_in(answer.header().map_or(0, ResponseHeader::raft_term));
        })
    }

    /// Runs a transaction that is safe to repeat, merged with concurrent ones where possible, and
    /// tells whether an earlier attempt may have taken effect.
    pub(crate) async fn merged_txn(
        &self,
        request: &batch::Request,
    ) -> Result<Answered<batch::Answer>, Failure> {
        let answered = self.call_repeatedly(|etcd| {
            let batcher = Arc::clone(&self.batcher);
            let kv = kv(etcd);
            let request = request.clone();
            async move { batcher.txn(kv, request).await }
        });
        let mut answered = answered.await?;
        self.answered_in(answered.answer.term);
        answered.indeterminate |= answered.answer.indeterminate;
        Ok(answered)
    }

    /// Finds a member that answers `request`, for at most `limit`.
    ///
    /// Unlike [`call`](Self::call) this reports an unusable endpoint or wrong credentials at once,
    /// and names the endpoints.
    pub(crate) async fn first_contact<T, F, R>(
        &self,
        limit: Duration,
        request: F,
    ) -> Result<T, LockError>
    where
        T: Positioned,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        // Leaves time for each member.
        let turn = limit / u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        let attempt_limit = turn.min(self.times.attempt());
        match self.repeat(request, limit, attempt_limit).await {
            Ok(answered) => Ok(answered.answer),
            Err(failure) if failure.transient => {
                let endpoints: Vec<_> = self
                    .members
                    .iter()
                    .map(|member| member.endpoint.as_str())
                    .collect();
                let message = format!(
                    "no etcd server answered at {} within {limit:?}; check the address, that it is up, and that both sides agree on TLS",
                    endpoints.join(", ")
                );
                Err(LockError::new(ErrorKind::Unavailable, message).caused_by(failure.error))
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Makes a request that may be carried out several times, so that it is answered within `time`
    /// if any member can answer: while the current member is silent it is made on the others too,
    /// twice on each.
    ///
    /// No attempt is given up before the time is over, so a slow cluster has all of it. If another
    /// member answers first, or none and the future is dropped, requests move on.
    pub(crate) async fn call_within<T, F, R>(
        &self,
        time: Duration,
        request: F,
    ) -> Result<T, Failure>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let turns = 2 * self.members.len();
        let turn = (time / u32::try_from(turns).unwrap_or(u32::MAX)).min(self.times.attempt());
        let give_up = Instant::now() + time;
        let first = self.current();
        let unanswered = UnansweredRequest::new(self, first, turn);
        let mut attempts = FuturesUnordered::new();
        let mut at = first;
        let mut started = 0;
        let mut failure = Failure::timeout(&self.members[first].endpoint);
        loop {
            if started < turns {
                self.health.asked();
                attempts.push(self.attempt_on(at, &request));
                at = self.after(at);
                started += 1;
            }
            let wait = if started < turns { turn } else { time };
            let until = give_up.min(Instant::now() + wait);
            match timeout_at(until, attempts.next()).await {
                Ok(Some((failed, Err(other)))) if other.transient => {
                    self.health.failed(&other.error);
                    if !other.in_place {
                        self.move_on(failed);
                    }
                    failure = other;
                }
                Ok(Some((answering, outcome))) => {
                    unanswered.answered_by(answering);
                    self.health.answered();
                    return outcome;
                }
                // Each member has failed in each of its turns.
                Ok(None) => return Err(failure),
                Err(_) if Instant::now() >= give_up => {
                    self.health.failed(&failure.error);
                    return Err(failure);
                }
                Err(_) => {}
            }
        }
    }

    async fn attempt_on<T, F, R>(&self, at: usize, request: &F) -> (usize, Result<T, Failure>)
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let member = &self.members[at];
        let outcome = match member.breaker.pass().await {
            Ok(()) => member.attempt(request).await,
            Err(failure) => Err(failure),
        };
        (at, outcome)
    }

    /// Attempts a request for at most `limit` in all, each time for at most `attempt_limit`.
    async fn repeat<T, F, R>(
        &self,
        request: F,
        limit: Duration,
        attempt_limit: Duration,
    ) -> Result<Answered<T>, Failure>
    where
        T: Positioned,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let mut retries = Retries::until(Instant::now() + limit);
        loop {
            let at = self.current();
            let known = self.history.known();
            let attempt = self.attempt_once(at, &request, retries.give_up, attempt_limit);
            let failure = match attempt.await {
                Ok(Ok(answer)) => {
                    self.health.answered();
                    answer
                        .position()
                        .map_or(Ok(()), |position| self.history.confirm(known, position))
                        .map_err(Failure::definite)?;
                    let indeterminate = retries.indeterminate;
                    return Ok(Answered {
                        answer,
                        indeterminate,
                    });
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    self.invalidate_tokens();
                    retries.timed_out(&self.members[at].endpoint)
                }
            };
            match failure.transient {
                true => self.health.failed(&failure.error),
                false => self.health.answered(),
            }
            let in_place = failure.in_place;
            retries.failed(failure)?;
            if !in_place {
                self.move_on(at);
            }
            retries.pause(in_place, self.members.len()).await;
        }
    }

    /// Attempts a request on one member, once its circuit breaker lets it pass.
    async fn attempt_once<T, F, R>(
        &self,
        at: usize,
        request: &F,
        give_up: Instant,
        attempt_limit: Duration,
    ) -> Result<Result<T, Failure>, Elapsed>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let member = &self.members[at];
        match timeout_at(give_up, member.breaker.pass()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return Ok(Err(failure)),
            Err(_) => return Ok(Err(Failure::refused(&member.endpoint))),
        }
        let limit = attempt_limit.min(give_up.saturating_duration_since(Instant::now()));
        let unanswered = UnansweredRequest::new(self, at, attempt_limit / 4);
        let attempt = async {
            tokio::select! {
                outcome = timeout(limit, member.attempt(request)) => outcome,
                () = self.dropped_by_election(at) => Ok(Err(Failure::election(&member.endpoint))),
            }
        };
        let outcome = self.health.ask(attempt).await;
        unanswered.forget();
        outcome
    }

    /// Waits until there is a newer leader than when the request was sent, and until an answer to a
    /// request that survived the election would have arrived.
    ///
    /// A follower passes writes on to the leader. A leader that is deposed drops them without an
    /// answer. The member is not silent then, and the request can be made again as soon as there is
    /// a leader.
    async fn dropped_by_election(&self, at: usize) {
        let mut sent_in = self.term();
        loop {
            sleep(ELECTION_CHECK_PERIOD).await;
            let term = self.read_term(at).await;
            if sent_in != 0 && term > sent_in {
                return sleep(LATE_ANSWER_LIMIT).await;
            }
            sent_in = term;
        }
    }

    /// Asks a member for the term, at a limited rate for all requests together.
    async fn read_term(&self, at: usize) -> u64 {
        let member = &self.members[at];
        let mut read_at = member.status_read_at.lock().await;
        if read_at.is_none_or(|read_at| read_at.elapsed() >= ELECTION_CHECK_PERIOD / 2)
            && let Ok(client) = member.client().await
        {
            let status = client.maintenance_client().status().await;
            *read_at = Some(Instant::now());
            // While there is no leader the election is still under way.
            if let Ok(status) = status
                && status.leader() != 0
            {
                self.answered_in(status.raft_term());
            }
        }
        self.term()
    }
}

/// The attempts at one request so far.
struct Retries {
    give_up: Instant,
    pauses: Pauses,
    next_pause: Duration,
    failures: usize,
    /// An attempt may have taken effect.
    indeterminate: bool,
    /// The latest transient failure.
    reason: Option<Failure>,
}

impl Retries {
    fn until(give_up: Instant) -> Self {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self {
            give_up,
            next_pause: pauses.pause(),
            pauses,
            failures: 0,
            indeterminate: false,
            reason: None,
        }
    }

    /// The failure to report for an attempt without an answer: an earlier one tells more, and the
    /// last attempt may have had no time at all.
    fn timed_out(&mut self, endpoint: &str) -> Failure {
        self.indeterminate = true;
        self.reason
            .take()
            .unwrap_or_else(|| Failure::timeout(endpoint))
    }

    /// Records a failed attempt.
    ///
    /// # Errors
    ///
    /// The failure, if there is to be no other attempt.
    fn failed(&mut self, mut failure: Failure) -> Result<(), Failure> {
        self.indeterminate |= failure.error.is_indeterminate();
        if failure.transient && Instant::now() + self.next_pause < self.give_up {
            self.failures += 1;
            self.reason = Some(failure);
            return Ok(());
        }
        if self.indeterminate {
            failure.error = failure.error.indeterminate();
        }
        Err(failure)
    }

    /// Waits before the next attempt if it goes to the same member, or if every member has failed.
    async fn pause(&mut self, in_place: bool, members: usize) {
        if in_place || self.failures.is_multiple_of(members) {
            sleep(self.next_pause).await;
            self.next_pause = self.pauses.pause();
        }
    }
}

#[cfg(test)]
mod tests;
