use std::time::Duration;

/// Settings of the runtime of a client's tasks.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeOptions {
    /// Runs connections, renewals and clean-ups on a thread of the client's own; default: no, they
    /// are on the runtime that connects.
    pub background_thread: bool,
    /// Makes the end of that runtime wait for releases; default: yes.
    pub release_at_exit: bool,
    /// Time for which a runtime may leave its tasks alone until it counts as one that does not
    /// run; default: 1 s, which is also the least.
    pub idle_limit: Duration,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            background_thread: false,
            release_at_exit: true,
            idle_limit: LEAST_IDLE_LIMIT,
        }
    }
}

/// A runtime may be busy for a moment.
pub(super) const LEAST_IDLE_LIMIT: Duration = Duration::from_secs(1);
