use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error as EtcdError, KvClient, ResponseHeader, Txn, TxnResponse};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lock_core::{
    ErrorKind, LockError,
    backend::{Clock, Contact, Tasks},
};
use tokio::{
    sync::{Mutex, OnceCell, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    error::Failure,
    history::{History, Stamped},
};

/// Sends every request to one member at a time, and to the next one when that member fails.
///
/// The client library spreads requests over all endpoints at random and does not retry: with one of three members
/// dead, more than a quarter of the calls fail. Staying on one member until it fails costs nothing on a healthy cluster.
pub(crate) struct Cluster {
    members: Vec<Member>,
    current: AtomicUsize,
    moved: watch::Sender<usize>,
    /// The highest raft term that an answer was given in: each election begins a new one.
    term: AtomicU64,
    times: Times,
    contact: Arc<Contact>,
    history: History,
}

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// One request on all members together, retries included.
    pub(crate) request: Duration,
}

impl Times {
    /// One attempt on one member. Three fit into a request, so that one silent member does not use up its time.
    fn attempt(self) -> Duration {
        self.request / 3
    }
}

/// The answer to a request that may have been made more than once.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    pub(crate) answer: T,
    /// An earlier attempt got no answer: this one may have found its effect.
    pub(crate) doubtful: bool,
}

struct Member {
    endpoint: String,
    options: ConnectOptions,
    client: OnceCell<Client>,
    /// The same once the runtime on which that one was made has ended, and its connection with it.
    client_of_fallback: OnceCell<Client>,
    /// A request was not answered in time, perhaps for the sake of its token: the server lets it wait until it has come as far as it was
    /// when it made the token, and one whose data was restored may never do.
    doubts_token: AtomicBool,
    /// When it was last asked for its term.
    asked: Mutex<Option<Instant>>,
    /// Where its connection lives: not on a runtime that an application starts for a single call.
    home: Tasks,
}

impl Cluster {
    /// The members behind `endpoints`, connected on first use, starting with a random one so that clients spread.
    pub(crate) fn new(endpoints: Vec<String>, options: &ConnectOptions, times: Times, home: &Tasks) -> Self {
        let first = (rand::random::<u64>() % endpoints.len().max(1) as u64) as usize;
        let member = |endpoint| Member::new(endpoint, options.clone(), home.clone());
        Self::of_members(endpoints.into_iter().map(member).collect(), first, times)
    }

    /// A client that the application connected; it balances over its endpoints itself.
    pub(crate) fn of_client(client: Client, times: Times, home: &Tasks) -> Self {
        let mut member = Member::new("the given client".into(), ConnectOptions::new(), home.clone());
        // Where it was made is not known: nor is a way to make another.
        member.client = OnceCell::new_with(Some(client));
        member.client_of_fallback = member.client.clone();
        Self::of_members(vec![member], 0, times)
    }

    fn of_members(members: Vec<Member>, first: usize, times: Times) -> Self {
        let (current, moved, term) = (AtomicUsize::new(first), watch::Sender::new(first), AtomicU64::new(0));
        Self { members, current, moved, term, times, contact: Contact::new(Clock::Suspend), history: History::default() }
    }

    /// The member to talk to, and a client for it.
    pub(crate) async fn client(&self) -> Result<(usize, &Client), Failure> {
        let at = self.current.load(Ordering::Relaxed);
        Ok((at, self.members[at].client().await?))
    }

    /// How far the store is known to have come.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// How long a request may take, retries included.
    pub(crate) fn request_limit(&self) -> Duration {
        self.times.request
    }

    /// Whether the members answer.
    pub(crate) fn contact(&self) -> &Arc<Contact> {
        &self.contact
    }

    /// Tells when requests move on to another member, so that streams follow.
    pub(crate) fn moves(&self) -> watch::Receiver<usize> {
        self.moved.subscribe()
    }

    /// Moves on to the next member, unless somebody has since `failed` was current.
    pub(crate) fn move_on(&self, failed: usize) {
        self.move_to(self.after(failed), failed);
    }

    fn after(&self, member: usize) -> usize {
        (member + 1) % self.members.len()
    }

