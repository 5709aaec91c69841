//! Small records that a layer keeps beside the locks.

use std::sync::Arc;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};
use lock_core::{
    AcquireOptions, LockError,
    backend::{Lease, Signal},
};
use tokio::sync::Notify;

use crate::{
    BACKEND, EtcdLock, capabilities,
    core::Core,
    error::Failure,
    listing::{is_revision_ahead, is_revision_gone},
    session::Session,
    transport::{Watch, WatchEvent, WatchSink, WatchTarget, kv},
};

/// Records in the store and the namespace of an [`EtcdLock`], over its connections: for layers that
/// keep something beside the locks.
///
/// A record's name is a key below the namespace. It must not be one of a lock's entries, which are
/// `<name>/<hexadecimal digits>`.
#[derive(Clone, Debug)]
pub struct EtcdRecords(Arc<Core>);

/// One record, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdRecord {
    /// The name, without the namespace.
    pub name: String,
    /// What was written.
    pub value: Vec<u8>,
    /// The store's revision when it was written last.
    pub revision: i64,
}

/// A change of one record in [`EtcdRecords::write_all`].
#[derive(Clone, Debug)]
pub struct EtcdRecordWrite<'a> {
    /// The record.
    pub name: &'a str,
    /// The revision at which it was written last, 0 for one that is not there; `None` for any.
    pub if_revision: Option<i64>,
    /// The change.
    pub action: EtcdRecordAction<'a>,
}

/// The effect of an [`EtcdRecordWrite`].
#[derive(Clone, Debug)]
pub enum EtcdRecordAction<'a> {
    /// Changes nothing: the record only has to have its revision.
    Check,
    /// Writes this value.
    Put(&'a [u8]),
    /// Writes this value, and has the record removed when the lease ends.
    PutUnder(&'a EtcdRecordLease, &'a [u8]),
    /// Removes the record.
    Delete,
}

/// A lease for records, renewed every third of the client's default TTL until it is dropped; then
/// it is revoked in the background, and its records go with it.
#[derive(Clone, Debug)]
pub struct EtcdRecordLease(Arc<Session>);

impl EtcdRecordLease {
    /// Its validity: until one TTL after the last acknowledged renewal was sent, less the margin
    /// for drifting clocks.
    #[must_use]
    pub fn lease(&self) -> &Arc<Lease> {
        self.0.lease()
    }
}

/// Reports that a record was written or removed, from when it was made.
#[derive(Debug)]
pub struct EtcdRecordWatch {
    change: Arc<Change>,
    closing: Signal,
    _watch: Watch,
}

impl EtcdRecordWatch {
    /// Waits until the record may have changed since the last call: also when the watch has been
    /// opened, for the first time or again, or could not be; so read the record then.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn changed(&self) {
        tokio::select! {
            () = self.change.0.notified() => {}
            () = self.closing.fired() => {}
        }
    }
}

#[derive(Debug, Default)]
struct Change(Notify);

impl WatchSink for Change {
    fn opened(&self, _: i64) {
        self.0.notify_one();
    }

    fn events(&self, _: i64, _: Vec<WatchEvent>) {
        self.0.notify_one();
    }

    fn interrupted(&self) {}

    fn refused(&self, _: LockError) {
        // The read that follows is refused, too, and says why.
        self.0.notify_one();
    }
}

impl EtcdLock {
    /// The records of this client's store and namespace.
    #[must_use]
    pub fn records(&self) -> EtcdRecords {
        EtcdRecords(Arc::clone(&self.0))
    }
}

