use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use etcd_client::{Compare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, ResponseHeader, TxnOp, TxnOpResponse};
use lock_core::{ErrorKind, LockError, LockName, LossReason, Terms, backend::Finish};

use crate::{
    batch::{self, Company},
    cluster::{Answered, kv},
    core::Core,
    error::Failure,
    ghosts::exorcise,
    history::Known,
    keys::Prefix,
    listing::Listing,
    note::Note,
    own_entry::OwnEntry,
    queue::Snapshot,
    session::Session,
};

/// An entry that this client has made: removed in the background unless it becomes a guard's.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) entry: Arc<OwnEntry>,
    /// What was seen of the queue when the entry was made.
    pub(crate) glance: Glance,
    armed: bool,
}

/// What a look at some of a queue's entries tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// The queue was not looked at.
    None,
    /// The entry was the only one at this revision, and so owned the lock.
    Owner { revision: i64 },
    /// Few others are there: these.
    Near(Snapshot),
    /// Many are there. `older` is one of the older ones, not far ahead: when it goes, the entry's turn is near.
    Deep { older: String },
}

/// How an entry looks at its queue when it is made. The cost does not grow with the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not at all.
    Away,
    /// At some of the entries, whichever.
    Some,
    /// At this one, which should be not far ahead.
    At(String),
}

/// How many entries a look at some reads: the store returns them in the order of their keys.
const SOME: usize = 16;
/// How far ahead the entry should be whose end wakes a waiter: opening a watch and reading the queue takes about as long
/// as a few others hold the lock.
const AHEAD: usize = 8;

/// What is to be written for one acquisition.
struct Request {
    core: Arc<Core>,
    session: Arc<Session>,
    name: LockName,
    prefix: Prefix,
    number: u64,
    key: String,
    value: String,
    /// What was known of the store before: what is older is not of this request's making.
    known: Known,
    /// An attempt got no answer, and may yet take effect.
    doubtful: AtomicBool,
}

/// Enqueues an entry.
pub(crate) async fn enqueue(
    core: &Arc<Core>,
    session: Arc<Session>,
    name: &LockName,
    terms: &Terms,
    look: Look,
) -> Result<Claim, LockError> {
    let request = Request::new(core, session, name, terms);
    let claim = request.finish(move |request| async move { request.enqueue(look).await.map(Some) }).await?;
    claim.ok_or_else(|| LockError::new(ErrorKind::Protocol, "an entry was neither made nor refused"))
}

/// Makes an entry only if there is none yet: no place in a queue is ever taken.
pub(crate) async fn enqueue_if_free(
    core: &Arc<Core>,
    session: Arc<Session>,
    name: &LockName,
    terms: &Terms,
) -> Result<Option<Claim>, LockError> {
    let request = Request::new(core, session, name, terms);
    request.finish(|request| async move { request.enqueue_if_free().await }).await
}

impl Request {
    fn new(core: &Arc<Core>, session: Arc<Session>, name: &LockName, terms: &Terms) -> Self {
        let prefix = core.prefix(name);
        let number = session.places().take(name);
        let key = prefix.key(session.id(), number);
        let (value, known) = (Note::waiting(terms).encode(), core.cluster.history().known());
        Self { core: Arc::clone(core), session, name: name.clone(), prefix, number, key, value, known, doubtful: AtomicBool::new(false) }
    }

    /// Runs the request to its end even if the caller goes away. A claim that nobody receives then is dropped, and
    /// removes its entry.
    fn finish<R>(self, run: impl FnOnce(Arc<Self>) -> R + Send + 'static) -> Finish<Option<Claim>>
    where
        R: Future<Output = Result<Option<Claim>, Failure>> + Send + 'static,
    {
        let tasks = self.core.holds.tasks().clone();
        let request = Arc::new(self);
        tasks.finish(async move {
            let outcome = run(Arc::clone(&request)).await;
            request.settle(&outcome);
            outcome.map_err(|failure| failure.error)
        })
    }

    /// Sees to it that no attempt leaves an entry behind that nobody knows of, and that the key may be used again.
    fn settle(&self, outcome: &Result<Option<Claim>, Failure>) {
        let doubtful = self.doubtful.load(Ordering::Relaxed);
        match outcome {
            // The claim sees to its key. Entries to come are not to share the lease with one that may come late.
            Ok(Some(_)) if doubtful => return self.core.sessions.retire(&self.session),
            Ok(Some(_)) => return,
            Err(failure) if failure.lease_gone => self.session.lease().lose(LossReason::Removed),
            Err(failure) if failure.error.is_indeterminate() => return exorcise(&self.core, &self.session, &self.key),
            Ok(None) | Err(_) if doubtful => return exorcise(&self.core, &self.session, &self.key),
            Ok(None) | Err(_) => {}
        }
        self.session.places().give_back(&self.name, self.number);
    }

    fn put(&self) -> TxnOp {
        TxnOp::put(self.key.as_str(), self.value.as_str(), Some(PutOptions::new().with_lease(self.session.id())))
    }

    fn absent(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, 0)
    }

