use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use lock_core::{LockError, OwnerId, backend::locked};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    position::{QueuePosition, QueueRead},
    state::{WaitOutcome, WaitOutcomes},
    step::Step,
    wait_state::WaitState,
};
use crate::{entry::StoreEntry, error::runtime_ended, key::Prefix};

/// The waiters of this process for one lock, and the state that they share.
pub(super) struct Waiters {
    state: Mutex<State>,
    wake: Notify,
}

struct State {
    wait: WaitState,
    outcomes: HashMap<String, oneshot::Sender<Result<WaitOutcome, LockError>>>,
    /// The server refuses the watch: new waiters get this error, and the watcher closes.
    refused: Option<LockError>,
}

/// A waiter; gives up its place when dropped.
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    created: i64,
    key: String,
    outcome: oneshot::Receiver<Result<WaitOutcome, LockError>>,
}

impl Waiters {
    pub(super) fn new(prefix: Prefix) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                wait: WaitState::new(prefix, Instant::now()),
                outcomes: HashMap::new(),
                refused: None,
            }),
            wake: Notify::new(),
        })
    }

    /// Adds a waiter.
    pub(super) fn join(self: &Arc<Self>, entry: &StoreEntry, position: QueuePosition) -> Waiter {
        self.join_as(entry.key.clone(), entry.created, position)
    }

    fn join_as(self: &Arc<Self>, key: String, created: i64, position: QueuePosition) -> Waiter {
        let (sender, outcome) = oneshot::channel();
        let mut state = self.state();
        if let Some(error) = &state.refused {
            let _ = sender.send(Err(error.clone()));
        } else {
            state.outcomes.insert(key.clone(), sender);
            let outcomes = state.wait.join(key.clone(), created, position);
            state.settle(outcomes);
            if state.wait.needs_step() {
                self.wake.notify_one();
            }
        }
        drop(state);
        Waiter {
            waiters: Arc::clone(self),
            created,
            key,
            outcome,
        }
    }

    /// The next thing to do for the waiters.
    pub(super) fn step(&self) -> Step {
        let mut state = self.state();
        match state.refused {
            Some(_) => Step::Close,
            None => state.wait.step(Instant::now()),
        }
    }

    /// Waits until an event may have changed the next step.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Passes an event on, and delivers the outcomes that it brings.
    pub(super) fn update(&self, event: impl FnOnce(&mut WaitState) -> WaitOutcomes) {
        let mut state = self.state();
        let outcomes = event(&mut state.wait);
        let any = !outcomes.is_empty();
        state.settle(outcomes);
        drop(state);
        if any {
            self.wake.notify_one();
        }
    }

    /// Passes an event on that changes the next step.
    pub(super) fn wake_with(&self, event: impl FnOnce(&mut WaitState)) {
        event(&mut self.state().wait);
        self.wake.notify_one();
    }

    /// Fails all waiters, and those that join before the watcher is closed.
    pub(super) fn refuse(&self, error: LockError) {
        let mut state = self.state();
        for (_, waiter) in state.outcomes.drain() {
            let _ = waiter.send(Err(error.clone()));
        }
        state.refused = Some(error);
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn is_watched_by(&self, watch: u64) -> bool {
        self.state().wait.is_watched_by(watch)
    }

    /// The part of the queue that a new entry is to read.
    pub(super) fn queue_read(&self) -> QueueRead {
        self.state().wait.queue_read()
    }

    pub(super) fn prefix(&self) -> Prefix {
        self.state().wait.prefix().clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().outcomes.is_empty()
    }

    /// Ends all waits, because nobody looks after them any more.
    pub(super) fn abandon(&self) {
        self.state().outcomes.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

impl State {
    fn settle(&mut self, outcomes: WaitOutcomes) {
        for (key, outcome) in outcomes {
            if let Some(waiter) = self.outcomes.remove(&key) {
                // A waiter that has just been dropped removes its entry from the store itself.
                let _ = waiter.send(Ok(outcome));
            }
        }
    }
}

impl Waiter {
    /// Waits for the end of the wait.
    pub(crate) async fn outcome(&mut self) -> Result<WaitOutcome, LockError> {
        (&mut self.outcome)
            .await
            .unwrap_or_else(|_| Err(runtime_ended()))
    }

    /// The holder of the lock as far as it is known, or the key that blocks it.
    pub(crate) fn holder(&self) -> Option<OwnerId> {
        self.waiters.state().wait.holder(self.created)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.waiters.state();
        state.outcomes.remove(&self.key);
        let was_last = state.wait.leave(&self.key, self.created);
        drop(state);
        if was_last {
            self.waiters.wake.notify_one();
        }
    }
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters")
            .field("state", &self.state().wait)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot::Snapshot, *};

    /// The wait may be over before the queue is read.
    #[test]
    fn a_waiter_that_is_blocked_by_a_foreign_key_names_it_from_the_beginning() {
        let waiters = Waiters::new(Prefix::of("", &"orders".parse().unwrap()));
        let foreign = "`orders/42`, not a lock's entry";
        let position = QueuePosition::Near(Snapshot {
            entries: vec![("orders/42".to_owned(), 5), ("orders/77".to_owned(), 7)],
            revision: 7,
            blocked_by: Some(("orders/42".to_owned(), foreign.to_owned())),
        });
        let waiter = waiters.join_as("orders/77".to_owned(), 7, position);
        assert_eq!(waiter.holder().unwrap().as_str(), foreign);
    }
}