impl EtcdRecords {
    /// Reads a record; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read(&self, name: &str) -> Result<Option<EtcdRecord>, LockError> {
        self.get(name, 0, false).await.map_err(failed)
    }

    /// Reads a record as it was at a revision; the outer `None` if that has been compacted.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read_at(
        &self,
        name: &str,
        revision: i64,
    ) -> Result<Option<Option<EtcdRecord>>, LockError> {
        // The past is the same on every member that has come that far, so the one that is asked need
        // not ask the others first.
        let answer = match self.get(name, revision, true).await {
            Err(failure) if is_revision_ahead(&failure) => self.get(name, revision, false).await,
            answer => answer,
        };
        match answer {
            Ok(record) => Ok(Some(record)),
            Err(failure) if is_revision_gone(&failure) => Ok(None),
            Err(failure) => Err(failed(failure)),
        }
    }

    async fn get(
        &self,
        name: &str,
        revision: i64,
        of_one_member: bool,
    ) -> Result<Option<EtcdRecord>, Failure> {
        let key = self.key(name);
        let mut options = GetOptions::new().with_revision(revision);
        if of_one_member {
            options = options.with_serializable();
        }
        let answer = self.0.cluster.call(|etcd| {
            let mut kv = kv(etcd);
            let key = key.clone();
            let options = options.clone();
            async move { kv.get(key, Some(options)).await }
        });
        Ok(answer.await?.kvs().first().map(|kv| self.record(kv)))
    }

    /// Reads all records whose names begin with `prefix`, in the order of their names, all as they
    /// were at one instant.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn list(&self, prefix: &str) -> Result<Vec<EtcdRecord>, LockError> {
        let start = self.key(prefix);
        let mut records = Vec::new();
        let mut from = start.clone().into_bytes();
        let mut revision = 0;
        loop {
            let options = GetOptions::new()
                .with_range([start.as_bytes(), &[u8::MAX]].concat())
                .with_limit(PAGE)
                .with_revision(revision);
            let answer = self.0.cluster.call(|etcd| {
                let mut kv = kv(etcd);
                let from = from.clone();
                let options = options.clone();
                async move { kv.get(from, Some(options)).await }
            });
            let page = answer.await.map_err(failed)?;
            if revision == 0 {
                revision = page.header().map_or(0, ResponseHeader::revision);
            }
            records.extend(page.kvs().iter().map(|kv| self.record(kv)));
            let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                return Ok(records);
            };
            from = [last.key(), b"\0"].concat();
        }
    }

    /// Writes a record if it was last written at this revision, 0 for one that is not there, and
    /// says whether it is there now, with this value.
    ///
    /// # Errors
    ///
    /// Those of the store; it may have been written if the error is indeterminate.
    pub async fn write(
        &self,
        name: &str,
        value: &[u8],
        if_revision: i64,
    ) -> Result<bool, LockError> {
        let write = EtcdRecordWrite {
            name,
            if_revision: Some(if_revision),
            action: EtcdRecordAction::Put(value),
        };
        self.write_all(&[write])
            .await
            .map(|written| written.is_some())
    }

    /// Makes all of these changes if every record has the revision that it is to have, and returns
    /// the store's revision of the change; none of them otherwise, and returns `None`.
    ///
    /// If an answer is lost, the first record tells if the changes were made: its value must be one
    /// that nobody else writes.
    ///
    /// # Errors
    ///
    /// Those of the store; [`Lost`](lock_core::ErrorKind::Lost) if a lease is gone. The changes may
    /// have been made if the error is indeterminate.
    pub async fn write_all(
        &self,
        writes: &[EtcdRecordWrite<'_>],
    ) -> Result<Option<i64>, LockError> {
        let Some(first) = writes.first() else {
            return Ok(None);
        };
        let compares: Vec<_> = writes
            .iter()
            .filter_map(|write| self.compare(write))
            .collect();
        let changes: Vec<_> = writes
            .iter()
            .filter_map(|write| self.change(write))
            .collect();
        let look = TxnOp::get(self.key(first.name), None);
        let txn = Txn::new().when(compares).and_then(changes).or_else([look]);
        let answer = self.0.cluster.txn(&txn).await.map_err(failed)?;
        if answer.succeeded() {
            return Ok(Some(answer.header().map_or(0, ResponseHeader::revision)));
        }
        // An attempt whose answer was lost may have written it.
        let (EtcdRecordAction::Put(value) | EtcdRecordAction::PutUnder(_, value)) = first.action
        else {
            return Ok(None);
        };
        let ours = |response| match response {
            TxnOpResponse::Get(got) => got.kvs().first().cloned(),
            _ => None,
        };
        let found = answer.op_responses().into_iter().find_map(ours);
        Ok(found
            .filter(|kv| kv.value() == value)
            .map(|kv| kv.mod_revision()))
    }

    fn compare(&self, write: &EtcdRecordWrite<'_>) -> Option<Compare> {
        let revision = write.if_revision?;
        Some(Compare::mod_revision(
            self.key(write.name),
            CompareOp::Equal,
            revision,
        ))
    }

    fn change(&self, write: &EtcdRecordWrite<'_>) -> Option<TxnOp> {
        let key = self.key(write.name);
        match write.action {
            EtcdRecordAction::Check => None,
            EtcdRecordAction::Put(value) => Some(TxnOp::put(key, value, None)),
            EtcdRecordAction::PutUnder(lease, value) => {
                let options = PutOptions::new().with_lease(lease.0.id());
                Some(TxnOp::put(key, value, Some(options)))
            }
            EtcdRecordAction::Delete => Some(TxnOp::delete(key, None)),
        }
    }

    /// Grants a lease of its own, with the client's default TTL.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn lease(&self) -> Result<EtcdRecordLease, LockError> {
        let own = AcquireOptions::new().without_renewal();
        let terms = own.resolve(&capabilities(), self.0.default_ttl)?;
        self.0.sessions.session(&terms).await.map(EtcdRecordLease)
    }

    /// Watches a record, and those whose names begin with its name.
    #[must_use]
    pub fn watch(&self, name: &str) -> EtcdRecordWatch {
        let change = Arc::<Change>::default();
        let watched = WatchTarget::Prefix {
            prefix: self.key(name),
            creations: true,
        };
        let watches = self.0.watchers.watches();
        EtcdRecordWatch {
            _watch: watches.open(watched, Arc::clone(&change) as _),
            change,
            closing: self.0.guards.closing().clone(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0.namespace)
    }

    fn record(&self, kv: &KeyValue) -> EtcdRecord {
        let key = String::from_utf8_lossy(kv.key());
        let name = key.strip_prefix(&self.0.namespace).unwrap_or(&key);
        EtcdRecord {
            name: name.to_owned(),
            value: kv.value().to_vec(),
            revision: kv.mod_revision(),
        }
    }
}

/// The number of records that one request reads.
const PAGE: i64 = 1000;

fn failed(failure: Failure) -> LockError {
    failure.error.on(BACKEND)
}