    fn glance(&self, look: &Look) -> Option<TxnOp> {
        match look {
            Look::Away => None,
            Look::Some => Some(TxnOp::get(self.prefix.as_str(), Some(some()))),
            Look::At(older) => Some(TxnOp::get(older.as_str(), Some(GetOptions::new().with_keys_only()))),
        }
    }

    fn own(&self) -> TxnOp {
        TxnOp::get(self.key.as_str(), Some(GetOptions::new().with_keys_only()))
    }

    async fn enqueue(&self, look: Look) -> Result<Claim, Failure> {
        // Repeated with the same key, it finds the entry that an attempt made whose answer was lost.
        let (mut then, mut otherwise) = (vec![self.put()], vec![self.own()]);
        then.extend(self.glance(&look));
        otherwise.extend(self.glance(&look));
        let company = Company::OnePerPrefix(self.prefix.as_str().to_owned());
        let expects_others = self.session.places().are_shared(&self.name);
        let answer = self.txn(batch::Request { when: self.absent(), then, otherwise, company, expects_others }).await?;
        let responses = &answer.responses;
        let created = match created(responses.first()) {
            _ if answer.succeeded => answer.revision,
            Some(created) => self.own_from_a_lost_attempt(created)?,
            None => return Err(Failure::protocol("the server neither made an entry nor has one")),
        };
        let glance = match (look, responses.get(1)) {
            (Look::At(older), Some(TxnOpResponse::Get(found))) => {
                if found.kvs().first().is_some_and(|kv| kv.create_revision() < created) {
                    Glance::Deep { older }
                } else {
                    self.look_again(created).await
                }
            }
            (_, Some(TxnOpResponse::Get(found))) => self.judge(found, created, answer.revision),
            _ => Glance::None,
        };
        Ok(self.claim(created, glance))
    }

    async fn txn(&self, request: batch::Request) -> Result<batch::Answer, Failure> {
        let Answered { answer, doubtful } = self.core.txn(&request).await?;
        self.doubtful.fetch_or(doubtful, Ordering::Relaxed);
        Ok(answer)
    }

    /// An entry under this request's key is its own only if an attempt of its own may have made it. Keys are used again only when
    /// their entries are gone: another one has come back.
    fn own_from_a_lost_attempt(&self, created: i64) -> Result<i64, Failure> {
        if self.doubtful.load(Ordering::Relaxed) && !self.known.includes(created) {
            return Ok(created);
        }
        self.core.cluster.history().came_back(self.known, &self.key).map(|()| created).map_err(Failure::definite)
    }

    /// The entry that was expected ahead is not.
    async fn look_again(&self, created: i64) -> Glance {
        self.core.views.forget_neighbour(&self.name);
        let prefix = self.prefix.as_str();
        let answer = self.core.cluster.call(|etcd| {
            let mut kv = kv(etcd);
            async move { kv.get(prefix, Some(some())).await }
        });
        match answer.await {
            Ok(found) => self.judge(&found, created, found.header().map_or(0, ResponseHeader::revision)),
            Err(_) => Glance::None,
        }
    }

    fn judge(&self, found: &GetResponse, created: i64, revision: i64) -> Glance {
        let unseen = usize::try_from(found.count()).unwrap_or(usize::MAX).saturating_sub(found.kvs().len());
        judge(self.prefix.snapshot(found.kvs(), revision), unseen, created)
    }

