use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use etcd_client::{Compare, Error as EtcdError, KvClient, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse};
use lock_core::backend::{Tasks, locked};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{error::Failure, history::Stamp};

/// Sends the transactions of a client to one member, those that are there at the same time as one: group commit.
///
/// When a lock changes hands within a process, its release and the old holder's next entry are two commits that get in
/// each other's way; together they are one. A transaction that is alone is sent as it is: at once, unless others are likely to come.
///
/// Together they go under the conjunction of their conditions, which nearly always hold. If one does not, nothing is done
/// and each is sent on its own. Not as nested transactions: etcd 3.4 counts those neither against the quota nor against
/// the permissions of the user.
pub(crate) struct Batches {
    /// Of its own: a sender outlives the last answer by a moment, which is nothing to wait for.
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    senders: usize,
    /// One is on its way without a sender.
    direct: bool,
}

/// A transaction, and what it may be put together with.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) when: Compare,
    pub(crate) then: Vec<TxnOp>,
    pub(crate) otherwise: Vec<TxnOp>,
    pub(crate) company: Company,
    /// Others of this client are likely to come at the same moment, for tasks of it contend for the lock.
    pub(crate) expects_others: bool,
}

/// What a transaction may be put together with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// It only removes.
    Any,
    /// It makes an entry below this prefix. Entries made by one transaction have the same create revision, so that there
    /// would be no order among them: only one of a prefix goes into each.
    OnePerPrefix(String),
    /// Its condition is likely not to hold.
    None,
}

impl Request {
    fn txn(self) -> Txn {
        Txn::new().when([self.when]).and_then(self.then).or_else(self.otherwise)
    }
}

/// The answer to one transaction, whichever way it went.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) responses: Vec<TxnOpResponse>,
    pub(crate) revision: i64,
    /// The raft term in which it was given.
    pub(crate) term: u64,
    /// An earlier attempt may have done it.
    pub(crate) doubtful: bool,
    pub(crate) stamp: Option<Stamp>,
}

struct Job {
    request: Request,
    kv: KvClient,
    /// Until then it goes with others, and not alone.
    due: Instant,
    answer: oneshot::Sender<Result<Answer, EtcdError>>,
}

/// How long a new entry of a lock that other tasks of the client want as well waits for one of their releases, to go with it.
/// Its turn comes after theirs.
const PATIENCE: Duration = Duration::from_millis(1);
/// Transactions in one, of at most two operations each; etcd takes 128 operations by default.
const MOST: usize = 32;
/// Requests on their way at the same time: with more, they would rarely meet.
const SENDERS: usize = 4;
/// Turns that other tasks of the runtime get before a request is sent: those that the same packet from the server has
/// woken join in. Costs microseconds, and no time if there are none.
const TURNS: usize = 4;

