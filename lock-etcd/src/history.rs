use std::{
    fmt,
    sync::{Mutex, MutexGuard, OnceLock},
};

use etcd_client::{GetResponse, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, ResponseHeader, TxnResponse};
use lock_core::{ErrorKind, LockError, backend::locked};

use crate::batch;

/// How far the store has come, by its own answers, so that a store that went back is noticed: its data directory or a snapshot was
/// restored, its data was thrown away, or another cluster has its address.
///
/// A linearizable answer knows everything that was acknowledged before its request was sent. If its revision is lower,
/// that history is gone, and with it the meaning of everything that this client has seen: revisions repeat, entries that were
/// removed are back, and others may own what is held here. So the client starts over.
///
/// What a member tells of its own state, such as the opening of a watch, may lag behind: it counts towards what is known, and
/// proves nothing. The revision of a store that has grown beyond the known one before it is asked again proves nothing either: so entries
/// are compared by key and create revision, never by one of them, and entries that are there again are looked for.
#[derive(Default)]
pub(crate) struct History {
    state: Mutex<State>,
    start_over: OnceLock<StartOver>,
}

type StartOver = Box<dyn Fn(&LockError) + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// How the store went back the last time.
    went_back: String,
}

/// What is known of the store when a request is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// 0 before the first answer.
    cluster: u64,
    revision: i64,
    /// How often the store has gone back.
    era: u64,
}

/// When an answer was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    cluster: u64,
    revision: i64,
    /// The revision before the request did anything.
    before: i64,
}

impl Known {
    /// Whether an entry that was created then had been made by what is known.
    pub(crate) fn includes(self, created: i64) -> bool {
        created <= self.revision
    }
}

impl History {
    pub(crate) fn known(&self) -> Known {
        locked(&self.state).known
    }

    /// Whether the store has not gone back since.
    pub(crate) fn continues(&self, known: Known) -> bool {
        self.known().era == known.era
    }

    /// What the client does when the store has gone back; called at once, before the answer that shows it is used.
    pub(crate) fn on_rollback(&self, start_over: impl Fn(&LockError) + Send + Sync + 'static) {
        let _ = self.start_over.set(Box::new(start_over));
    }

    /// Takes note of a linearizable answer to a request that was sent when this was known.
    ///
    /// # Errors
    ///
    /// If the store has gone back since. The request may have taken effect.
    pub(crate) fn confirm(&self, known: Known, answer: Stamp) -> Result<(), LockError> {
        self.take(known, answer, known.revision)
    }

    /// Takes note of what a member says that may lag behind the others.
    pub(crate) fn note(&self, known: Known, answer: Stamp) {
        // Who is told of another cluster needs no other answer: the client starts over.
        let _ = self.take(known, answer, 0);
    }

    fn take(&self, known: Known, answer: Stamp, least: i64) -> Result<(), LockError> {
        let mut state = locked(&self.state);
        let now = state.known;
        if now.era != known.era {
            return Err(unavailable(state.went_back.clone()));
        }
        let is_other = now.cluster != 0 && answer.cluster != now.cluster;
        if !is_other && answer.before >= least {
            state.known = Known { cluster: answer.cluster, revision: now.revision.max(answer.revision), era: now.era };
            return Ok(());
        }
        let text = match is_other {
            true => format!("the store is another cluster than before: {:x}, and not {:x}", answer.cluster, now.cluster),
            false => format!("the store went back from revision {} to {}", known.revision, answer.before),
        };
        state.known = Known { cluster: answer.cluster, revision: answer.revision, era: now.era + 1 };
        self.tell(state, text)
    }

    /// An entry is there that had been removed.
    ///
    /// # Errors
    ///
    /// Always.
    pub(crate) fn came_back(&self, known: Known, key: &str) -> Result<(), LockError> {
        let mut state = locked(&self.state);
        if state.known.era != known.era {
            return Err(unavailable(state.went_back.clone()));
        }
        state.known = Known { era: known.era + 1, ..state.known };
        self.tell(state, format!("the store went back: the entry `{key}`, which was removed, is there again"))
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, text: String) -> Result<(), LockError> {
        state.went_back = format!("{text}: was it restored from a backup? All that was held is lost");
        let error = unavailable(state.went_back.clone());
        drop(state);
        if let Some(start_over) = self.start_over.get() {
            start_over(&error);
        }
        Err(error)
    }
}

fn unavailable(message: String) -> LockError {
    LockError::new(ErrorKind::Unavailable, message).indeterminate()
}

