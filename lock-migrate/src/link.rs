//! Which entry of the target belongs to which of the source: the target's carries the owner id of
//! the source's with its metadata.

use lock_core::{AcquireOptions, OwnerId};

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

/// The source's owner, if there is one, and what the caller gave.
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
        assert_eq!(decode(own.clone()), (None, own));
        let long = "x".repeat(AcquireOptions::MAX_METADATA);
        assert_eq!(
            decode(Some(encode(&owner, Some(&long)))),
            (Some(owner), None)
        );
    }
}