    fn move_to(&self, next: usize, failed: usize) {
        if next != failed && self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::debug!(from = %self.members[failed].endpoint, to = %self.members[next].endpoint, "moving on to another member");
            self.moved.send_replace(next);
        }
    }

    /// Takes note of the term that an answer was given in.
    pub(crate) fn answered_in(&self, term: u64) {
        self.term.fetch_max(term, Ordering::Relaxed);
    }

    /// Ends all streams, for they may come from a store that is not there any more.
    pub(crate) fn reopen_streams(&self) {
        self.moved.send_replace(self.current.load(Ordering::Relaxed));
    }

    /// Makes a request until it is answered, on each member in turn, for at most the request timeout.
    ///
    /// Every request must be safe to repeat: its outcome may be unknown when it is sent again. An error is marked
    /// indeterminate if any attempt may have taken effect. An answer that shows that the store went back is an error, too.
    pub(crate) async fn call<T, F, R>(&self, request: F) -> Result<T, Failure>
    where
        T: Stamped,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        self.call_repeatedly(request).await.map(|answered| answered.answer)
    }

    /// Runs a transaction that is safe to repeat.
    pub(crate) async fn txn(&self, txn: &Txn) -> Result<TxnResponse, Failure> {
        let answer = self.call(|etcd| {
            let (mut kv, txn) = (kv(etcd), txn.clone());
            async move { kv.txn(txn).await }
        });
        answer.await.inspect(|answer| self.answered_in(answer.header().map_or(0, ResponseHeader::raft_term)))
    }

    /// Makes a request that may well be carried out several times, so that it is answered within `time` if any member can
    /// answer: while the current member is silent it is made on the others too, twice on each.
    ///
    /// None of the attempts is given up before the time is over, so a slow cluster has all of it. If another member
    /// answers first, or none and the future is dropped, requests move on.
    pub(crate) async fn call_within<T, F, R>(&self, time: Duration, request: F) -> Result<T, Failure>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let turns = 2 * self.members.len();
        let turn = (time / u32::try_from(turns).unwrap_or(u32::MAX)).min(self.times.attempt());
        let (give_up, mut attempts) = (Instant::now() + time, FuturesUnordered::new());
        let (first, request) = (self.current.load(Ordering::Relaxed), &request);
        let (unanswered, mut at, mut started) = (Unanswered::new(self, first, turn), first, 0);
        let mut failure = Failure::timeout(&self.members[first].endpoint);
        loop {
            if started < turns {
                self.contact.asked();
                attempts.push(async move { (at, self.attempt(at, request).await) });
                (at, started) = (self.after(at), started + 1);
            }
            let until = if started < turns { give_up.min(Instant::now() + turn) } else { give_up };
            match timeout_at(until, attempts.next()).await {
                Ok(Some((answering, Ok(answer)))) => {
                    unanswered.answered_by(answering);
                    self.contact.answered();
                    return Ok(answer);
                }
                Ok(Some((failed, Err(other)))) => {
                    if !other.transient {
                        unanswered.answered_by(failed);
                        self.contact.answered();
                        return Err(other);
                    }
                    self.contact.failed(&other.error);
                    if !other.stays {
                        self.move_on(failed);
                    }
                    failure = other;
                }
                // Each has failed in each of its turns.
                Ok(None) => return Err(failure),
                Err(_) if Instant::now() >= give_up => {
                    self.contact.failed(&failure.error);
                    return Err(failure);
                }
                Err(_) => {}
            }
        }
    }

    /// Like [`call`](Self::call), and tells whether an earlier attempt may have taken effect.
    pub(crate) async fn call_repeatedly<T, F, R>(&self, request: F) -> Result<Answered<T>, Failure>
    where
        T: Stamped,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        self.repeat(request, self.times.request, self.times.attempt()).await
    }

    /// Attempts a request for at most `limit` in all, each time for at most `attempt_limit`.
    async fn repeat<T, F, R>(&self, request: F, limit: Duration, attempt_limit: Duration) -> Result<Answered<T>, Failure>
    where
        T: Stamped,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let give_up = Instant::now() + limit;
        let (mut doubtful, mut failures, mut pause) = (false, 0, FIRST_PAUSE);
        let mut reason = None;
        loop {
            let at = self.current.load(Ordering::Relaxed);
            let known = self.history.known();
            let limit = attempt_limit.min(give_up.saturating_duration_since(Instant::now()));
            let unanswered = Unanswered::new(self, at, attempt_limit / 4);
            self.contact.asked();
            let outcome = tokio::select! {
                outcome = timeout(limit, self.attempt(at, &request)) => outcome,
                () = self.dropped_by_an_election(at) => Ok(Err(Failure::election(&self.members[at].endpoint))),
            };
            unanswered.forget();
            let mut failure = match outcome {
                Ok(Ok(answer)) => {
                    self.contact.answered();
                    answer.stamp().map_or(Ok(()), |stamp| self.history.confirm(known, stamp)).map_err(Failure::definite)?;
                    return Ok(Answered { answer, doubtful });
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    doubtful = true;
                    self.members[at].doubts_token.store(true, Ordering::Relaxed);
                    // What an earlier attempt met tells more, and the last one may have had no time at all.
                    reason.take().unwrap_or_else(|| Failure::timeout(&self.members[at].endpoint))
                }
            };
            match failure.transient {
                true => self.contact.failed(&failure.error),
                false => self.contact.answered(),
            }
            doubtful |= failure.error.is_indeterminate();
            if failure.transient && Instant::now() + pause < give_up {
                let stays = failure.stays;
                if !stays {
                    self.move_on(at);
                }
                reason = Some(failure);
                failures += 1;
                // A member that cannot at the moment, or every member, has failed: wait before the next attempt.
                if stays || failures % self.members.len() == 0 {
                    sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                continue;
            }
            if doubtful {
                failure.error = failure.error.indeterminate();
            }
            return Err(failure);
        }
    }

    async fn attempt<T, F, R>(&self, at: usize, request: &F) -> Result<T, Failure>
    where
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        let member = &self.members[at];
        let client = member.client().await?;
        if member.doubts_token.swap(false, Ordering::Relaxed) {
            // Nothing is sent for a client without a user. If it fails, so does the request, which tells why.
            let _ = client.refresh_token().await;
        }
        request(client).await.map_err(|error| Failure::of(error, &member.endpoint))
    }

    /// Waits until there is another leader than in the last term that is known, and until an answer to a request that outlived the
    /// change would be there.
    ///
    /// A follower passes writes on to the leader. One that ceases to lead drops them without a word, and nobody ever
    /// answers: that is no silence of the member, and the request can be made again as soon as somebody leads.
    async fn dropped_by_an_election(&self, at: usize) {
        let mut sent_in = self.term.load(Ordering::Relaxed);
        loop {
            sleep(PULSE).await;
            let term = self.term(at).await;
            if sent_in != 0 && term > sent_in {
                return sleep(LATE_ANSWER).await;
            }
            sent_in = term;
        }
    }

    /// The term, from a member that is asked once in a while however many want to know.
    async fn term(&self, at: usize) -> u64 {
        let member = &self.members[at];
        let mut asked = member.asked.lock().await;
        if asked.is_none_or(|asked| asked.elapsed() >= PULSE / 2)
            && let Ok(client) = member.client().await
        {
            let status = client.maintenance_client().status().await;
            *asked = Some(Instant::now());
            // A term without a leader is an election that goes on.
            if let Ok(status) = status
                && status.leader() != 0
            {
                self.answered_in(status.raft_term());
            }
        }
        self.term.load(Ordering::Relaxed)
    }

    /// Finds a member that answers `request`, for at most `limit`.
    ///
    /// Unlike [`call`](Self::call) this reports an unusable endpoint or wrong credentials at once, and names the
    /// endpoints.
    pub(crate) async fn first_contact<T, F, R>(&self, limit: Duration, request: F) -> Result<T, LockError>
    where
        T: Stamped,
        F: Fn(&Client) -> R + Send + Sync,
        R: Future<Output = Result<T, EtcdError>> + Send,
    {
        // Each member has its turn.
        let turn = limit / u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        match self.repeat(request, limit, turn.min(self.times.attempt())).await {
            Ok(answered) => Ok(answered.answer),
            Err(failure) if failure.transient => {
                let endpoints: Vec<_> = self.members.iter().map(|member| member.endpoint.as_str()).collect();
                let message = format!(
                    "no etcd server answered at {} within {limit:?}; check the address, that it is up, and that both sides agree on TLS",
                    endpoints.join(", ")
                );
                Err(LockError::new(ErrorKind::Unavailable, message).caused_by(failure.error))
            }
            Err(failure) => Err(failure.error),
        }
    }
}

