use etcd_client::KeyValue;
use lock_core::{LockName, OwnerId};

use crate::queue::Snapshot;

/// Where the entries of one lock are: `<namespace><name>/<lease id in hex>[-<number in hex>]`, as Go's
/// `clientv3/concurrency`, `etcdctl lock`, jetcd and the server's Lock RPC lay them out.
///
/// Keys below the prefix that hold another slash belong to a lock whose name starts with this one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

impl Prefix {
    pub(crate) fn of(namespace: &str, name: &LockName) -> Self {
        Self(format!("{namespace}{name}/"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of one acquisition. The number tells it from others that share its lease: Go's mutex has none, and so is
    /// re-entrant by accident. The first, which is the usual one, has the same key as Go's.
    pub(crate) fn key(&self, lease: i64, number: u64) -> String {
        match number {
            0 => format!("{}{lease:x}", self.0),
            _ => format!("{}{lease:x}-{number:x}", self.0),
        }
    }

    /// Where the keys below the prefix end.
    pub(crate) fn end(&self) -> String {
        // What follows the slash among the characters.
        format!("{}0", self.0.strip_suffix('/').unwrap_or(&self.0))
    }

    /// Whether a key stands in the queue of this lock, rather than of one with a longer name.
    ///
    /// Any key directly below the name does, whoever wrote it: Go's mutex waits for all of them, and so must we.
    pub(crate) fn has_entry(&self, key: &[u8]) -> bool {
        key.strip_prefix(self.0.as_bytes()).is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
    }

    /// What a key in the queue of this lock is if it is not a lock's entry: those are named after the lease that they are attached to.
    ///
    /// Our keys and those of Go, `etcdctl lock`, jetcd and the Lock RPC begin with the lease in hex, and go on with anything.
    pub(crate) fn stranger(&self, kv: &KeyValue) -> Option<String> {
        let key = String::from_utf8_lossy(kv.key());
        let (lease, name) = (kv.lease(), key.strip_prefix(&self.0).unwrap_or(&key));
        if lease != 0 && name.starts_with(&format!("{lease:x}")) {
            return None;
        }
        let why = if lease == 0 { "it has no lease" } else { "it is not named after its lease" };
        Some(format!("`{key}`, not a lock's entry: {why}"))
    }

    /// The entries of this lock among the keys that a read has found at a revision.
    pub(crate) fn snapshot(&self, found: &[KeyValue], revision: i64) -> Snapshot {
        let entries = found.iter().filter(|kv| self.has_entry(kv.key()));
        let entries = entries.map(|kv| (String::from_utf8_lossy(kv.key()).into_owned(), kv.create_revision())).collect();
        Snapshot { entries, revision }
    }

    /// What identifies an acquisition for ever: the key without the prefix, and its create revision, because keys are used
    /// again.
    pub(crate) fn owner(&self, key: &str, created: i64) -> OwnerId {
        OwnerId::new(format!("{}@{created}", key.strip_prefix(&self.0).unwrap_or(key)))
    }
}

/// The lock and the number of a key that [`Prefix::key`] may have made.
pub(crate) fn parse(namespace: &str, key: &[u8]) -> Option<(LockName, u64)> {
    let (name, entry) = std::str::from_utf8(key).ok()?.strip_prefix(namespace)?.rsplit_once('/')?;
    let number = entry.split_once('-').map_or(Ok(0), |(_, number)| u64::from_str_radix(number, 16)).ok()?;
    Some((LockName::new(name).ok()?, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_names_are_told_apart() {
        let prefix = Prefix::of("", &"a".parse().unwrap());
        assert_eq!(prefix.key(0x694d_a1fa_eab3_8205, 0), "a/694da1faeab38205");
        assert_eq!(prefix.key(0x694d_a1fa_eab3_8205, 16), "a/694da1faeab38205-10");
        assert_eq!(prefix.owner("a/1-2", 7).as_str(), "1-2@7");
        for (key, ours) in
            [("a/694da1faeab38205", true), ("a/1-2", true), ("a/b/1", false), ("a//1", false), ("a/", false), ("ab/1", false)]
        {
            assert_eq!(prefix.has_entry(key.as_bytes()), ours, "{key}");
        }
    }

    #[test]
    fn a_key_tells_its_lock_and_number() {
        let name: LockName = "a/b".parse().unwrap();
        for number in [0, 1, 16] {
            assert_eq!(parse("prod/", Prefix::of("prod/", &name).key(0x77, number).as_bytes()), Some((name.clone(), number)));
        }
        for foreign in [&b"prod/77"[..], b"test/a/77", b"prod/a/77-x", b"\xff"] {
            assert_eq!(parse("prod/", foreign), None);
        }
    }

    #[test]
    fn a_namespace_goes_before_the_name() {
        assert_eq!(Prefix::of("prod/", &"a".parse().unwrap()).as_str(), "prod/a/");
    }
}
