//! Marks in the metadata of entries. The target's carries the owner id of the source's that it
//! belongs to; the source's carries the id of the member that made it.

use lock_core::{AcquireOptions, LockHolder, LockInfo, OwnerId};

/// Not in any metadata that people write.
const MARK: char = '\u{1f}';

/// The metadata of the target's entry. What is too long with the owner id is left out: the source
/// has it.
pub(crate) fn encode(owner: &OwnerId, metadata: Option<&str>) -> String {
    let linked = format!("{MARK}{}{MARK}", owner.as_str());
    let whole = format!("{linked}{}", metadata.unwrap_or_default());
    if whole.len() > AcquireOptions::MAX_METADATA {
        linked
    } else {
        whole
    }
}

/// The metadata of a member's entry in the source; `None` if there is no room for the mark.
pub(crate) fn encode_member(member: &OwnerId, metadata: Option<&str>) -> Option<String> {
    let marked = || {
        format!(
            "{MARK}{}{MARK}{}",
            member.as_str(),
            metadata.unwrap_or_default()
        )
    };
    has_room(metadata).then(marked)
}

/// Tells if a member's mark fits beside this metadata.
pub(crate) fn has_room(metadata: Option<&str>) -> bool {
    metadata.map_or(0, str::len) + MARK_LENGTH <= AcquireOptions::MAX_METADATA
}

/// A random id, between two separators.
const MARK_LENGTH: usize = 32 + 2;

/// Takes the marks of members out of what the source says.
pub(crate) fn without_mark(mut info: LockInfo) -> LockInfo {
    for holder in &mut info.holders {
        strip_mark(holder);
    }
    info
}

/// Takes the mark out of a holder's metadata, and returns the id in it.
pub(crate) fn strip_mark(holder: &mut LockHolder) -> Option<OwnerId> {
    let (member, metadata) = decode(holder.metadata.take());
    holder.metadata = metadata;
    member
}

/// The id in the mark, if there is one, and what the caller gave.
pub(crate) fn decode(metadata: Option<String>) -> (Option<OwnerId>, Option<String>) {
    let linked = metadata
        .as_deref()
        .and_then(|text| text.strip_prefix(MARK))
        .and_then(|text| text.split_once(MARK));
    match linked {
        Some((owner, rest)) => (
            Some(OwnerId::new(owner)),
            (!rest.is_empty()).then(|| rest.to_owned()),
        ),
        None => (None, metadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_metadata_come_back() {
        let owner = OwnerId::random();
        for metadata in [None, Some("nightly report")] {
            let decoded = decode(Some(encode(&owner, metadata)));
            assert_eq!(decoded, (Some(owner.clone()), metadata.map(str::to_owned)));
        }
        assert_eq!(decode(None), (None, None));
        let own = Some("mine".to_owned());
        assert_eq!(decode(own.clone()), (None, own.clone()));
        let long = "x".repeat(AcquireOptions::MAX_METADATA);
        assert_eq!(
            decode(Some(encode(&owner, Some(&long)))),
            (Some(owner.clone()), None)
        );
        assert_eq!(encode_member(&owner, Some(&long)), None);
        let marked = encode_member(&owner, Some("mine"));
        assert_eq!(decode(marked), (Some(owner), own));
    }
}
