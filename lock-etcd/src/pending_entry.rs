use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, TxnOp, TxnOpResponse};
use lock_core::{ErrorKind, LockError, LockName, LossReason, Terms, backend::Finish};

use crate::{
    entry::StoreEntry,
    entry_value::EntryValue,
    error::Failure,
    key::Prefix,
    listing::Listing,
    queue::{LONG_QUEUE, QueuePosition, QueueRead, Snapshot},
    session::Session,
    transport::{
        KnownStore,
        batch::{self, Merging},
    },
};

/// An entry that is not a guard's yet: removed in the background when dropped.
#[derive(Debug)]
pub(crate) struct PendingEntry {
    pub(crate) entry: Arc<StoreEntry>,
    /// The place in the queue when the entry was made.
    pub(crate) position: QueuePosition,
    removed_on_drop: bool,
}

impl PendingEntry {
    /// Enqueues an entry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the session's lease is gone, otherwise those of the store.
    pub(crate) async fn enqueue(
        session: Arc<Session>,
        name: &LockName,
        prefix: Prefix,
        terms: &Terms,
        read: QueueRead,
    ) -> Result<Self, LockError> {
        let request = EntryRequest::new(session, name, prefix, terms);
        let entry = request
            .finish(move |request| async move { request.enqueue(read).await.map(Some) })
            .await?;
        entry.ok_or_else(|| {
            LockError::new(ErrorKind::Protocol, "an entry was neither made nor refused")
        })
    }

    /// Makes an entry only if there is none yet: it never joins a queue.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub(crate) async fn enqueue_if_free(
        session: Arc<Session>,
        name: &LockName,
        prefix: Prefix,
        terms: &Terms,
    ) -> Result<Option<Self>, LockError> {
        let request = EntryRequest::new(session, name, prefix, terms);
        request
            .finish(|request| async move { request.enqueue_if_free().await })
            .await
    }

    /// Hands the entry over to a guard.
    pub(crate) fn into_held(mut self) -> Arc<StoreEntry> {
        self.removed_on_drop = false;
        Arc::clone(&self.entry)
    }

    /// Drops an entry that is known to be gone.
    pub(crate) fn forget_evicted(mut self) {
        self.removed_on_drop = false;
        self.entry.free_key();
    }
}

impl Drop for PendingEntry {
    fn drop(&mut self) {
        if self.removed_on_drop {
            let entry = Arc::clone(&self.entry);
            self.entry.session.tasks().remove(entry);
        }
    }
}

/// The request that makes the entry of one acquisition.
struct EntryRequest {
    session: Arc<Session>,
    name: LockName,
    prefix: Prefix,
    number: u64,
    key: String,
    value: String,
    /// The store before the request, which has made no older entry.
    known: KnownStore,
    /// An attempt got no answer, and may yet take effect.
    indeterminate: AtomicBool,
}

/// The number of attempts of a try-acquire while locks with longer names come and go below its
/// prefix.
const NESTED_ATTEMPTS: usize = 8;

impl EntryRequest {
    fn new(session: Arc<Session>, name: &LockName, prefix: Prefix, terms: &Terms) -> Self {
        let number = session.numbers().allocate(name);
        let key = prefix.key(session.id(), number);
        let value = EntryValue::waiting(terms).encode();
        let known = session.cluster().history().known();
        Self {
            session,
            name: name.clone(),
            prefix,
            number,
            key,
            value,
            known,
            indeterminate: AtomicBool::new(false),
        }
    }

    /// Runs the request to its end even if the caller goes away. An entry that nobody receives then
    /// is dropped, and so removed.
    fn finish<R>(
        self,
        run: impl FnOnce(Arc<Self>) -> R + Send + 'static,
    ) -> Finish<Option<PendingEntry>>
    where
        R: Future<Output = Result<Option<PendingEntry>, Failure>> + Send + 'static,
    {
        let tasks = self.session.tasks().clone();
        let request = Arc::new(self);
        tasks.finish(async move {
            let outcome = run(Arc::clone(&request)).await;
            request.settle(&outcome);
            outcome.map_err(|failure| failure.error)
        })
    }

    /// Ensures that no attempt leaves an unknown entry behind, and frees the key.
    fn settle(&self, outcome: &Result<Option<PendingEntry>, Failure>) {
        let indeterminate = self.indeterminate.load(Ordering::Relaxed);
        match outcome {
            // The pending entry frees its key. Later entries must not share the lease with one
            // that may come late.
            Ok(Some(_)) if indeterminate => return self.session.retire(),
            Ok(Some(_)) => return,
            Err(failure) if failure.lease_gone => self.session.lease().lose(LossReason::Removed),
            Err(failure) if failure.error.is_indeterminate() => {
                return self.session.remove_orphan(&self.key);
            }
            Ok(None) | Err(_) if indeterminate => return self.session.remove_orphan(&self.key),
            Ok(None) | Err(_) => {}
        }
        self.session.numbers().free(&self.name, self.number);
    }

