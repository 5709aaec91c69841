//! The queue of one lock, as this client sees it.

mod position;
mod predecessor;
mod sink;
mod snapshot;
mod state;
mod step;
mod wait_state;
mod waiters;
mod watcher;

pub(crate) use position::{LONG_QUEUE, QueuePosition, QueueRead};
pub(crate) use snapshot::Snapshot;
pub(crate) use state::WaitOutcome;
pub(crate) use waiters::Waiter;
pub(crate) use watcher::QueueWatchers;
