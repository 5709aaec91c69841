use std::collections::{BTreeSet, HashMap, VecDeque};

use super::snapshot::Snapshot;

#[cfg(test)]
mod tests;

/// A process's copy of one lock's queue: the entries that matter to its waiters, in the order of
/// their create revisions. Synchronous; fed by a watch and by snapshots.
///
/// An entry is identified by its create revision *and* its key: in a store that was restored from a
/// backup another entry may have the same revision.
///
/// A hand-over needs no read. Create revisions only grow, so once all entries up to a waiter's own
/// are known, the set of *older* entries can only shrink. When it is empty the waiter is at the
/// head, and stays there until its entry is deleted, which the same watch reports in the same
/// order. A delayed, interrupted or stale watch can make the copy late, and never makes it wrong.
///
/// If the watch reports deletions only, each waiter brings, or asks for, a snapshot that covers the
/// entries older than its own. If it reports creations too, one snapshot serves all later waiters.
///
/// Deletions by this process count only when the watch reports them: otherwise the copy would skip
/// changes in between, such as the removal of the next waiter.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeSet<(i64, String)>,
    created: HashMap<String, i64>,
    /// All entries created up to this revision are known, unless they were deleted.
    known: Option<i64>,
    watch: Option<WatchState>,
    /// Entries of this process that wait.
    waiting: BTreeSet<(i64, String)>,
}

/// The progress of an uninterrupted watch.
#[derive(Debug)]
struct WatchState {
    creations: bool,
    /// Every deletion after `from` and up to `reached` has been applied.
    from: i64,
    reached: i64,
    /// These deletions, which a snapshot may not include yet.
    deleted: VecDeque<(i64, String)>,
}

/// A change of one entry, as a watch reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Created { key: String, revision: i64 },
    Deleted { key: String },
}

impl Change {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Created { key, .. } | Self::Deleted { key } => key,
        }
    }
}

/// The end of a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WaitOutcome {
    /// The entry is at the head. It was so at this revision, which no earlier holder has seen.
    Granted { revision: i64 },
    /// The entry is gone from the store.
    Evicted,
}

/// Outcomes by key.
pub(super) type WaitOutcomes = Vec<(String, WaitOutcome)>;

/// The number of deletions that are remembered for late snapshots: a read is rarely overtaken by
/// more.
const REMEMBERED: usize = 256;

impl Queue {
    /// Adds a waiter.
    pub(super) fn join(&mut self, key: String, created: i64) -> WaitOutcomes {
        self.waiting.insert((created, key));
        self.judge()
    }

    /// Removes a waiter, if it still waits.
    pub(super) fn leave(&mut self, key: &str, created: i64) {
        self.waiting.remove(&(created, key.to_owned()));
    }

    /// The oldest entry, if all entries are known that are older than its waiters'.
    pub(super) fn holder(&self) -> Option<(i64, &str)> {
        self.known
            .and(self.entries.first())
            .map(|(created, key)| (*created, key.as_str()))
    }

    /// The number of waiters.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The create revision and the key of the first waiter.
    pub(super) fn first_waiting(&self) -> Option<(i64, String)> {
        self.waiting.first().cloned()
    }

    /// The keys of a snapshot that are ahead of the first waiter, the nearest first.
    pub(super) fn ahead(&self, snapshot: &Snapshot) -> Vec<String> {
        let Some((own, _)) = self.waiting.first() else {
            return Vec::new();
        };
        let mut older: Vec<_> = snapshot
            .entries
            .iter()
            .filter(|(_, created)| created < own)
            .collect();
        older.sort_by_key(|(_, created)| std::cmp::Reverse(*created));
        older.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// Starts with a watch that reports every deletion after a revision, and perhaps creations.
    pub(super) fn opened(&mut self, revision: i64, creations: bool) {
        self.interrupted();
        self.watch = Some(WatchState {
            creations,
            from: revision,
            reached: revision,
            deleted: VecDeque::new(),
        });
    }

    /// Forgets all entries, because the watch has a gap.
    pub(super) fn interrupted(&mut self) {
        (self.watch, self.known) = (None, None);
        self.entries.clear();
        self.created.clear();
    }

    /// Tells whether a waiter needs a snapshot.
    pub(super) fn needs_snapshot(&self) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        let Some((last, _)) = self.waiting.last() else {
            return false;
        };
        // Later waiters are placed by the events of their creation.
        self.known
            .is_none_or(|known| known < *last && !watch.creations)
    }

