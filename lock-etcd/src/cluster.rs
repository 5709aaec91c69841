use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error as EtcdError, KvClient, Txn, TxnResponse};
use lock_core::{
    ErrorKind, LockError,
    backend::{Clock, Contact, Tasks},
};
use tokio::{
    sync::{OnceCell, watch},
    time::{Instant, timeout},
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
    /// Where its connection lives: not on a runtime that an application starts for a single call.
    home: Tasks,
}

impl Cluster {
    /// The members behind `endpoints`, connected on first use, starting with a random one so that clients spread.
    pub(crate) fn new(endpoints: Vec<String>, options: &ConnectOptions, times: Times, home: &Tasks) -> Self {
        let (client, client_of_fallback) = (OnceCell::new(), OnceCell::new());
        let member = |endpoint| Member {
            endpoint,
            options: options.clone(),
            client: client.clone(),
            client_of_fallback: client_of_fallback.clone(),
            home: home.clone(),
        };
        let first = (rand::random::<u64>() % endpoints.len().max(1) as u64) as usize;
        Self {
            members: endpoints.into_iter().map(member).collect(),
            current: AtomicUsize::new(first),
            moved: watch::Sender::new(first),
            times,
            contact: Contact::new(Clock::Suspend),
            history: History::default(),
        }
    }

    /// A client that the application connected; it balances over its endpoints itself.
    pub(crate) fn of_client(client: Client, times: Times, home: &Tasks) -> Self {
        // Where it was made is not known: nor is a way to make another.
        let client = OnceCell::new_with(Some(client));
        let (options, client_of_fallback) = (ConnectOptions::new(), client.clone());
        let member = Member { endpoint: "the given client".into(), options, client, client_of_fallback, home: home.clone() };
        let contact = Contact::new(Clock::Suspend);
        Self {
            members: vec![member],
            current: AtomicUsize::new(0),
            moved: watch::Sender::new(0),
            times,
            contact,
            history: History::default(),
        }
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

    /// How long one attempt of a request may take.
    pub(crate) fn attempt_limit(&self) -> Duration {
        self.times.attempt()
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
        let next = (failed + 1) % self.members.len();
        if next != failed && self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::debug!(from = %self.members[failed].endpoint, to = %self.members[next].endpoint, "moving on to another member");
            self.moved.send_replace(next);
        }
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
        self.call(|etcd| {
            let (mut kv, txn) = (kv(etcd), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
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
            let attempt = async { request(self.members[at].client().await?).await.map_err(Failure::from) };
            let limit = attempt_limit.min(give_up.saturating_duration_since(Instant::now()));
            self.contact.asked();
            let mut failure = match timeout(limit, attempt).await {
                Ok(Ok(answer)) => {
                    self.contact.answered();
                    answer.stamp().map_or(Ok(()), |stamp| self.history.confirm(known, stamp)).map_err(Failure::definite)?;
                    return Ok(Answered { answer, doubtful });
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    doubtful = true;
                    // What an earlier attempt met tells more, and the last one may have had no time at all.
                    reason.take().unwrap_or_else(Failure::timeout)
                }
            };
            match failure.transient {
                true => self.contact.failed(&failure.error),
                false => self.contact.answered(),
            }
            doubtful |= failure.error.is_indeterminate();
            if failure.transient && Instant::now() + pause < give_up {
                self.move_on(at);
                reason = Some(failure);
                failures += 1;
                // Every member has failed once: wait before the next round.
                if failures % self.members.len() == 0 {
                    tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
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

impl Member {
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
            error => Failure::from(error),
        })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.members.iter().map(|member| &member.endpoint).collect();
        f.debug_struct("Cluster").field("endpoints", &endpoints).field("current", &self.current).finish_non_exhaustive()
    }
}