/// A client for keys and values. A member sends answers of any size, and the default limit is 4 MiB: more than a page of long keys.
pub(crate) fn kv(etcd: &Client) -> KvClient {
    etcd.kv_client().max_decoding_message_size(LARGEST_ANSWER)
}

/// Of reads, and of watches that tell of many deletions at one revision, as when a lease with very many entries ends.
pub(crate) const LARGEST_ANSWER: usize = 256 * 1024 * 1024;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often a member that does not answer is asked whether there was an election: longer than nearly all requests take.
const PULSE: Duration = Duration::from_millis(200);
/// How long after an election a request that it did not drop may still be answered.
const LATE_ANSWER: Duration = Duration::from_millis(50);

/// A request that has no answer yet. If it is dropped after a while requests move on: whoever gave it up waited for nothing,
/// and so would the next one.
struct Unanswered<'a> {
    cluster: &'a Cluster,
    member: usize,
    since: Instant,
    patience: Duration,
}

impl<'a> Unanswered<'a> {
    fn new(cluster: &'a Cluster, member: usize, patience: Duration) -> Self {
        Self { cluster, member, since: Instant::now(), patience }
    }

    /// Moves on to the member that has answered first.
    fn answered_by(self, member: usize) {
        self.cluster.move_to(member, self.member);
        self.forget();
    }

    fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= self.patience {
            self.cluster.move_on(self.member);
        }
    }
}

impl Member {
    fn new(endpoint: String, options: ConnectOptions, home: Tasks) -> Self {
        let (client, client_of_fallback) = (OnceCell::new(), OnceCell::new());
        Self { endpoint, options, client, client_of_fallback, doubts_token: AtomicBool::new(false), asked: Mutex::new(None), home }
    }

    async fn client(&self) -> Result<&Client, Failure> {
        let client = if self.home.have_moved() { &self.client_of_fallback } else { &self.client };
        client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let (endpoint, options) = (self.endpoint.clone(), self.options.clone());
        let connect = self.home.finish(async move { Ok(Client::connect([endpoint], Some(options)).await) });
        connect.await.map_err(Failure::transient)?.map_err(|error| match error {
            // Nothing is connected yet: the only error of the transport is about its settings.
            EtcdError::TransportError(_) => Failure::unusable_tls(error),
            error => Failure::of(error, &self.endpoint),
        })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.members.iter().map(|member| &member.endpoint).collect();
        f.debug_struct("Cluster").field("endpoints", &endpoints).field("current", &self.current).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn cluster() -> Cluster {
        let endpoints = (1..=3).map(|port| format!("127.0.0.1:{port}")).collect();
        Cluster::new(endpoints, &ConnectOptions::new(), Times { request: Duration::from_secs(6) }, &Tasks::current())
    }

    /// By how many members requests move on when this has been done.
    async fn moved(cluster: &Cluster, act: impl Future) -> usize {
        let first = cluster.current.load(Ordering::Relaxed);
        act.await;
        (cluster.current.load(Ordering::Relaxed) + 3 - first) % 3
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_dropped_without_an_answer_moves_on_if_it_had_time_for_one() {
        for (given, moves) in [(100, 0), (600, 1)] {
            let cluster = cluster();
            let call = cluster.call(|_| pending::<Result<(), EtcdError>>());
            assert_eq!(moved(&cluster, timeout(Duration::from_millis(given), call)).await, moves, "{given} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_with_little_time_is_made_on_every_member_and_moves_to_the_one_that_answers() {
        let (cluster, asked, start) = (cluster(), AtomicUsize::new(0), Instant::now());
        let renewal = cluster.call_within(Duration::from_millis(600), |_| {
            let silent = asked.fetch_add(1, Ordering::Relaxed) < 2;
            async move { if silent { pending().await } else { Ok(()) } }
        });
        assert_eq!(moved(&cluster, async { renewal.await.unwrap() }).await, 2);
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_slow_the_first_one_has_all_the_time_and_nobody_moves() {
        let cluster = cluster();
        let renewal = cluster.call_within(Duration::from_millis(600), |_| async {
            sleep(Duration::from_millis(500)).await;
            Ok(())
        });
        assert_eq!(moved(&cluster, async { renewal.await.unwrap() }).await, 0);
    }
}
