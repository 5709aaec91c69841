use std::time::{Duration, SystemTime};

use lock_core::{FencingToken, Terms};
use serde::{Deserialize, Serialize};

/// The value of an entry, which describes its acquisition for
/// [`inspect`](lock_core::DistributedLock::inspect_named) only. Other clients write nothing, or
/// something else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryValue {
    /// Milliseconds since 1970: the time of the acquisition if there is a token, otherwise of the
    /// arrival in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    /// Present once an acquisition that had to wait has been held for 200 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

impl EntryValue {
    /// The value of a new entry.
    pub(crate) fn waiting(terms: &Terms) -> Self {
        Self {
            since_ms: now_ms(),
            token: None,
            metadata: terms.metadata.clone(),
        }
    }

    /// The value of the holder's entry.
    pub(crate) fn holding(token: FencingToken, metadata: Option<String>) -> Self {
        Self {
            since_ms: now_ms(),
            token: Some(token.as_u64()),
            metadata,
        }
    }

    pub(crate) fn encode(&self) -> String {
        // A struct of numbers and text always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn decode(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_default()
    }

    pub(crate) fn since(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.since_ms?))
    }

    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.token.map(FencingToken::new)
    }

    pub(crate) fn into_metadata(self) -> Option<String> {
        self.metadata
    }
}

fn now_ms() -> Option<u64> {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip_and_foreign_values() {
        let value = EntryValue::holding(FencingToken::new(7), Some("host-7 \"x\"".into()));
        assert_eq!(EntryValue::decode(value.encode().as_bytes()), value);
        for foreign in [&b""[..], b"\xff\xfe", b"{", b"7", b"{\"since_ms\":-1}"] {
            assert_eq!(EntryValue::decode(foreign), EntryValue::default());
        }
    }
}
