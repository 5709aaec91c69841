use etcd_client::KeyValue;
use lock_core::{LockName, OwnerId};

/// The prefix of one lock's keys, which are `<namespace><name>/<lease id in hex>[-<number in hex>]`
/// as in Go's `clientv3/concurrency`, `etcdctl lock`, jetcd and the server's Lock RPC.
///
/// Keys below the prefix that contain another slash belong to a lock whose name starts with this
/// one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

impl Prefix {
    pub(crate) fn of(namespace: &str, name: &LockName) -> Self {
        Self(format!("{namespace}{name}/"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of one acquisition. The number tells it from others with the same lease: Go's mutex
    /// has none, and so is re-entrant by accident. The key with number 0, the usual one, is the
    /// same as Go's.
    pub(crate) fn key(&self, lease: i64, number: u64) -> String {
        match number {
            0 => format!("{}{lease:x}", self.0),
            _ => format!("{}{lease:x}-{number:x}", self.0),
        }
    }

    /// The end of the range of keys below the prefix.
    pub(crate) fn end(&self) -> String {
        // The character after the slash.
        format!("{}0", self.0.strip_suffix('/').unwrap_or(&self.0))
    }

    /// Tells whether a key is in the queue of this lock, rather than of one with a longer name.
    ///
    /// Any key directly below the name is, whoever wrote it: Go's mutex waits for all of them, and
    /// so must we.
    pub(crate) fn has_entry(&self, key: &[u8]) -> bool {
        key.strip_prefix(self.0.as_bytes())
            .is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
    }

    /// Describes a key in the queue of this lock if it is not a lock's entry.
    ///
    /// The entries of all clients are named after the lease that they are attached to: the last
    /// part of the key begins with the lease in hex.
    pub(crate) fn describe_foreign(&self, kv: &KeyValue) -> Option<String> {
        let key = String::from_utf8_lossy(kv.key());
        let lease = kv.lease();
        let name = key.strip_prefix(&self.0).unwrap_or(&key);
        if lease != 0 && name.starts_with(&format!("{lease:x}")) {
            return None;
        }
        let why = if lease == 0 {
            "it has no lease"
        } else {
            "it is not named after its lease"
        };
        Some(format!("`{key}`, not a lock's entry: {why}"))
    }

    /// Identifies an acquisition for ever by the key without the prefix, and its create revision,
    /// because keys are used again.
    pub(crate) fn owner(&self, key: &str, created: i64) -> OwnerId {
        OwnerId::new(format!(
            "{}@{created}",
            key.strip_prefix(&self.0).unwrap_or(key)
        ))
    }

    /// The key of an acquisition, if this id was made by [`owner`](Self::owner).
    pub(crate) fn key_of(&self, owner: &OwnerId) -> Option<String> {
        let (entry, created) = owner.as_str().rsplit_once('@')?;
        created.parse::<i64>().ok()?;
        Some(format!("{}{entry}", self.0))
    }
}

/// The name and the number of a key, if it may have been made by [`Prefix::key`].
pub(crate) fn parse(namespace: &str, key: &[u8]) -> Option<(LockName, u64)> {
    let (name, entry) = std::str::from_utf8(key)
        .ok()?
        .strip_prefix(namespace)?
        .rsplit_once('/')?;
    let number = entry
        .split_once('-')
        .map_or(Ok(0), |(_, number)| u64::from_str_radix(number, 16))
        .ok()?;
    Some((LockName::new(name).ok()?, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_names_are_told_apart() {
        let prefix = Prefix::of("", &"a".parse().unwrap());
        assert_eq!(prefix.key(0x694d_a1fa_eab3_8205, 0), "a/694da1faeab38205");
        assert_eq!(
            prefix.key(0x694d_a1fa_eab3_8205, 16),
            "a/694da1faeab38205-10"
        );
        assert_eq!(prefix.owner("a/1-2", 7).as_str(), "1-2@7");
        assert_eq!(
            prefix.key_of(&prefix.owner("a/1-2", 7)).as_deref(),
            Some("a/1-2")
        );
        assert_eq!(
            prefix.key_of(&OwnerId::new("`a/x`, not a lock's entry")),
            None
        );
        for (key, ours) in [
            ("a/694da1faeab38205", true),
            ("a/1-2", true),
            ("a/b/1", false),
            ("a//1", false),
            ("a/", false),
            ("ab/1", false),
        ] {
            assert_eq!(prefix.has_entry(key.as_bytes()), ours, "{key}");
        }
    }

    #[test]
    fn a_key_tells_its_lock_and_number() {
        let name: LockName = "a/b".parse().unwrap();
        for number in [0, 1, 16] {
            assert_eq!(
                parse(
                    "prod/",
                    Prefix::of("prod/", &name).key(0x77, number).as_bytes()
                ),
                Some((name.clone(), number))
            );
        }
        for foreign in [&b"prod/77"[..], b"test/a/77", b"prod/a/77-x", b"\xff"] {
            assert_eq!(parse("prod/", foreign), None);
        }
    }

    #[test]
    fn a_namespace_goes_before_the_name() {
        assert_eq!(
            Prefix::of("prod/", &"a".parse().unwrap()).as_str(),
            "prod/a/"
        );
    }
}
