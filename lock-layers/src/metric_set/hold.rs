use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_core::{AcquisitionObserver, GuardState, LockError, LockName, Operation, backend::locked};
use tokio::time::Instant;
use tracing::Span;

use super::{metric_names, recorder::Recorder, waiting::Waiting};
use crate::{observed::GuardObserver, words};

/// One guard.
#[derive(Debug)]
pub(super) struct Hold {
    name: LockName,
    recorder: Recorder,
    waiting: Arc<Waiting>,
    since: Instant,
    ended: AtomicBool,
    releasing: Mutex<Option<Instant>>,
}

impl Hold {
    pub(super) fn new(name: &LockName, recorder: &Recorder, waiting: &Arc<Waiting>) -> Self {
        recorder.change(metric_names::HOLDERS, name, 1.0);
        Self {
            name: name.clone(),
            recorder: recorder.clone(),
            waiting: Arc::clone(waiting),
            since: Instant::now(),
            ended: AtomicBool::new(false),
            releasing: Mutex::new(None),
        }
    }

    fn end(&self, lost: Option<&'static str>) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let name = Some(&self.name);
        self.waiting.ended(&self.name);
        self.recorder
            .change(metric_names::HOLDERS, &self.name, -1.0);
        let end = lost.map_or(words::RELEASED, |_| words::LOST);
        let held = self.since.elapsed();
        self.recorder
            .time(metric_names::HOLD, name, &[("end", end)], held);
        if let Some(reason) = lost {
            self.recorder
                .count(metric_names::LOSSES, name, &[("reason", reason)]);
        }
    }
}

impl AcquisitionObserver for Hold {
    fn renewed(&self, margin: Duration) {
        self.recorder
            .time(metric_names::RENEWAL_MARGIN, Some(&self.name), &[], margin);
    }

    fn ended(&self, end: GuardState) {
        self.end(match end {
            GuardState::Lost(reason) => Some(words::reason(reason)),
            _ => None,
        });
    }
}

impl GuardObserver for Hold {
    fn release_begins(&self) -> Span {
        locked(&self.releasing).get_or_insert_with(Instant::now);
        Span::none()
    }

    fn release_ends(&self, outcome: &Result<(), LockError>) {
        let Some(began) = locked(&self.releasing).take() else {
            return;
        };
        let name = Some(&self.name);
        let word = match outcome {
            Ok(()) => words::RELEASED,
            Err(error) => words::kind(error.kind()),
        };
        self.recorder.time(
            metric_names::RELEASE,
            name,
            &[("outcome", word)],
            began.elapsed(),
        );
        if let Err(error) = outcome {
            self.recorder.error(name, Operation::Release, error);
        }
    }
}

impl Drop for Hold {
    /// A guard of a layer that tells no end has none before.
    fn drop(&mut self) {
        self.end(None);
    }
}