/// An answer that may tell how far the store has come.
pub(crate) trait Stamped {
    /// `None` unless the answer is linearizable.
    fn stamp(&self) -> Option<Stamp>;
}

impl Stamp {
    pub(crate) fn of(header: Option<&ResponseHeader>) -> Option<Self> {
        // Proxies may leave headers out.
        let stamp = |header: &ResponseHeader| {
            let (cluster, revision) = (header.cluster_id(), header.revision());
            Self { cluster, revision, before: revision }
        };
        header.map(stamp).filter(|stamp| stamp.cluster != 0)
    }

    /// Of an answer to a request that has written something, which makes a revision.
    pub(crate) fn if_wrote(self, wrote: bool) -> Self {
        Self { before: self.revision - i64::from(wrote), ..self }
    }
}

impl Stamped for GetResponse {
    fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.header())
    }
}

impl Stamped for TxnResponse {
    fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.header())
    }
}

/// Granted and revoked in the order of all writes; the header tells the revision at that point.
impl Stamped for LeaseGrantResponse {
    fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.header())
    }
}

impl Stamped for LeaseRevokeResponse {
    fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.header())
    }
}

impl Stamped for batch::Answer {
    fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }
}

/// Told by a member from its own state.
impl Stamped for LeaseTimeToLiveResponse {
    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

impl Stamped for () {
    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("known", &self.known()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    const CLUSTER: u64 = 7;

    fn at(revision: i64) -> Stamp {
        Stamp { cluster: CLUSTER, revision, before: revision }
    }

    fn seen(revision: i64) -> (History, Arc<AtomicUsize>) {
        let (history, starts) = (History::default(), Arc::new(AtomicUsize::new(0)));
        history.confirm(history.known(), at(revision)).unwrap();
        let count = Arc::clone(&starts);
        history.on_rollback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (history, starts)
    }

    #[test]
    fn answers_of_concurrent_requests_may_overtake_each_other() {
        let (history, starts) = seen(5);
        let (first, second) = (history.known(), history.known());
        history.confirm(second, at(9)).unwrap();
        history.confirm(first, at(6)).unwrap();
        assert_eq!(history.known().revision, 9);
        assert_eq!(starts.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_answer_from_behind_what_was_known_at_its_request_starts_over_once() {
        let (history, starts) = seen(9);
        let (first, second) = (history.known(), history.known());
        let error = history.confirm(first, at(8)).unwrap_err();
        assert!(error.to_string().contains("from revision 9 to 8"), "{error}");
        assert!(error.is_indeterminate());
        assert!(!history.continues(first));
        // Whatever was under way tells of what is gone, be it from before or after.
        for revision in [7, 20] {
            history.confirm(second, at(revision)).unwrap_err();
        }
        assert_eq!((history.known().revision, starts.load(Ordering::Relaxed)), (8, 1));
        history.confirm(history.known(), at(8)).unwrap();
    }

    #[test]
    fn a_write_makes_a_revision_and_so_comes_after_what_was_known() {
        let (history, _) = seen(5);
        history.confirm(history.known(), at(6).if_wrote(true)).unwrap();
        history.confirm(history.known(), at(6).if_wrote(false)).unwrap();
        assert!(history.confirm(history.known(), at(6).if_wrote(true)).is_err(), "another 6 than the known one");
    }

    #[test]
    fn what_may_lag_behind_counts_and_proves_nothing() {
        let (history, starts) = seen(5);
        let known = history.known();
        history.note(known, at(8));
        history.note(known, at(3));
        assert_eq!((history.known().revision, starts.load(Ordering::Relaxed)), (8, 0));
        history.confirm(history.known(), at(7)).unwrap_err();
        history.note(known, at(99));
        assert_eq!(history.known().revision, 7, "a stream from before");
    }

    #[test]
    fn another_cluster_and_an_entry_that_came_back_start_over() {
        let (history, starts) = seen(5);
        let known = history.known();
        let error = history.confirm(known, Stamp { cluster: 8, ..at(50) }).unwrap_err();
        assert!(error.to_string().contains("another cluster"), "{error}");
        history.confirm(history.known(), Stamp { cluster: 8, ..at(50) }).unwrap();
        assert!(history.came_back(known, "a/1").is_err(), "it was read before");
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        assert!(history.came_back(history.known(), "a/1").unwrap_err().to_string().contains("`a/1`"));
        assert_eq!(starts.load(Ordering::Relaxed), 2);
    }
}
