use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{LockName, backend::locked};
use tokio::time::Instant;

use super::{metric_names, recorder::Recorder};

/// Names that tasks of this process wait for, to time hand-overs. A name that nobody waits for
/// takes no memory.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<LockName, Waiters>>);

#[derive(Debug, Default)]
struct Waiters {
    count: usize,
    /// Instant at which the last guard ended, unless somebody has been granted since.
    ended: Option<Instant>,
}

impl Waiting {
    pub(super) fn enter<'w>(
        self: &'w Arc<Self>,
        name: &'w LockName,
        recorder: &'w Recorder,
    ) -> Wait<'w> {
        recorder.change(metric_names::WAITERS, name, 1.0);
        let mut waiting = locked(&self.0);
        let waiters = waiting.entry(name.clone()).or_default();
        waiters.count += 1;
        Wait {
            waiting: self,
            name,
            recorder,
        }
    }

    /// Notes that a guard has ended.
    pub(super) fn ended(&self, name: &LockName) {
        if let Some(waiters) = locked(&self.0).get_mut(name) {
            waiters.ended = Some(Instant::now());
        }
    }

    fn hand_over(&self, name: &LockName) -> Option<Duration> {
        let ended = locked(&self.0).get_mut(name)?.ended.take()?;
        Some(ended.elapsed())
    }

    fn leave(&self, name: &LockName) {
        let mut waiting = locked(&self.0);
        if let Some(waiters) = waiting.get_mut(name) {
            waiters.count -= 1;
            if waiters.count == 0 {
                waiting.remove(name);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        locked(&self.0).len()
    }
}

/// One acquire under way.
pub(super) struct Wait<'w> {
    waiting: &'w Waiting,
    name: &'w LockName,
    recorder: &'w Recorder,
}

impl Wait<'_> {
    /// Times the hand-over, if the lock was handed over.
    pub(super) fn granted(self) {
        if let Some(took) = self.waiting.hand_over(self.name) {
            self.recorder
                .time(metric_names::HANDOVER, Some(self.name), &[], took);
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.leave(self.name);
        self.recorder.change(metric_names::WAITERS, self.name, -1.0);
    }
}
