use std::time::Duration;

use tokio::time::Instant;

/// The watch of the queue that a process has, or is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Nothing,
    /// Deletions, and perhaps creations.
    Queue {
        creations: bool,
    },
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Replace the watch of the queue. Its events are reported under this number.
    Watch { watch: u64, watched: Watched },
    /// Replace the watch of ends. Its events are reported under this number.
    WatchEnds {
        watch: u64,
        predecessor: String,
        own: Option<String>,
    },
    /// Read the queue.
    Read,
    /// Find out whether the own entry exists, with this create revision, and an older one under the
    /// predecessor's key.
    Check {
        predecessor: String,
        own: String,
        created: i64,
    },
    /// Do nothing until then, unless an event wants attention.
    Sleep { until: Instant },
    /// Nobody waits.
    Close,
}

/// The period of reads although the watch is open: covers a stale member and lost events.
pub(super) const BACKSTOP: Duration = Duration::from_secs(5);