    /// Applies the result of a linearizable read. Without a watch it is used once and forgotten. A
    /// snapshot that cannot be joined to the watch is ignored.
    pub(super) fn snapshot(&mut self, snapshot: Snapshot) -> WaitOutcomes {
        let Snapshot {
            entries, revision, ..
        } = snapshot;
        let Some(watch) = &self.watch else {
            return self.judge_once(entries, revision);
        };
        if revision < watch.from || self.known.is_some_and(|known| known >= revision) {
            return Vec::new();
        }
        let creations = watch.creations;
        let reached = watch.reached;
        let overtaken: Vec<String> = watch
            .deleted
            .iter()
            .filter(|(at, _)| *at > revision)
            .map(|(_, key)| key.clone())
            .collect();
        // If creations are reported, the entries created after the snapshot are known already.
        let later = self
            .entries
            .split_off(&(revision.saturating_add(1), String::new()));
        self.entries.clear();
        self.created.clear();
        let later = later
            .into_iter()
            .filter(|_| creations)
            .map(|(created, key)| (key, created));
        let entries = entries
            .into_iter()
            .filter(|(key, _)| !overtaken.contains(key));
        for (key, created) in entries.chain(later) {
            self.insert(key, created);
        }
        self.known = Some(if creations {
            revision.max(reached)
        } else {
            revision
        });
        self.judge()
    }

    /// Applies the changes of one revision.
    pub(super) fn changes(&mut self, at: i64, changes: Vec<Change>) -> WaitOutcomes {
        let Some(watch) = self.watch.as_mut().filter(|watch| at > watch.reached) else {
            return Vec::new();
        };
        watch.reached = at;
        let creations = watch.creations;
        for change in changes {
            match change {
                // A snapshot that was ahead of the watch tells whether it still exists.
                Change::Created { revision, .. }
                    if self.known.is_some_and(|known| revision <= known) => {}
                Change::Created { key, revision } => self.insert(key, revision),
                Change::Deleted { key } => self.remove(key, at),
            }
        }
        if creations {
            self.known = self.known.map(|known| known.max(at));
        }
        self.judge()
    }

    fn insert(&mut self, key: String, created: i64) {
        if let Some(earlier) = self.created.insert(key.clone(), created) {
            self.entries.remove(&(earlier, key.clone()));
        }
        self.entries.insert((created, key));
    }

    fn remove(&mut self, key: String, at: i64) {
        // Keys are used again: a snapshot ahead of the watch may show a later entry under this one.
        if let Some(created) = self
            .created
            .get(&key)
            .copied()
            .filter(|created| *created < at)
        {
            self.created.remove(&key);
            self.entries.remove(&(created, key.clone()));
        }
        let Some(watch) = &mut self.watch else { return };
        watch.deleted.push_back((at, key));
        if watch.deleted.len() > REMEMBERED
            && let Some((forgotten, _)) = watch.deleted.pop_front()
        {
            watch.from = forgotten;
        }
    }

    /// Decides by a single snapshot, so that waiters do not depend on watches alone: an entry at the
    /// head stays there, and one that is gone stays gone.
    fn judge_once(&mut self, entries: Vec<(String, i64)>, revision: i64) -> WaitOutcomes {
        entries
            .into_iter()
            .for_each(|(key, created)| self.insert(key, created));
        self.known = Some(revision);
        let outcomes = self.judge();
        self.interrupted();
        outcomes
    }

    /// Evicts the waiters whose entries should be known and are not, and grants the head if it is a
    /// waiter's.
    fn judge(&mut self) -> WaitOutcomes {
        let Some(known) = self.known else {
            return Vec::new();
        };
        let due = self
            .waiting
            .iter()
            .take_while(|(created, _)| *created <= known);
        let gone: Vec<_> = due
            .filter(|waiter| !self.entries.contains(*waiter))
            .cloned()
            .collect();
        let revision = known.max(self.watch.as_ref().map_or(0, |watch| watch.reached));
        self.waiting.retain(|waiter| !gone.contains(waiter));
        let mut outcomes: WaitOutcomes = gone
            .into_iter()
            .map(|(_, key)| (key, WaitOutcome::Evicted))
            .collect();
        if let Some(head) = self.entries.first().filter(|(head, _)| *head <= known)
            && let Some((_, key)) = self.waiting.take(head)
        {
            outcomes.push((key, WaitOutcome::Granted { revision }));
        }
        outcomes
    }
}
