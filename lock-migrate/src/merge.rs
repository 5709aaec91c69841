//! Who holds a lock, from what both stores say.

use lock_core::{LockInfo, OwnerId};

use crate::link;

/// What the target says, as a caller of the migration is to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfTarget {
    pub(crate) info: LockInfo,
    /// The entry of the source that belongs to the holder's.
    pub(crate) source: Option<OwnerId>,
}

impl OfTarget {
    /// Takes the link out of the metadata. The token is still the target's, or none where the
    /// holder's may be the source's.
    pub(crate) fn new(mut info: LockInfo) -> Self {
        let mut source = None;
        for holder in &mut info.holders {
            let (link, metadata) = link::decode(holder.metadata.take());
            holder.metadata = metadata;
            if link.is_some() {
                holder.token = None;
                source = link;
            }
        }
        Self { info, source }
    }
}

/// The holder of a lock that is taken in the source, in the target or in both.
pub(crate) fn merge(source: Option<LockInfo>, target: Option<OfTarget>) -> Option<LockInfo> {
    let (mut source, target) = match (source, target) {
        (Some(source), Some(target)) => (source, target),
        (Some(source), None) => return Some(source),
        // One whose lock in the source is gone has lost it thereby.
        (None, target) => {
            let alone = target.filter(|target| target.source.is_none())?;
            return Some(alone.info);
        }
    };
    if target.source.is_some() {
        // The same holder, or one that has lost it.
        source.waiters = sum(source.waiters, target.info.waiters, 0);
        return Some(source);
    }
    // Whoever has the source waits for the target.
    let mut info = target.info;
    info.waiters = sum(source.waiters, info.waiters, 1);
    Some(info)
}

fn sum(one: Option<u64>, other: Option<u64>, more: u64) -> Option<u64> {
    Some(one? + other? + more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lock_core::{FencingToken, LockHolder};

    fn info(owner: &str, token: u64, metadata: Option<String>, waiters: u64) -> LockInfo {
        let mut holder = LockHolder::new(OwnerId::new(owner));
        holder.token = Some(FencingToken::new(token));
        holder.metadata = metadata;
        let mut info = LockInfo::new("a".parse().unwrap(), holder);
        info.waiters = Some(waiters);
        info
    }

    fn linked(owner: &str, source: &str) -> OfTarget {
        let link = link::encode(&OwnerId::new(source), Some("note"));
        OfTarget::new(info(owner, 7, Some(link), 1))
    }

    #[test]
    fn one_holder_of_both_is_the_sources() {
        let merged = merge(
            Some(info("s", 9, Some("note".into()), 2)),
            Some(linked("t", "s")),
        )
        .unwrap();
        assert_eq!(merged, info("s", 9, Some("note".into()), 3));
    }

    #[test]
    fn a_holder_of_the_target_alone_lets_that_of_the_source_wait() {
        let merged = merge(
            Some(info("s", 9, None, 2)),
            Some(OfTarget::new(info("t", 12, None, 0))),
        )
        .unwrap();
        assert_eq!(merged, info("t", 12, None, 3));
    }

    #[test]
    fn one_store_alone_tells_what_it_has() {
        assert_eq!(merge(None, None), None);
        assert_eq!(
            merge(Some(info("s", 9, None, 0)), None),
            Some(info("s", 9, None, 0))
        );
        let alone = OfTarget::new(info("t", 12, None, 0));
        assert_eq!(merge(None, Some(alone)), Some(info("t", 12, None, 0)));
        let lost = linked("t", "s");
        assert_eq!(
            (
                lost.info.holder().token,
                lost.info.holder().metadata.as_deref()
            ),
            (None, Some("note")),
            "its token may be the source's"
        );
        assert_eq!(merge(None, Some(lost)), None);
    }
}
