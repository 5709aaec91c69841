use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, KvClient};
use lock_core::backend::{Clock, StoreHealth, Tasks};
use tokio::sync::watch;

use super::{batch::Batcher, history::StoreHistory, member::Member};
use crate::error::Failure;

/// The members of the cluster, of which one at a time serves all requests and watches.
///
/// The client library spreads requests over all endpoints at random and does not retry: with one of
/// three members dead, more than a quarter of the calls fail. Staying on one member until it fails
/// costs nothing on a healthy cluster.
pub(crate) struct Cluster {
    pub(super) members: Vec<Member>,
    pub(super) batcher: Arc<Batcher>,
    pub(super) times: Times,
    current: AtomicUsize,
    moved: watch::Sender<usize>,
    /// The highest raft term of an answer; each election begins a new term.
    term: AtomicU64,
    pub(super) health: Arc<StoreHealth>,
    pub(super) history: StoreHistory,
}

/// Time limits of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// One request, retries on all members included.
    pub(crate) request: Duration,
}

impl Times {
    /// The limit of one attempt on one member. Three fit into a request, so that one silent member
    /// does not use up all its time.
    pub(super) fn attempt(self) -> Duration {
        self.request / 3
    }
}

impl Cluster {
    /// The members behind `endpoints`, connected on first use. Starts with a random one, so that
    /// clients spread.
    pub(crate) fn new(
        endpoints: Vec<String>,
        options: &ConnectOptions,
        times: Times,
        tasks: &Tasks,
    ) -> Self {
        let first = (rand::random::<u64>() % endpoints.len().max(1) as u64) as usize;
        let member = |endpoint| Member::new(endpoint, options.clone(), tasks.clone());
        let members = endpoints.into_iter().map(member).collect();
        Self::of_members(members, first, times, tasks)
    }

    /// A client that the application connected. It balances over its endpoints itself.
    #[cfg(feature = "etcd-client-0_21")]
    pub(crate) fn of_client(client: Client, times: Times, tasks: &Tasks) -> Self {
        let member = Member::of_client(client, tasks.clone());
        Self::of_members(vec![member], 0, times, tasks)
    }

    fn of_members(members: Vec<Member>, first: usize, times: Times, tasks: &Tasks) -> Self {
        Self {
            members,
            batcher: Batcher::new(tasks.apart()),
            times,
            current: AtomicUsize::new(first),
            moved: watch::Sender::new(first),
            term: AtomicU64::new(0),
            health: StoreHealth::new(Clock::Suspend),
            history: StoreHistory::default(),
        }
    }

    /// The index of the member that serves requests.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// A client of a member for a request that is not repeated soon if its token is invalid.
    pub(crate) async fn client(&self, member: usize) -> Result<&Client, Failure> {
        let member = &self.members[member];
        let client = member.client().await?;
        // A token that cannot be renewed may still be valid.
        let _ = member.token.ensure_valid(client).await;
        Ok(client)
    }

    pub(crate) fn history(&self) -> &StoreHistory {
        &self.history
    }

    /// The time limit of a request, retries included.
    pub(crate) fn request_limit(&self) -> Duration {
        self.times.request
    }

    pub(crate) fn health(&self) -> &Arc<StoreHealth> {
        &self.health
    }

    /// Changes whenever streams are to be opened anew, usually on another member.
    pub(crate) fn moves(&self) -> watch::Receiver<usize> {
        self.moved.subscribe()
    }

    /// Moves on to the next member, unless `failed` is not current any more.
    pub(crate) fn move_on(&self, failed: usize) {
        self.move_to(self.after(failed), failed);
    }

    pub(super) fn move_to(&self, next: usize, failed: usize) {
        if next != failed
            && self
                .current
                .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            tracing::debug!(from = %self.members[failed].endpoint, to = %self.members[next].endpoint, "moving on to another member");
            self.moved.send_replace(next);
        }
    }

    pub(super) fn after(&self, member: usize) -> usize {
        (member + 1) % self.members.len()
    }

    /// Has the next request to a member fetch another token first, because something failed that an
    /// invalid token may explain.
    pub(crate) fn invalidate_token(&self, member: usize) {
        let token = &self.members[member].token;
        token.invalidate(token.renewed());
    }

    /// As [`invalidate_token`](Self::invalidate_token), for all members. A server lets a request
    /// wait until it has reached the revision at which it made the token; a restored store may
    /// never reach it.
    pub(crate) fn invalidate_tokens(&self) {
        (0..self.members.len()).for_each(|at| self.invalidate_token(at));
    }

    /// The latest raft term that is known, 0 before the first answer.
    pub(super) fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    /// Records the raft term of an answer.
    pub(super) fn answered_in(&self, term: u64) {
        self.term.fetch_max(term, Ordering::Relaxed);
    }

    /// Ends all streams: they may come from a store that does not exist any more.
    pub(crate) fn reopen_streams(&self) {
        self.moved.send_replace(self.current());
    }
}

/// A client for keys and values. A member sends answers of any size, and a page of long keys
/// exceeds the default limit of 4 MiB.
pub(crate) fn kv(etcd: &Client) -> KvClient {
    etcd.kv_client().max_decoding_message_size(LARGEST_ANSWER)
}

/// The size limit of reads, and of watch answers: many keys are deleted at one revision when a
/// lease with very many entries ends.
pub(crate) const LARGEST_ANSWER: usize = 256 * 1024 * 1024;

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.members.iter().map(|member| &member.endpoint).collect();
        f.debug_struct("Cluster")
            .field("endpoints", &endpoints)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}
