use etcd_client::{EventType, GetOptions, WatchFilterType, WatchOptions, WatchResponse};
use lock_core::LockError;

/// The keys and changes that a watch reports.
#[derive(Clone, Debug)]
pub(crate) enum WatchTarget {
    /// Deletions of all keys with a prefix, and on request creations.
    Prefix { prefix: String, creations: bool },
    /// The deletion of one key.
    Deletion(String),
}

/// One change that a watch reports.
#[derive(Clone, Debug)]
pub(crate) struct WatchEvent {
    pub(crate) key: Vec<u8>,
    /// `Some(create revision)` for a put, `None` for a deletion.
    pub(crate) created: Option<i64>,
}

/// Receives the events of one watch. Called by the task that reads the stream: must not block.
pub(crate) trait WatchSink: Send + Sync + 'static {
    /// The watch is open and reports every change after this revision. Earlier ones must be read.
    fn opened(&self, revision: i64);
    /// The changes of one revision.
    fn events(&self, revision: i64, events: Vec<WatchEvent>);
    /// The watch was interrupted; [`opened`](Self::opened) follows when it is open again.
    fn interrupted(&self);
    /// The server refuses the watch permanently.
    fn refused(&self, error: LockError);
}

/// Groups events by the revision at which they happened, in order.
pub(super) fn by_revision(answer: &WatchResponse) -> Vec<(i64, Vec<WatchEvent>)> {
    let mut groups: Vec<(i64, Vec<WatchEvent>)> = Vec::new();
    for event in answer.events() {
        let Some(kv) = event.kv() else { continue };
        let created = match event.event_type() {
            EventType::Put => Some(kv.create_revision()),
            EventType::Delete => None,
        };
        let event = WatchEvent {
            key: kv.key().to_vec(),
            created,
        };
        match groups.last_mut() {
            Some((revision, events)) if *revision == kv.mod_revision() => events.push(event),
            _ => groups.push((kv.mod_revision(), vec![event])),
        }
    }
    groups
}

/// The cheapest read that needs the same permission as a watch.
pub(super) fn probe(target: &WatchTarget) -> (Vec<u8>, GetOptions) {
    let options = GetOptions::new().with_keys_only().with_limit(1);
    match target {
        WatchTarget::Prefix { prefix, .. } => (prefix.as_bytes().to_vec(), options.with_prefix()),
        WatchTarget::Deletion(key) => (key.as_bytes().to_vec(), options),
    }
}

pub(super) fn request(id: i64, target: &WatchTarget) -> (Vec<u8>, WatchOptions) {
    let options = WatchOptions::new().with_watch_id(id);
    let deletions_only = |options: WatchOptions| options.with_filters([WatchFilterType::NoPut]);
    match target {
        WatchTarget::Prefix {
            prefix,
            creations: true,
        } => (prefix.as_bytes().to_vec(), options.with_prefix()),
        WatchTarget::Prefix {
            prefix,
            creations: false,
        } => (
            prefix.as_bytes().to_vec(),
            deletions_only(options.with_prefix()),
        ),
        WatchTarget::Deletion(key) => (key.as_bytes().to_vec(), deletions_only(options)),
    }
}