    async fn enqueue_if_free(&self) -> Result<Option<Claim>, Failure> {
        let mut free = Compare::create_revision(self.prefix.as_str(), CompareOp::Equal, 0).with_prefix();
        for _ in 0..NESTED_ATTEMPTS {
            // One entry is enough to know that the lock is taken: a few keys show one, unless longer names hide it.
            let otherwise = [self.own(), TxnOp::get(self.prefix.as_str(), Some(some()))];
            let (then, otherwise) = (vec![self.put()], otherwise.to_vec());
            let request = batch::Request { when: free.clone(), then, otherwise, company: Company::None, expects_others: false };
            let answer = self.txn(request).await?;
            if answer.succeeded {
                return Ok(Some(self.claim(answer.revision, Glance::None)));
            }
            let responses = &answer.responses;
            if let Some(created) = created(responses.first()) {
                return Ok(Some(self.claim(self.own_from_a_lost_attempt(created)?, Glance::None)));
            }
            let Some(TxnOpResponse::Get(found)) = responses.get(1) else { return Ok(None) };
            if found.kvs().iter().any(|kv| self.prefix.has_entry(kv.key())) {
                return Ok(None);
            }
            let mut revision = answer.revision;
            if found.more() {
                let listing = Listing::read(&self.core.cluster, &self.prefix, None).await?;
                if !listing.entries.is_empty() {
                    return Ok(None);
                }
                revision = listing.revision;
            }
            // Only locks with longer names are below the prefix: free, unless something was created there since.
            let unchanged = revision.saturating_add(1);
            free = Compare::create_revision(self.prefix.as_str(), CompareOp::Less, unchanged).with_prefix();
        }
        Ok(None)
    }

    fn claim(&self, created: i64, glance: Glance) -> Claim {
        let entry = OwnEntry {
            core: Arc::clone(&self.core),
            session: Arc::clone(&self.session),
            name: self.name.clone(),
            prefix: self.prefix.clone(),
            key: self.key.clone(),
            number: self.number,
            created,
            doubtful: self.doubtful.load(Ordering::Relaxed),
            given_up: AtomicBool::new(false),
        };
        Claim { entry: Arc::new(entry), glance, armed: true }
    }
}

/// How often a try-acquire looks again because locks with longer names come and go below its prefix.
const NESTED_ATTEMPTS: usize = 8;

/// What entries of a queue tell the one that was created at a revision, with so many others there unseen.
fn judge(snapshot: Snapshot, unseen: usize, created: i64) -> Glance {
    let mut older: Vec<_> = snapshot.entries.iter().filter(|(_, other)| *other < created).collect();
    if unseen == 0 {
        // A later read may show that the entry has been evicted. Whoever is next owns the lock then.
        if snapshot.entries.iter().all(|(_, other)| *other != created) {
            return Glance::None;
        }
        return if older.is_empty() { Glance::Owner { revision: snapshot.revision } } else { Glance::Near(snapshot) };
    }
    // Of the n entries some 16 were seen, whichever: the youngest is about n / 16 ahead, the next one twice as far.
    older.sort_by_key(|(_, other)| std::cmp::Reverse(*other));
    let spacing = (unseen + SOME) / SOME;
    match older.get(AHEAD / spacing).or(older.last()) {
        Some((older, _)) => Glance::Deep { older: older.clone() },
        // Locks with longer names hide it.
        None => Glance::None,
    }
}

fn some() -> GetOptions {
    GetOptions::new().with_prefix().with_keys_only().with_limit(SOME as i64)
}

fn created(response: Option<&TxnOpResponse>) -> Option<i64> {
    match response {
        Some(TxnOpResponse::Get(found)) => found.kvs().first().map(KeyValue::create_revision),
        _ => None,
    }
}

impl Claim {
    /// The entry is a guard's from now on.
    pub(crate) fn keep(mut self) -> Arc<OwnEntry> {
        self.armed = false;
        Arc::clone(&self.entry)
    }

    /// The entry is known to be gone.
    pub(crate) fn gone(mut self) {
        self.armed = false;
        self.entry.give_up_key();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.armed {
            self.entry.core.holds.tasks().remove(Arc::clone(&self.entry) as _);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[i64], unseen: usize, created: i64) -> Glance {
        let entries = entries.iter().map(|created| (format!("k{created}"), *created)).collect();
        judge(Snapshot { entries, revision: 99 }, unseen, created)
    }

    #[test]
    fn an_entry_owns_the_lock_only_if_it_is_there_and_no_older_one_is() {
        assert_eq!(of(&[7, 8], 0, 7), Glance::Owner { revision: 99 });
        assert_eq!(of(&[8, 9], 0, 7), Glance::None, "evicted: the next one owns it");
        assert_eq!(of(&[], 0, 7), Glance::None);
        assert!(matches!(of(&[6, 7], 0, 7), Glance::Near(_)));
        assert_eq!(of(&[8, 7], 1, 7), Glance::None, "the one that was not seen may be older");
    }

    #[test]
    fn in_a_long_queue_an_entry_not_far_ahead_is_chosen() {
        let sixteen: Vec<i64> = (1..=16).map(|n| n * 10).collect();
        assert_eq!(of(&sixteen, 4, 200), Glance::Deep { older: "k80".into() }, "every one was seen, nearly");
        assert_eq!(of(&sixteen, 16 * 9, 200), Glance::Deep { older: "k160".into() }, "one in ten was seen");
    }
}