impl Batches {
    pub(crate) fn new(tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { tasks, state: Mutex::default() })
    }

    /// Runs a transaction, perhaps together with others.
    pub(crate) async fn txn(self: &Arc<Self>, kv: KvClient, request: Request) -> Result<Answer, EtcdError> {
        if request.company == Company::None {
            return alone(kv, request).await;
        }
        if let Some(_direct) = self.direct(&request) {
            return alone(kv, request).await;
        }
        let (answer, mut answered) = oneshot::channel();
        let patience = if request.expects_others && request.company != Company::Any { PATIENCE } else { Duration::ZERO };
        self.state().queue.push_back(Job { request, kv, due: Instant::now() + patience, answer });
        if !patience.is_zero()
            && let Ok(answer) = timeout(patience, &mut answered).await
        {
            return answer.unwrap_or_else(|_| Err(no_answer()));
        }
        self.start_sender();
        answered.await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// A transaction that will hardly meet another needs no sender.
    fn direct(self: &Arc<Self>, request: &Request) -> Option<Direct> {
        let mut state = self.state();
        let is_alone = !request.expects_others && !state.direct && state.senders == 0 && state.queue.is_empty();
        state.direct |= is_alone;
        is_alone.then(|| Direct(Arc::clone(self)))
    }

    fn start_sender(self: &Arc<Self>) {
        let free = {
            let mut state = self.state();
            let free = state.senders < SENDERS;
            state.senders += usize::from(free);
            free
        };
        if free {
            self.tasks.spawn(Sender { batches: Arc::clone(self), ended: false }.run());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Sends one batch after the other while there are any. However it ends, another can take its place.
struct Sender {
    batches: Arc<Batches>,
    ended: bool,
}

impl Sender {
    async fn run(mut self) {
        while let Some(batch) = self.next().await {
            send_batch(batch).await;
        }
    }

    async fn next(&mut self) -> Option<Vec<Job>> {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        let mut state = self.batches.state();
        let batch = state.take();
        if batch.is_empty() {
            // While the queue is locked, so that whoever comes next finds the place free.
            self.ended = true;
            state.senders -= 1;
            return None;
        }
        Some(batch)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.ended {
            self.batches.state().senders -= 1;
        }
    }
}

/// Until it is dropped no other transaction goes without a sender.
struct Direct(Arc<Batches>);

impl Drop for Direct {
    fn drop(&mut self) {
        self.0.state().direct = false;
    }
}

impl State {
    /// What goes together: removals first, so that what a new entry sees of its queue is how it is after the whole
    /// transaction.
    fn take(&mut self) -> Vec<Job> {
        let (mut removals, mut creations, mut rest) = (Vec::new(), Vec::new(), VecDeque::new());
        let mut prefixes = HashSet::new();
        let now = Instant::now();
        if self.queue.iter().all(|job| job.due > now) {
            return removals;
        }
        while let Some(job) = self.queue.pop_front() {
            if job.answer.is_closed() {
                continue;
            }
            let full = removals.len() + creations.len() >= MOST;
            match &job.request.company {
                Company::OnePerPrefix(prefix) if !full && prefixes.insert(prefix.clone()) => creations.push(job),
                Company::Any if !full => removals.push(job),
                _ => rest.push_back(job),
            }
        }
        self.queue = rest;
        removals.extend(creations);
        removals
    }
}

/// Sends some together, for as long as any of those who asked for it waits.
async fn send_batch(mut batch: Vec<Job>) {
    // By the way of the newest: older ones may have been meant for a member that has failed since.
    let Some(newest) = batch.iter().max_by_key(|job| job.due).filter(|_| batch.len() > 1) else { return each_alone(batch, false).await };
    let mut kv = newest.kv.clone();
    let conditions: Vec<_> = batch.iter().map(|job| job.request.when.clone()).collect();
    let all: Vec<_> = batch.iter().flat_map(|job| job.request.then.clone()).collect();
    let answer = tokio::select! {
        answer = kv.txn(Txn::new().when(conditions).and_then(all)) => answer,
        () = all_gone(&mut batch) => return,
    };
    match answer {
        Ok(whole) if whole.succeeded() => answer_all(batch, &whole),
        Ok(_) => each_alone(batch, false).await,
        Err(error) => refused(batch, &error).await,
    }
}

async fn refused(batch: Vec<Job>, error: &EtcdError) {
    let failure = Failure::of(copy(error), "");
    let (mut again, mut over) = (batch, Vec::new());
    if failure.transient {
        (again, over) = (over, again);
    } else if failure.error.is_indeterminate() {
        // All may have been done, so nothing is made again. What only removes can be, and is not what finds no space.
        (again, over) = again.into_iter().partition(|job| job.request.company == Company::Any);
    }
    for job in over {
        let _ = job.answer.send(Err(copy(error)));
    }
    // Else the refusal is meant for one of them.
    each_alone(again, failure.error.is_indeterminate()).await;
}

fn answer_all(batch: Vec<Job>, whole: &TxnResponse) {
    let stamp = Stamp::of(whole.header()).map(|stamp| stamp.if_wrote(true));
    let (revision, term, mut responses) = (revision(whole), term(whole), whole.op_responses().into_iter());
    for job in batch {
        let responses = responses.by_ref().take(job.request.then.len()).collect();
        let _ = job.answer.send(Ok(Answer { succeeded: true, responses, revision, stamp, term, doubtful: false }));
    }
}

/// `doubtful`: it may have been done already.
async fn each_alone(batch: Vec<Job>, doubtful: bool) {
    let each = batch.into_iter().map(|Job { request, kv, mut answer, .. }| async move {
        tokio::select! {
            outcome = alone(kv, request) => drop(answer.send(outcome.map(|outcome| Answer { doubtful, ..outcome }))),
            () = answer.closed() => {}
        }
    });
    futures_util::future::join_all(each).await;
}

async fn all_gone(batch: &mut [Job]) {
    for job in batch {
        job.answer.closed().await;
    }
}

pub(crate) async fn alone(mut kv: KvClient, request: Request) -> Result<Answer, EtcdError> {
    let response = kv.txn(request.txn()).await?;
    // Each writes if its condition holds: puts, or deletes what is known to be there.
    let stamp = Stamp::of(response.header()).map(|stamp| stamp.if_wrote(response.succeeded()));
    let (revision, term) = (revision(&response), term(&response));
    Ok(Answer { succeeded: response.succeeded(), responses: response.op_responses(), revision, stamp, term, doubtful: false })
}

fn no_answer() -> EtcdError {
    EtcdError::Internal("no answer in time".into())
}

fn copy(error: &EtcdError) -> EtcdError {
    match error {
        EtcdError::GRpcStatus(status) => EtcdError::GRpcStatus(status.clone()),
        error => EtcdError::Internal(error.to_string()),
    }
}

fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, ResponseHeader::revision)
}

fn term(response: &TxnResponse) -> u64 {
    response.header().map_or(0, ResponseHeader::raft_term)
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Batches").field("queued", &state.queue.len()).field("senders", &state.senders).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use conformance_tests::servers::{self, EtcdOptions};

    use super::*;

    /// The state with these jobs: `-` for a removal, else the prefix below which an entry is made; lower case if it can wait.
    async fn queued(kv: &KvClient, jobs: &[&str]) -> (State, Vec<oneshot::Receiver<Result<Answer, EtcdError>>>) {
        let mut state = State::default();
        let waiting = jobs.iter().map(|creates| {
            let (answer, answered) = oneshot::channel();
            let due = Instant::now() + if creates.contains(char::is_lowercase) { PATIENCE } else { Duration::ZERO };
            let company = if *creates == "-" { Company::Any } else { Company::OnePerPrefix((*creates).to_owned()) };
            let when = Compare::create_revision("k", etcd_client::CompareOp::Equal, 0);
            let request = Request { when, then: Vec::new(), otherwise: Vec::new(), company, expects_others: true };
            state.queue.push_back(Job { request, kv: kv.clone(), due, answer });
            answered
        });
        let waiting = waiting.collect();
        (state, waiting)
    }

    async fn unconnected() -> KvClient {
        etcd_client::Client::connect(["127.0.0.1:1"], None).await.unwrap().kv_client()
    }

    fn kinds(batch: &[Job]) -> Vec<String> {
        let kind = |job: &'_ Job| match &job.request.company {
            Company::OnePerPrefix(prefix) => prefix.clone(),
            _ => "-".to_owned(),
        };
        batch.iter().map(kind).collect()
    }

    #[tokio::test]
    async fn removals_go_first_and_one_entry_of_each_lock() {
        let (mut state, _waiting) = queued(&unconnected().await, &["A/", "-", "A/", "B/", "-", "A/"]).await;
        assert_eq!(kinds(&state.take()), ["-", "-", "A/", "B/"]);
        assert_eq!(kinds(&state.take()), ["A/"]);
        assert_eq!(kinds(&state.take()), ["A/"]);
        assert!(state.take().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_goes_with_others_or_when_it_is_due() {
        let kv = unconnected().await;
        let (mut state, _waiting) = queued(&kv, &["a/", "-"]).await;
        assert_eq!(kinds(&state.take()), ["-", "a/"]);
        let (mut state, _waiting) = queued(&kv, &["a/"]).await;
        assert!(state.take().is_empty());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(kinds(&state.take()), ["a/"]);
    }

    fn request(key: &str, then: TxnOp, company: Company) -> Request {
        let when = Compare::create_revision(key, etcd_client::CompareOp::Greater, -1);
        Request { when, then: vec![then], otherwise: Vec::new(), company, expects_others: true }
    }

    #[test]
    fn a_sender_that_is_dropped_leaves_its_place() {
        let home = tokio::runtime::Runtime::new().unwrap();
        let (_server, batches) = home.block_on(async {
            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let kv = etcd_client::Client::connect([silent.local_addr().unwrap().to_string()], None).await.unwrap().kv_client();
            let batches = Batches::new(Tasks::current());
            let asking = Arc::clone(&batches);
            tokio::spawn(async move { asking.txn(kv, request("k", TxnOp::delete("k", None), Company::Any)).await });
            while batches.tasks.running() == 0 {
                tokio::task::yield_now().await;
            }
            (silent, batches)
        });
        drop(home);
        assert_eq!(batches.state().senders, 0);
    }

    #[tokio::test]
    async fn a_removal_goes_through_although_what_goes_with_it_finds_no_space() {
        let options = EtcdOptions::new().own().with_argument("--quota-backend-bytes=1048576");
        let server = match servers::etcd(options) {
            Ok(server) => server,
            Err(skip) => return eprintln!("{skip}"),
        };
        let mut kv = etcd_client::Client::connect([server.endpoint()], None).await.unwrap().kv_client();
        kv.put("held", "", None).await.unwrap();
        while kv.put("ballast", vec![0; 100 * 1024], None).await.is_ok() {}
        let batches = Batches::new(Tasks::current());
        let put = request("new", TxnOp::put("new", "", None), Company::OnePerPrefix("new".to_owned()));
        let removal = request("held", TxnOp::delete("held", None), Company::Any);
        let (refused, removed) = tokio::join!(batches.txn(kv.clone(), put), batches.txn(kv.clone(), removal));
        assert_eq!(Failure::of(refused.unwrap_err(), "").error.kind(), lock_core::ErrorKind::Exhausted);
        let removed = removed.unwrap();
        assert!(removed.succeeded && removed.doubtful, "{removed:?}");
        assert_eq!(kv.get("held", None).await.unwrap().count(), 0);
    }

    #[tokio::test]
    async fn no_more_than_the_server_takes_and_nothing_for_nobody() {
        let jobs: Vec<_> = (0..MOST + 5).map(|_| "-").collect();
        let (mut state, mut waiting) = queued(&unconnected().await, &jobs).await;
        waiting.remove(0);
        assert_eq!((state.take().len(), state.take().len()), (MOST, 4));
    }
}
