use etcd_client::{GetOptions, KeyValue, ResponseHeader};

use crate::{
    error::Failure,
    key::Prefix,
    transport::{Cluster, kv},
};

/// The entries of a lock at one revision: keys, without values.
#[derive(Debug)]
pub(crate) struct Listing {
    /// In the order of their keys.
    pub(crate) entries: Vec<KeyValue>,
    pub(crate) revision: i64,
}

/// The number of keys that one request reads. Keys of locks with longer names are among them, so
/// there may be any number.
const PAGE: i64 = 5000;
/// The number of attempts while the store is compacted during the listing.
const ATTEMPTS: usize = 3;

impl Listing {
    /// Reads page by page, all pages at the revision of the first, or at the given one.
    pub(crate) async fn read(
        cluster: &Cluster,
        prefix: &Prefix,
        at: Option<i64>,
    ) -> Result<Self, Failure> {
        let mut attempt = 1;
        loop {
            match Self::read_pages(cluster, prefix, at.unwrap_or_default()).await {
                Err(failure)
                    if is_revision_gone(&failure) && at.is_none() && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                listing => return listing,
            }
        }
    }

    async fn read_pages(cluster: &Cluster, prefix: &Prefix, at: i64) -> Result<Self, Failure> {
        let mut from = prefix.as_str().as_bytes().to_vec();
        let mut listing = Self {
            entries: Vec::new(),
            revision: at,
        };
        loop {
            let options = GetOptions::new()
                .with_range(prefix.end())
                .with_keys_only()
                .with_limit(PAGE)
                .with_revision(listing.revision);
            let page = cluster
                .call(|etcd| {
                    let mut kv = kv(etcd);
                    let from = from.clone();
                    let options = options.clone();
                    async move { kv.get(from, Some(options)).await }
                })
                .await?;
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, ResponseHeader::revision);
            }
            listing.entries.extend(
                page.kvs()
                    .iter()
                    .filter(|kv| prefix.has_entry(kv.key()))
                    .cloned(),
            );
            let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                return Ok(listing);
            };
            from = [last.key(), b"\0"].concat();
        }
    }

    /// The oldest entry, which is the holder's, or blocks the lock.
    pub(crate) fn first(&self) -> Option<&KeyValue> {
        self.entries
            .iter()
            .min_by_key(|entry| entry.create_revision())
    }
}

/// Tells whether the revision was compacted, or is ahead of a store that went back.
pub(crate) fn is_revision_gone(failure: &Failure) -> bool {
    failure.error.to_string().contains("has been compacted") || is_revision_ahead(failure)
}

/// Tells whether the store, or the member that was asked, has not come to the revision.
pub(crate) fn is_revision_ahead(failure: &Failure) -> bool {
    failure.error.to_string().contains("future revision")
}
