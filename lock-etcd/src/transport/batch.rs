use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use etcd_client::{
    Compare, Error as EtcdError, KvClient, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use lock_core::backend::{Tasks, locked};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::history::{Positioned, StorePosition};
use crate::error::Failure;

/// Merges concurrent transactions of a client into one: group commit.
///
/// When a lock changes hands within a process, its release and the old holder's next entry are two
/// commits that get in each other's way; merged they are one. A single transaction is sent as it
/// is, at once unless others are likely to follow.
///
/// The conditions of merged transactions are ANDed, and nearly always hold. If they fail, each is
/// sent on its own. Nested transactions are not used: etcd 3.4 counts them neither against the
/// quota nor against the permissions of the user.
pub(crate) struct Batcher {
    /// Not the client's, whose end is waited for: a sender outlives the last answer by a moment.
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<QueuedTxn>,
    senders: usize,
    /// A transaction is under way without a sender.
    direct: bool,
}

/// A transaction and the rule for merging it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) when: Compare,
    pub(crate) then: Vec<TxnOp>,
    pub(crate) otherwise: Vec<TxnOp>,
    pub(crate) merging: Merging,
    /// Tasks of this client contend for the lock: others are likely to follow at once.
    pub(crate) contended: bool,
}

/// The transactions that one may be merged with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Merging {
    /// All: it only removes.
    Any,
    /// All but those with the same prefix, below which it makes an entry. Entries made by one
    /// transaction have the same create revision, so there would be no order among them.
    OnePerPrefix(String),
    /// None: its condition is likely to fail.
    None,
}

impl Positioned for Answer {
    fn position(&self) -> Option<StorePosition> {
        self.position
    }
}

impl Request {
    fn txn(self) -> Txn {
        Txn::new()
            .when([self.when])
            .and_then(self.then)
            .or_else(self.otherwise)
    }
}

/// The answer to one transaction, merged or not.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) responses: Vec<TxnOpResponse>,
    pub(crate) revision: i64,
    /// The raft term of the answer.
    pub(crate) term: u64,
    /// An earlier attempt may have taken effect.
    pub(crate) indeterminate: bool,
    pub(crate) position: Option<StorePosition>,
}

struct QueuedTxn {
    request: Request,
    kv: KvClient,
    /// The time from which it may be sent alone.
    due: Instant,
    answer: oneshot::Sender<Result<Answer, EtcdError>>,
}

/// The time for which a new entry waits for a release to be merged with, if other tasks of the
/// client want the lock as well. Its turn comes after theirs.
const MERGE_WAIT: Duration = Duration::from_millis(1);
/// The most transactions in one, of at most two operations each; etcd takes 128 by default.
const MAX_MERGED: usize = 32;
/// The most requests under way at a time: with more, transactions would rarely meet.
const SENDERS: usize = 4;
/// The number of times that other tasks run before a request is sent, so that those woken by the
/// same packet from the server join in. Costs microseconds, and nothing if there are none.
const YIELDS: usize = 4;

