use etcd_client::{GetOptions, KeyValue, ResponseHeader};

use crate::{
    cluster::{Cluster, kv},
    error::Failure,
    keys::Prefix,
};

/// The entries of a lock, as they were at one revision; keys, without values.
#[derive(Debug)]
pub(crate) struct Listing {
    /// In the order of their keys.
    pub(crate) entries: Vec<KeyValue>,
    pub(crate) revision: i64,
}

/// How many keys one request reads: those of locks with longer names are among them, and there may be any number.
const PAGE: i64 = 5000;
/// How often a listing begins anew because the store was compacted meanwhile.
const ATTEMPTS: usize = 3;

impl Listing {
    /// Reads page by page, all pages at the revision of the first, or at a given one.
    pub(crate) async fn read(cluster: &Cluster, prefix: &Prefix, at: Option<i64>) -> Result<Self, Failure> {
        let mut attempt = 1;
        loop {
            match Self::read_pages(cluster, prefix, at.unwrap_or_default()).await {
                Err(failure) if is_revision_gone(&failure) && at.is_none() && attempt < ATTEMPTS => attempt += 1,
                listing => return listing,
            }
        }
    }

    async fn read_pages(cluster: &Cluster, prefix: &Prefix, at: i64) -> Result<Self, Failure> {
        let (mut from, mut listing) = (prefix.as_str().as_bytes().to_vec(), Self { entries: Vec::new(), revision: at });
        loop {
            let options = GetOptions::new().with_range(prefix.end()).with_keys_only().with_limit(PAGE).with_revision(listing.revision);
            let page = cluster
                .call(|etcd| {
                    let (mut kv, from, options) = (kv(etcd), from.clone(), options.clone());
                    async move { kv.get(from, Some(options)).await }
                })
                .await?;
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, ResponseHeader::revision);
            }
            listing.entries.extend(page.kvs().iter().filter(|kv| prefix.has_entry(kv.key())).cloned());
            let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(listing) };
            from = [last.key(), b"\0"].concat();
        }
    }

    /// The oldest entry: the holder's, or what blocks the lock.
    pub(crate) fn first(&self) -> Option<&KeyValue> {
        self.entries.iter().min_by_key(|entry| entry.create_revision())
    }
}

/// The revision of the first page was compacted, or the store went back behind it.
pub(crate) fn is_revision_gone(failure: &Failure) -> bool {
    let text = failure.error.to_string();
    text.contains("has been compacted") || text.contains("future revision")
}
