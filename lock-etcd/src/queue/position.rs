use super::snapshot::Snapshot;

/// The place of an entry in its queue, as far as a read tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueuePosition {
    /// The queue was not read, or the read tells nothing.
    Unknown,
    /// The entry was the oldest one at this revision, and so owned the lock.
    Head { revision: i64 },
    /// There are few others, all of them in the snapshot.
    Near(Snapshot),
    /// There are many others. When `predecessor` goes, the turn of the entry is near.
    Far { predecessor: String },
}

/// The part of the queue that is read when an entry is made. The cost does not grow with the
/// queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueRead {
    Nothing,
    /// All of a queue that is not long.
    Short,
    /// The predecessor of the previous turn, which is likely to be ahead again.
    Predecessor(String),
}

/// The number of entries ahead from which a queue is long.
pub(crate) const LONG_QUEUE: usize = 16;
/// The number of places ahead at which the predecessor is: opening a watch and reading the queue
/// takes about as long as a few others hold the lock.
pub(super) const AHEAD: usize = 8;

impl QueuePosition {
    /// Judges by a snapshot of the queue, which is of no use if it is not complete.
    pub(crate) fn of(created: i64, snapshot: Snapshot, is_complete: bool) -> Self {
        if !is_complete {
            return Self::Unknown;
        }
        // The entry may have been evicted since. Then the next one owns the lock.
        if snapshot.entries.iter().all(|(_, other)| *other != created) {
            return Self::Unknown;
        }
        if snapshot.entries.iter().all(|(_, other)| *other >= created) {
            let revision = snapshot.revision;
            return Self::Head { revision };
        }
        Self::Near(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[i64], is_complete: bool) -> QueuePosition {
        let entries = entries
            .iter()
            .map(|created| (format!("k{created}"), *created))
            .collect();
        let snapshot = Snapshot {
            entries,
            revision: 99,
            blocked_by: None,
        };
        QueuePosition::of(7, snapshot, is_complete)
    }

    #[test]
    fn an_entry_owns_the_lock_only_if_it_exists_and_no_older_one_does() {
        let head = QueuePosition::Head { revision: 99 };
        assert_eq!(of(&[7, 8], true), head);
        let evicted = of(&[8, 9], true);
        assert_eq!(evicted, QueuePosition::Unknown, "the next one owns it");
        assert_eq!(of(&[], true), QueuePosition::Unknown);
        assert!(matches!(of(&[6, 7], true), QueuePosition::Near(_)));
        let incomplete = of(&[8, 7], false);
        assert_eq!(incomplete, QueuePosition::Unknown, "there may be an older");
    }
}
