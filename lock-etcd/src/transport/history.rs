use std::{
    fmt,
    sync::{Mutex, MutexGuard, OnceLock},
};

use etcd_client::{
    GetResponse, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, ResponseHeader,
    TxnResponse,
};
use lock_core::{ErrorKind, LockError, backend::locked};

/// Detects a store that went back: its data directory or a snapshot was restored, its data was
/// thrown away, or another cluster has its address.
///
/// A linearizable answer knows everything that was acknowledged before its request was sent. If its
/// revision is lower, that history is gone, and with it the meaning of everything that this client
/// has seen: revisions repeat, removed entries are back, and others may own the locks held here. So
/// the client starts over.
///
/// A member's report of its own state, such as the opening of a watch, may lag behind: it raises
/// the known revision and proves nothing. A store that has grown beyond the known revision before
/// it is asked again goes unnoticed here. So entries are compared by key and create revision
/// together, and removed entries that reappear are looked for.
#[derive(Default)]
pub(crate) struct StoreHistory {
    state: Mutex<State>,
    start_over: OnceLock<StartOver>,
}

type StartOver = Box<dyn Fn(&LockError) + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    known: KnownStore,
    /// Describes the latest time that the store went back.
    went_back: String,
}

/// The state of the store as known when a request is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownStore {
    /// 0 before the first answer.
    cluster: u64,
    revision: i64,
    /// Counts the times that the store went back.
    generation: u64,
}

/// The place of an answer in the history of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StorePosition {
    cluster: u64,
    revision: i64,
    /// The revision before the request did anything.
    before: i64,
}

impl KnownStore {
    /// Tells whether an entry with this create revision was made before.
    pub(crate) fn includes(self, created: i64) -> bool {
        created <= self.revision
    }
}

impl StoreHistory {
    pub(crate) fn known(&self) -> KnownStore {
        locked(&self.state).known
    }

    /// Tells whether the store has not gone back since.
    pub(crate) fn continues(&self, known: KnownStore) -> bool {
        self.known().generation == known.generation
    }

    /// As [`continues`](Self::continues).
    ///
    /// # Errors
    ///
    /// If it has gone back.
    pub(crate) fn ensure_continues(&self, known: KnownStore) -> Result<(), LockError> {
        let state = locked(&self.state);
        if state.known.generation == known.generation {
            Ok(())
        } else {
            Err(unavailable(state.went_back.clone()))
        }
    }

    /// Sets the callback for a store that went back, which runs before the answer that shows it is
    /// used.
    pub(crate) fn on_rollback(&self, start_over: impl Fn(&LockError) + Send + Sync + 'static) {
        let _ = self.start_over.set(Box::new(start_over));
    }

    /// Records a linearizable answer to a request that was sent when `known` was current.
    ///
    /// # Errors
    ///
    /// If the store has gone back since. The request may have taken effect.
    pub(crate) fn confirm(
        &self,
        known: KnownStore,
        answer: StorePosition,
    ) -> Result<(), LockError> {
        self.advance(known, answer, known.revision)
    }

    /// Records the answer of a member that may lag behind the others.
    pub(crate) fn note(&self, known: KnownStore, answer: StorePosition) {
        // On the answer of another cluster the client starts over, so the error is of no use.
        let _ = self.advance(known, answer, 0);
    }

    fn advance(
        &self,
        known: KnownStore,
        answer: StorePosition,
        least: i64,
    ) -> Result<(), LockError> {
        let mut state = locked(&self.state);
        let now = state.known;
        if now.generation != known.generation {
            return Err(unavailable(state.went_back.clone()));
        }
        let is_other = now.cluster != 0 && answer.cluster != now.cluster;
        if !is_other && answer.before >= least {
            state.known = KnownStore {
                cluster: answer.cluster,
                revision: now.revision.max(answer.revision),
                generation: now.generation,
            };
            return Ok(());
        }
        let text = match is_other {
            true => format!(
                "the store is another cluster than before: {:x}, and not {:x}",
                answer.cluster, now.cluster
            ),
            false => format!(
                "the store went back from revision {} to {}",
                known.revision, answer.before
            ),
        };
        state.known = KnownStore {
            cluster: answer.cluster,
            revision: answer.revision,
            generation: now.generation + 1,
        };
        self.went_back(state, text)
    }

    /// Reports that a removed entry is back.
    ///
    /// # Errors
    ///
    /// Always.
    pub(crate) fn reappeared(&self, known: KnownStore, key: &str) -> Result<(), LockError> {
        let mut state = locked(&self.state);
        if state.known.generation != known.generation {
            return Err(unavailable(state.went_back.clone()));
        }
        state.known = KnownStore {
            generation: known.generation + 1,
            ..state.known
        };
        self.went_back(
            state,
            format!("the store went back: the entry `{key}`, which was removed, is there again"),
        )
    }

    fn went_back(&self, mut state: MutexGuard<'_, State>, text: String) -> Result<(), LockError> {
        state.went_back = format!("{text}: was it restored from a backup? all locks are lost");
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

/// An answer that may tell its place in the history of the store.
pub(crate) trait Positioned {
    /// `None` unless the answer is linearizable.
    fn position(&self) -> Option<StorePosition>;
}

impl StorePosition {
    pub(crate) fn of(header: Option<&ResponseHeader>) -> Option<Self> {
        // Proxies may leave headers out.
        let position = |header: &ResponseHeader| {
            let cluster = header.cluster_id();
            let revision = header.revision();
            Self {
                cluster,
                revision,
                before: revision,
            }
        };
        header
            .map(position)
            .filter(|position| position.cluster != 0)
    }

    /// Adjusts the position of a request that wrote something, which makes a revision.
    pub(crate) fn if_wrote(self, wrote: bool) -> Self {
        Self {
            before: self.revision - i64::from(wrote),
            ..self
        }
    }
}

impl Positioned for GetResponse {
    fn position(&self) -> Option<StorePosition> {
        StorePosition::of(self.header())
    }
}

impl Positioned for TxnResponse {
    fn position(&self) -> Option<StorePosition> {
        StorePosition::of(self.header())
    }
}

/// Grants and revocations are ordered with all writes; the header has the revision at that point.
impl Positioned for LeaseGrantResponse {
    fn position(&self) -> Option<StorePosition> {
        StorePosition::of(self.header())
    }
}

impl Positioned for LeaseRevokeResponse {
    fn position(&self) -> Option<StorePosition> {
        StorePosition::of(self.header())
    }
}

/// A member answers from its own state.
impl Positioned for LeaseTimeToLiveResponse {
    fn position(&self) -> Option<StorePosition> {
        None
    }
}

impl Positioned for () {
    fn position(&self) -> Option<StorePosition> {
        None
    }
}

impl fmt::Debug for StoreHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History")
            .field("known", &self.known())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
