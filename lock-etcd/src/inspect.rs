use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, TxnOp};
use lock_core::{ErrorKind, FencingToken, LockError, LockHolder, LockInfo, LockName, OwnerId};

use crate::{
    core::Core,
    entry_value::EntryValue,
    key::Prefix,
    listing::{Listing, is_revision_gone},
    transport::{
        batch::{self, Merging},
        kv,
    },
};

/// Reads who holds a lock and how many wait for it.
pub(crate) async fn inspect(core: &Core, name: &LockName) -> Result<Option<LockInfo>, LockError> {
    let prefix = core.prefix(name);
    let listing = list(core, &prefix).await?;
    let Some(holder) = listing.first() else {
        return Ok(None);
    };
    let entries = listing
        .entries
        .iter()
        .filter(|entry| prefix.describe_foreign(entry).is_none())
        .count() as u64;
    let mut described;
    let waiters;
    match prefix.describe_foreign(holder) {
        Some(foreign) => {
            described = LockHolder::new(OwnerId::new(foreign));
            waiters = entries;
        }
        None => {
            described = describe(core, &prefix, holder, listing.revision).await?;
            waiters = entries - 1;
        }
    }
    described.expires_in = expiry(core, holder.lease()).await?;
    let mut info = LockInfo::new(name.clone(), described);
    info.waiters = Some(waiters);
    Ok(Some(info))
}

/// Removes the holder's entry, if it is `only`'s, and returns its description.
pub(crate) async fn force_release(
    core: &Core,
    name: &LockName,
    only: Option<&OwnerId>,
) -> Result<Option<LockHolder>, LockError> {
    let prefix = core.prefix(name);
    let listing = list(core, &prefix).await?;
    let Some(holder) = listing.first() else {
        return Ok(None);
    };
    if let Some(foreign) = prefix.describe_foreign(holder) {
        let message = format!(
            "the lock is blocked by {foreign}; nothing was removed: remove it if nobody needs it"
        );
        return Err(LockError::new(ErrorKind::Protocol, message));
    }
    let described = describe(core, &prefix, holder, listing.revision).await?;
    if only.is_some_and(|only| *only != described.owner) {
        return Ok(None);
    }
    let request = batch::Request {
        when: Compare::create_revision(holder.key(), CompareOp::Equal, holder.create_revision()),
        then: vec![TxnOp::delete(holder.key(), None)],
        otherwise: Vec::new(),
        merging: Merging::None,
        contended: false,
    };
    let answered = core
        .cluster
        .merged_txn(&request)
        .await
        .map_err(|failure| failure.error)?;
    // Otherwise it was released in between.
    let removed = answered.answer.succeeded || answered.indeterminate;
    Ok(removed.then_some(described))
}

async fn list(core: &Core, prefix: &Prefix) -> Result<Listing, LockError> {
    Listing::read(&core.cluster, prefix, None)
        .await
        .map_err(|failure| failure.error)
}

async fn describe(
    core: &Core,
    prefix: &Prefix,
    holder: &KeyValue,
    revision: i64,
) -> Result<LockHolder, LockError> {
    let value = value_at(core, holder, revision).await?;
    let key = String::from_utf8_lossy(holder.key());
    let mut described = LockHolder::new(prefix.owner(&key, holder.create_revision()));
    described.token = match value.token() {
        Some(token) => Some(token),
        None => token_if_alone(core, prefix, holder).await,
    };
    described.since = value.since();
    described.metadata = value.into_metadata();
    Ok(described)
}

/// The value of an entry at a revision; empty if that has been compacted.
async fn value_at(core: &Core, entry: &KeyValue, revision: i64) -> Result<EntryValue, LockError> {
    let answer = core.cluster.call(|etcd| {
        let mut kv = kv(etcd);
        let key = entry.key().to_vec();
        let options = GetOptions::new().with_revision(revision);
        async move { kv.get(key, Some(options)).await }
    });
    match answer.await {
        Ok(found) => Ok(found
            .kvs()
            .first()
            .map(|kv| EntryValue::decode(kv.value()))
            .unwrap_or_default()),
        Err(failure) if is_revision_gone(&failure) => Ok(EntryValue::default()),
        Err(failure) => Err(failure.error),
    }
}

/// The token of a holder that wrote none: its create revision, if it was alone when it was created.
/// Otherwise it waited, and only itself knows since when it owns the lock.
async fn token_if_alone(core: &Core, prefix: &Prefix, holder: &KeyValue) -> Option<FencingToken> {
    let created = holder.create_revision();
    // The revision may have been compacted.
    let listing = Listing::read(&core.cluster, prefix, Some(created))
        .await
        .ok()?;
    (listing.entries.len() == 1).then(|| FencingToken::new(created.unsigned_abs()))
}

async fn expiry(core: &Core, lease: i64) -> Result<Option<Duration>, LockError> {
    if lease == 0 {
        return Ok(None);
    }
    let answer = core.cluster.call(|etcd| {
        let mut leases = etcd.lease_client();
        async move { leases.time_to_live(lease, None).await }
    });
    let left = answer.await.map_err(|failure| failure.error)?.ttl();
    Ok(u64::try_from(left).ok().map(Duration::from_secs))
}
