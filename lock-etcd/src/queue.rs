use std::collections::{BTreeSet, HashMap, VecDeque};

#[cfg(test)]
mod tests;

/// One process's picture of one lock's queue: the entries that matter to its waiters, in the order of their create
/// revisions, and which of its own waiters is at the head. Synchronous: fed by a watch and by snapshots.
///
/// An entry is its create revision *and* its key: in a store that was restored from a backup another one may have the same revision.
///
/// Why no read is needed when the lock changes hands: create revisions only grow, so once all entries up to a waiter's
/// own are known, the set of *older* entries can only shrink. When it is empty the waiter is at the head, and stays there
/// until its entry is deleted, which the same watch reports in the same order. A delayed, interrupted or stale watch can
/// make the picture wait, and never makes it wrong.
///
/// The watch may report deletions only: then each waiter brings, or asks for, a snapshot that covers the entries older
/// than its own. Or it reports creations too: then one snapshot is enough for all waiters to come.
///
/// What this process deletes itself is not taken into account before the watch reports it: the picture would jump over
/// what happened in between, such as the removal of the waiter that is next.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: BTreeSet<(i64, String)>,
    created: HashMap<String, i64>,
    /// All entries created up to this revision are in the picture unless they were deleted.
    known: Option<i64>,
    watch: Option<WatchState>,
    /// Own entries that wait.
    waiting: BTreeSet<(i64, String)>,
}

/// How far an uninterrupted watch has come.
#[derive(Debug)]
struct WatchState {
    creations: bool,
    /// Every deletion after `from` and up to `reached` has been taken into account.
    from: i64,
    reached: i64,
    /// The latest of these deletions, all after `from`: a snapshot may be older than they are.
    deleted: VecDeque<(i64, String)>,
}

/// A change of one entry, as a watch reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Created { key: String, revision: i64 },
    Deleted { key: String },
}

/// All entries of a lock, with their create revisions, as they were at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<(String, i64)>,
    pub(crate) revision: i64,
}

/// What became of a waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is at the head; it was so at the given revision, which no earlier holder has seen.
    Granted { revision: i64 },
    /// Its entry is gone from the store.
    Evicted,
}

/// Verdicts by entry.
pub(crate) type Verdicts = Vec<(String, Verdict)>;

/// Deletions that are remembered for snapshots that are older: an answer is rarely overtaken by more.
const REMEMBERED: usize = 256;

impl Queue {
    /// Adds an own entry that waits.
    pub(crate) fn join(&mut self, key: String, created: i64) -> Verdicts {
        self.waiting.insert((created, key));
        self.judge()
    }

    /// Forgets an own waiter, whatever became of it.
    pub(crate) fn leave(&mut self, key: &str, created: i64) {
        self.waiting.remove(&(created, key.to_owned()));
    }

    /// The oldest entry, if all that are older than its waiters' are known.
    pub(crate) fn holder(&self) -> Option<(i64, &str)> {
        self.known.and(self.entries.first()).map(|(created, key)| (*created, key.as_str()))
    }

    /// How many wait here.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The oldest own entry that waits, after its create revision.
    pub(crate) fn first_waiting(&self) -> Option<(i64, String)> {
        self.waiting.first().cloned()
    }

    /// How many entries of others a snapshot shows ahead of the first own waiter.
    pub(crate) fn ahead(&self, snapshot: &Snapshot) -> Option<usize> {
        let (own, _) = self.waiting.first()?;
        Some(snapshot.entries.iter().filter(|(_, created)| created < own).count())
    }

    /// The entry so many places ahead of the first own waiter, if all that are there take turns: those at the end of the
    /// queue had theirs just before its head.
    pub(crate) fn neighbour(&self, snapshot: &Snapshot, ahead: usize) -> Option<String> {
        let (own, _) = self.waiting.first()?;
        let is_own = |key: &str, created: i64| self.waiting.contains(&(created, key.to_owned()));
        let mut others: Vec<_> = snapshot.entries.iter().filter(|(key, created)| !is_own(key, *created)).collect();
        // Away from the own one towards the head, and from there on from the end.
        others.sort_by_key(|(_, created)| (created > own, std::cmp::Reverse(*created)));
        others.get(ahead.checked_sub(1)?).map(|(key, _)| key.clone())
    }

