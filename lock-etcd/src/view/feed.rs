use std::sync::{Arc, MutexGuard};

use lock_core::LockError;

use super::{State, Suspicion, View};
use crate::{
    queue::Change,
    watch::{Event, Sink},
};

/// Brings the events of one watch to its view.
pub(super) struct Feed {
    pub(super) view: Arc<View>,
    pub(super) id: u64,
    pub(super) creations: bool,
}

impl Feed {
    /// The view's state, if it still listens to this watch.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.view.state()).filter(|state| state.watch == self.id)
    }
}

impl Sink for Feed {
    fn opened(&self, revision: i64) {
        if let Some(mut state) = self.state() {
            state.queue.opened(revision, self.creations);
            state.suspicion = Some(Suspicion::of_a_new_watch());
        }
        self.view.wake.notify_one();
    }

    fn events(&self, revision: i64, events: Vec<Event>) {
        let Some(mut state) = self.state() else { return };
        state.suspicion = None;
        state.blocked_by = state.blocked_by.take().filter(|(key, _)| !events.iter().any(|event| event.key == *key));
        let changes = events.into_iter().filter(|event| self.view.prefix.has_entry(&event.key)).map(change).collect();
        let verdicts = state.queue.changes(revision, changes);
        let any = !verdicts.is_empty();
        state.settle(verdicts);
        drop(state);
        if any {
            self.view.wake.notify_one();
        }
    }

    fn interrupted(&self) {
        if let Some(mut state) = self.state() {
            state.queue.interrupted();
            state.suspicion = None;
        }
    }

    fn refused(&self, error: LockError) {
        if self.state().is_some() {
            self.view.refused(error);
        }
    }
}

fn change(event: Event) -> Change {
    // Entries of clients that lay out their keys differently are compared as bytes, and shown as well as they can be.
    let key = String::from_utf8_lossy(&event.key).into_owned();
    match event.created {
        Some(revision) => Change::Created { key, revision },
        None => Change::Deleted { key },
    }
}
