//! The feature `serde`: names, tokens and URLs as the text or number that they are.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{FencingToken, LockName, LockUrl, OwnerId};

impl Serialize for LockName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for LockName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for OwnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for OwnerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for FencingToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.as_u64())
    }
}

impl<'de> Deserialize<'de> for FencingToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::new)
    }
}

/// An instant as text, or nothing for one that the format does not have: a store may hold any
/// number.
pub(crate) fn since<S: Serializer>(
    since: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let year_9999 = Duration::from_secs(253_370_764_800);
    let has_form = |since: &SystemTime| {
        since
            .duration_since(SystemTime::UNIX_EPOCH)
            .is_ok_and(|since| since < year_9999)
    };
    humantime_serde::serialize(&since.filter(has_form), serializer)
}

/// A URL may hold a password, so it is only ever read.
impl<'de> Deserialize<'de> for LockUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;
    use crate::{AcquireOptions, LockHolder, LockInfo};

    #[test]
    fn values_are_the_text_or_number_that_they_are() {
        let name: LockName = from_value(json!("orders/42")).unwrap();
        assert_eq!(to_value(&name).unwrap(), json!("orders/42"));
        assert!(
            from_value::<LockName>(json!(""))
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
        assert_eq!(
            from_value::<OwnerId>(json!("7f")).unwrap(),
            OwnerId::new("7f")
        );
        assert_eq!(
            to_value(FencingToken::new(u64::MAX)).unwrap(),
            json!(u64::MAX)
        );
        let url: LockUrl = from_value(json!("etcd://app:s3cret@h1,h2/prod")).unwrap();
        assert_eq!(url.path(), "prod");
        let error = from_value::<LockUrl>(json!("redis://app:12?s3cret@h"))
            .unwrap_err()
            .to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn options_are_read_with_readable_durations_and_without_unknown_keys() {
        let options: AcquireOptions =
            from_value(json!({ "ttl": "15s", "timeout": "500ms", "metadata": "host-7" })).unwrap();
        let expected = AcquireOptions::new()
            .with_ttl(Duration::from_secs(15))
            .with_timeout(Duration::from_millis(500));
        assert_eq!(options, expected.with_metadata("host-7"));
        assert_eq!(
            from_value::<AcquireOptions>(to_value(&options).unwrap()).unwrap(),
            options
        );
        assert!(
            from_value::<AcquireOptions>(json!({ "tll": "15s" }))
                .unwrap_err()
                .to_string()
                .contains("ttl")
        );
    }

    #[test]
    fn lock_info_is_written() {
        let mut holder = LockHolder::new(OwnerId::new("7f"));
        holder.since = Some(SystemTime::UNIX_EPOCH);
        holder.expires_in = Some(Duration::from_secs(30));
        let info = to_value(LockInfo::new("a".parse().unwrap(), holder.clone())).unwrap();
        let holder = &info["holders"][0];
        assert_eq!(
            (&info["name"], &holder["owner"], &holder["token"]),
            (&json!("a"), &json!("7f"), &json!(null))
        );
        assert_eq!(
            (&holder["since"], &holder["expires_in"]),
            (&json!("1970-01-01T00:00:00Z"), &json!("30s"))
        );
    }

    #[test]
    fn an_instant_beyond_the_calendar_is_left_out() {
        let mut holder = LockHolder::new(OwnerId::new("7f"));
        for secs in [253_370_764_800, 9_000_000_000_000_000] {
            holder.since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(secs));
            assert_eq!(to_value(&holder).unwrap()["since"], json!(null), "{secs}");
        }
    }
}
