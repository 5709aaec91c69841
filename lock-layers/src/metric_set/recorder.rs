use std::{sync::Arc, time::Duration};

use lock_core::{ErrorKind, LockError, LockName, Operation};
use metrics::{Label, SharedString};

use super::metric_names;
use crate::words;

/// Records metrics with the labels that all of them have.
///
/// Looks the exporter up for each record: it may be installed later, or be another one on another
/// thread.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    backend: SharedString,
    lock_names: bool,
}

impl Recorder {
    pub(super) fn new(backend: String, lock_names: bool) -> Self {
        Self {
            backend: SharedString::from_shared(Arc::from(backend)),
            lock_names,
        }
    }

    pub(super) fn count(
        &self,
        metric: &'static str,
        name: Option<&LockName>,
        more: &[(&'static str, &'static str)],
    ) {
        metrics::counter!(metric, self.labels(name, more)).increment(1);
    }

    pub(super) fn time(
        &self,
        metric: &'static str,
        name: Option<&LockName>,
        more: &[(&'static str, &'static str)],
        duration: Duration,
    ) {
        metrics::histogram!(metric, self.labels(name, more)).record(duration);
    }

    /// Adds to a gauge, or takes away.
    pub(super) fn change(&self, metric: &'static str, name: &LockName, by: f64) {
        metrics::gauge!(metric, self.labels(Some(name), &[])).increment(by);
    }

    pub(super) fn error(&self, name: Option<&LockName>, operation: Operation, error: &LockError) {
        if !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Lost) {
            let labels = [
                ("operation", self::operation(operation)),
                ("kind", words::kind(error.kind())),
            ];
            self.count(metric_names::ERRORS, name, &labels);
        }
    }

    fn labels(&self, name: Option<&LockName>, more: &[(&'static str, &'static str)]) -> Vec<Label> {
        let mut labels = Vec::with_capacity(more.len() + 2);
        labels.push(Label::new("backend", self.backend.clone()));
        labels.extend(
            more.iter()
                .map(|(key, value)| Label::from_static_parts(key, value)),
        );
        if let Some(name) = name.filter(|_| self.lock_names) {
            labels.push(Label::new("lock", name.as_str().to_owned()));
        }
        labels
    }
}

pub(super) fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Acquire => "acquire",
        Operation::TryAcquire => "try-acquire",
        Operation::Release => "release",
        Operation::Inspect => "inspect",
        Operation::Watch => "watch",
        Operation::List => "list",
        Operation::ForceRelease => "force-release",
        Operation::Shutdown => "shutdown",
        _ => "other",
    }
}