    /// A watch is open that reports every change after a revision: deletions, and if so agreed creations.
    pub(crate) fn opened(&mut self, revision: i64, creations: bool) {
        self.interrupted();
        self.watch = Some(WatchState { creations, from: revision, reached: revision, deleted: VecDeque::new() });
    }

    /// The watch has a gap: what was known is not any more.
    pub(crate) fn interrupted(&mut self) {
        (self.watch, self.known) = (None, None);
        self.entries.clear();
        self.created.clear();
    }

    /// Whether a snapshot is needed for somebody who waits.
    pub(crate) fn needs_snapshot(&self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let Some((last, _)) = self.waiting.last() else { return false };
        // Those that come after a snapshot are placed by the events of their own creation.
        self.known.is_none_or(|known| known < *last && !watch.creations)
    }

    /// Takes what a linearizable read has found. Without a watch it is forgotten once it has been judged by; one that cannot be
    /// joined to the watch is not used.
    pub(crate) fn snapshot(&mut self, snapshot: Snapshot) -> Verdicts {
        let Snapshot { entries, revision } = snapshot;
        let Some(watch) = &self.watch else { return self.judge_once(entries, revision) };
        if revision < watch.from || self.known.is_some_and(|known| known >= revision) {
            return Vec::new();
        }
        let (creations, reached) = (watch.creations, watch.reached);
        let overtaken: Vec<String> = watch.deleted.iter().filter(|(at, _)| *at > revision).map(|(_, key)| key.clone()).collect();
        // With creations reported, what was created after the snapshot is in the picture already.
        let later = self.entries.split_off(&(revision.saturating_add(1), String::new()));
        self.entries.clear();
        self.created.clear();
        let later = later.into_iter().filter(|_| creations).map(|(created, key)| (key, created));
        let entries = entries.into_iter().filter(|(key, _)| !overtaken.contains(key));
        for (key, created) in entries.chain(later) {
            self.insert(key, created);
        }
        self.known = Some(if creations { revision.max(reached) } else { revision });
        self.judge()
    }

    /// Applies what happened at one revision.
    pub(crate) fn changes(&mut self, at: i64, changes: Vec<Change>) -> Verdicts {
        let Some(watch) = self.watch.as_mut().filter(|watch| at > watch.reached) else { return Vec::new() };
        watch.reached = at;
        let creations = watch.creations;
        for change in changes {
            match change {
                // A snapshot that was ahead of the watch knows whether it is still there.
                Change::Created { revision, .. } if self.known.is_some_and(|known| revision <= known) => {}
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
        if let Some(created) = self.created.get(&key).copied().filter(|created| *created < at) {
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

    /// Who is at the head at a revision stays there, and who is gone stays gone: waiters do not depend on watches alone.
    fn judge_once(&mut self, entries: Vec<(String, i64)>, revision: i64) -> Verdicts {
        entries.into_iter().for_each(|(key, created)| self.insert(key, created));
        self.known = Some(revision);
        let verdicts = self.judge();
        self.interrupted();
        verdicts
    }

    /// Evicts the waiters that the picture should show and does not; grants the head if it is one of ours.
    fn judge(&mut self) -> Verdicts {
        let Some(known) = self.known else { return Vec::new() };
        let due = self.waiting.iter().take_while(|(created, _)| *created <= known);
        let gone: Vec<_> = due.filter(|waiter| !self.entries.contains(*waiter)).cloned().collect();
        let revision = known.max(self.watch.as_ref().map_or(0, |watch| watch.reached));
        self.waiting.retain(|waiter| !gone.contains(waiter));
        let mut verdicts: Verdicts = gone.into_iter().map(|(_, key)| (key, Verdict::Evicted)).collect();
        if let Some(head) = self.entries.first().filter(|(head, _)| *head <= known)
            && let Some((_, key)) = self.waiting.take(head)
        {
            verdicts.push((key, Verdict::Granted { revision }));
        }
        verdicts
    }
}