impl Batcher {
    pub(crate) fn new(tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            tasks,
            state: Mutex::default(),
        })
    }

    /// Runs a transaction, merged with others where possible.
    pub(crate) async fn txn(
        self: &Arc<Self>,
        kv: KvClient,
        request: Request,
    ) -> Result<Answer, EtcdError> {
        // The senders have ended with their runtime.
        if request.merging == Merging::None || self.tasks.have_moved() {
            return send_alone(kv, request).await;
        }
        if let Some(_direct) = self.direct(&request) {
            return send_alone(kv, request).await;
        }
        let (answer, mut answered) = oneshot::channel();
        let wait_limit = if request.contended && request.merging != Merging::Any {
            MERGE_WAIT
        } else {
            Duration::ZERO
        };
        self.state().queue.push_back(QueuedTxn {
            request,
            kv,
            due: Instant::now() + wait_limit,
            answer,
        });
        if !wait_limit.is_zero()
            && let Ok(answer) = timeout(wait_limit, &mut answered).await
        {
            return answer.unwrap_or_else(|_| Err(no_answer()));
        }
        self.start_sender();
        answered.await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Permits a transaction that will hardly meet another to be sent without a sender.
    fn direct(self: &Arc<Self>, request: &Request) -> Option<Direct> {
        let mut state = self.state();
        let is_alone =
            !request.contended && !state.direct && state.senders == 0 && state.queue.is_empty();
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
            self.tasks.spawn(
                Sender {
                    batcher: Arc::clone(self),
                    ended: false,
                }
                .run(),
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Sends batches while there are any. However it ends, another sender can take its place.
struct Sender {
    batcher: Arc<Batcher>,
    ended: bool,
}

impl Sender {
    async fn run(mut self) {
        while let Some(batch) = self.next().await {
            send_batch(batch).await;
        }
    }

    async fn next(&mut self) -> Option<Vec<QueuedTxn>> {
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
        let mut state = self.batcher.state();
        let batch = state.take();
        if batch.is_empty() {
            // While the queue is locked, so that the next transaction starts another sender.
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
            self.batcher.state().senders -= 1;
        }
    }
}

/// Makes other transactions use a sender until it is dropped.
struct Direct(Arc<Batcher>);

impl Drop for Direct {
    fn drop(&mut self) {
        self.0.state().direct = false;
    }
}

impl State {
    /// Takes the next batch. Removals go first, so that a new entry reads its queue as it is after
    /// the whole transaction.
    fn take(&mut self) -> Vec<QueuedTxn> {
        let mut removals = Vec::new();
        let mut creations = Vec::new();
        let mut rest = VecDeque::new();
        let mut prefixes = HashSet::new();
        let now = Instant::now();
        if self.queue.iter().all(|job| job.due > now) {
            return removals;
        }
        while let Some(job) = self.queue.pop_front() {
            if job.answer.is_closed() {
                continue;
            }
            let full = removals.len() + creations.len() >= MAX_MERGED;
            match &job.request.merging {
                Merging::OnePerPrefix(prefix) if !full && prefixes.insert(prefix.clone()) => {
                    creations.push(job);
                }
                Merging::Any if !full => removals.push(job),
                _ => rest.push_back(job),
            }
        }
        self.queue = rest;
        removals.extend(creations);
        removals
    }
}

/// Sends transactions as one, until answered or abandoned by all callers.
async fn send_batch(mut batch: Vec<QueuedTxn>) {
    // To the member of the newest: those of older ones may have failed since.
    let Some(newest) = batch
        .iter()
        .max_by_key(|job| job.due)
        .filter(|_| batch.len() > 1)
    else {
        return send_separately(batch, false).await;
    };
    let mut kv = newest.kv.clone();
    let conditions: Vec<_> = batch.iter().map(|job| job.request.when.clone()).collect();
    let all: Vec<_> = batch
        .iter()
        .flat_map(|job| job.request.then.clone())
        .collect();
    let answer = tokio::select! {
        answer = kv.txn(Txn::new().when(conditions).and_then(all)) => answer,
        () = all_abandoned(&mut batch) => return,
    };
    match answer {
        Ok(whole) if whole.succeeded() => answer_all(batch, &whole),
        Ok(_) => send_separately(batch, false).await,
        Err(error) => refused(batch, &error).await,
    }
}

async fn refused(batch: Vec<QueuedTxn>, error: &EtcdError) {
    let failure = Failure::of(copy(error), "");
    let mut again = batch;
    let mut over = Vec::new();
    if failure.transient {
        (again, over) = (over, again);
    } else if failure.error.is_indeterminate() {
        // It may have taken effect, so no entry is made again. Removals can be repeated, and need
        // no space.
        (again, over) = again
            .into_iter()
            .partition(|job| job.request.merging == Merging::Any);
    }
    for job in over {
        let _ = job.answer.send(Err(copy(error)));
    }
    // Otherwise the refusal is meant for one of them.
    send_separately(again, failure.error.is_indeterminate()).await;
}

fn answer_all(batch: Vec<QueuedTxn>, whole: &TxnResponse) {
    let position = StorePosition::of(whole.header()).map(|position| position.if_wrote(true));
    let revision = revision_of(whole);
    let term = term_of(whole);
    let mut responses = whole.op_responses().into_iter();
    for job in batch {
        let responses = responses.by_ref().take(job.request.then.len()).collect();
        let _ = job.answer.send(Ok(Answer {
            succeeded: true,
            responses,
            revision,
            position,
            term,
            indeterminate: false,
        }));
    }
}

/// `indeterminate`: the merged transaction may have taken effect.
async fn send_separately(batch: Vec<QueuedTxn>, indeterminate: bool) {
    let each = batch.into_iter().map(|QueuedTxn { request, kv, mut answer, .. }| async move {
        tokio::select! {
            outcome = send_alone(kv, request) => drop(answer.send(outcome.map(|outcome| Answer { indeterminate, ..outcome }))),
            () = answer.closed() => {}
        }
    });
    futures_util::future::join_all(each).await;
}

async fn all_abandoned(batch: &mut [QueuedTxn]) {
    for job in batch {
        job.answer.closed().await;
    }
}

pub(crate) async fn send_alone(mut kv: KvClient, request: Request) -> Result<Answer, EtcdError> {
    let response = kv.txn(request.txn()).await?;
    // Each writes if its condition holds: puts, or deletes what is known to be there.
    let position = StorePosition::of(response.header())
        .map(|position| position.if_wrote(response.succeeded()));
    let revision = revision_of(&response);
    let term = term_of(&response);
    Ok(Answer {
        succeeded: response.succeeded(),
        responses: response.op_responses(),
        revision,
        position,
        term,
        indeterminate: false,
    })
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

fn revision_of(response: &TxnResponse) -> i64 {
    response.header().map_or(0, ResponseHeader::revision)
}

fn term_of(response: &TxnResponse) -> u64 {
    response.header().map_or(0, ResponseHeader::raft_term)
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Batches")
            .field("queued", &state.queue.len())
            .field("senders", &state.senders)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
