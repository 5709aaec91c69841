use etcd_client::KeyValue;

use crate::key::Prefix;

/// All entries of a lock, with their create revisions, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<(String, i64)>,
    pub(crate) revision: i64,
    /// The oldest key and its description, if it is not a lock's entry.
    pub(crate) blocked_by: Option<(String, String)>,
}

impl Snapshot {
    /// Takes the entries of a lock from the keys that a read has found at a revision.
    pub(crate) fn of(prefix: &Prefix, found: &[KeyValue], revision: i64) -> Self {
        let entries = || found.iter().filter(|kv| prefix.has_entry(kv.key()));
        let oldest = entries().min_by_key(|kv| kv.create_revision());
        let key = |kv: &KeyValue| String::from_utf8_lossy(kv.key()).into_owned();
        let blocked_by = oldest.and_then(|kv| Some((key(kv), prefix.describe_foreign(kv)?)));
        let entry = |kv: &KeyValue| (key(kv), kv.create_revision());
        Self {
            entries: entries().map(entry).collect(),
            revision,
            blocked_by,
        }
    }
}