    async fn enqueue(&self, read: QueueRead) -> Result<PendingEntry, Failure> {
        // Repeated with the same key, it finds the entry of an attempt without an answer.
        let mut then = vec![self.put()];
        let mut otherwise = vec![self.own()];
        let read_queue = match &read {
            QueueRead::Nothing => None,
            QueueRead::Short => Some(TxnOp::get(self.prefix.as_str(), Some(short_queue()))),
            QueueRead::Predecessor(key) => Some(TxnOp::get(key.as_str(), Some(key_only()))),
        };
        then.extend(read_queue.clone());
        otherwise.extend(read_queue);
        let answer = self
            .txn(batch::Request {
                when: Compare::create_revision(self.key.as_str(), CompareOp::Equal, 0),
                then,
                otherwise,
                merging: Merging::OnePerPrefix(self.prefix.as_str().to_owned()),
                contended: self.session.numbers().are_contended(&self.name),
            })
            .await?;
        let responses = &answer.responses;
        let created = match created(responses.first()) {
            _ if answer.succeeded => answer.revision,
            Some(created) => self.own_from_lost_attempt(created)?,
            None => {
                return Err(Failure::protocol(
                    "the server neither made an entry nor has one",
                ));
            }
        };
        let position = match (read, responses.get(1)) {
            (QueueRead::Predecessor(predecessor), Some(TxnOpResponse::Get(found))) => {
                let older = |kv: &KeyValue| kv.create_revision() < created;
                match found.kvs().first().is_some_and(older) {
                    true => QueuePosition::Far { predecessor },
                    false => QueuePosition::Unknown,
                }
            }
            (_, Some(TxnOpResponse::Get(found))) => {
                let snapshot = Snapshot::of(&self.prefix, found.kvs(), answer.revision);
                QueuePosition::of(created, snapshot, !found.more())
            }
            _ => QueuePosition::Unknown,
        };
        Ok(self.pending(created, position))
    }

    fn put(&self) -> TxnOp {
        TxnOp::put(
            self.key.as_str(),
            self.value.as_str(),
            Some(PutOptions::new().with_lease(self.session.id())),
        )
    }

    fn own(&self) -> TxnOp {
        TxnOp::get(self.key.as_str(), Some(key_only()))
    }

    async fn txn(&self, request: batch::Request) -> Result<batch::Answer, Failure> {
        let answered = self.session.cluster().merged_txn(&request).await?;
        self.indeterminate
            .fetch_or(answered.indeterminate, Ordering::Relaxed);
        Ok(answered.answer)
    }

    /// Accepts an existing entry under this request's key if an attempt without an answer may have
    /// made it. Keys are used again only when their entries are gone: any other entry has come
    /// back.
    fn own_from_lost_attempt(&self, created: i64) -> Result<i64, Failure> {
        if self.indeterminate.load(Ordering::Relaxed) && !self.known.includes(created) {
            return Ok(created);
        }
        self.session
            .cluster()
            .history()
            .reappeared(self.known, &self.key)
            .map(|()| created)
            .map_err(Failure::definite)
    }

    async fn enqueue_if_free(&self) -> Result<Option<PendingEntry>, Failure> {
        let mut free =
            Compare::create_revision(self.prefix.as_str(), CompareOp::Equal, 0).with_prefix();
        for _ in 0..NESTED_ATTEMPTS {
            // A few keys show an entry, unless locks with longer names hide it.
            let otherwise = vec![
                self.own(),
                TxnOp::get(self.prefix.as_str(), Some(short_queue())),
            ];
            let request = batch::Request {
                when: free.clone(),
                then: vec![self.put()],
                otherwise,
                merging: Merging::None,
                contended: false,
            };
            let answer = self.txn(request).await?;
            if answer.succeeded {
                return Ok(Some(self.pending(answer.revision, QueuePosition::Unknown)));
            }
            if let Some(created) = created(answer.responses.first()) {
                let created = self.own_from_lost_attempt(created)?;
                return Ok(Some(self.pending(created, QueuePosition::Unknown)));
            }
            let Some(revision) = self.free_at(&answer).await? else {
                return Ok(None);
            };
            // There are only locks with longer names: free, unless an entry was created since.
            let unchanged = revision.saturating_add(1);
            free = Compare::create_revision(self.prefix.as_str(), CompareOp::Less, unchanged)
                .with_prefix();
        }
        Ok(None)
    }

    /// The revision at which there was no entry of the lock, although there were keys below its
    /// prefix.
    async fn free_at(&self, answer: &batch::Answer) -> Result<Option<i64>, Failure> {
        let Some(TxnOpResponse::Get(found)) = answer.responses.get(1) else {
            return Ok(None);
        };
        if found.kvs().iter().any(|kv| self.prefix.has_entry(kv.key())) {
            return Ok(None);
        }
        if !found.more() {
            return Ok(Some(answer.revision));
        }
        let listing = Listing::read(self.session.cluster(), &self.prefix, None).await?;
        Ok(Some(listing.revision).filter(|_| listing.entries.is_empty()))
    }

    fn pending(&self, created: i64, position: QueuePosition) -> PendingEntry {
        let entry = StoreEntry {
            session: Arc::clone(&self.session),
            name: self.name.clone(),
            prefix: self.prefix.clone(),
            key: self.key.clone(),
            number: self.number,
            created,
            indeterminate: self.indeterminate.load(Ordering::Relaxed),
            given_up: AtomicBool::new(false),
        };
        PendingEntry {
            entry: Arc::new(entry),
            position,
            removed_on_drop: true,
        }
    }
}

/// Reads all of a queue that is not long, or some of its keys.
fn short_queue() -> GetOptions {
    key_only().with_prefix().with_limit(LONG_QUEUE as i64 + 1)
}

fn key_only() -> GetOptions {
    GetOptions::new().with_keys_only()
}

fn created(response: Option<&TxnOpResponse>) -> Option<i64> {
    match response {
        Some(TxnOpResponse::Get(found)) => found.kvs().first().map(KeyValue::create_revision),
        _ => None,
    }
}
