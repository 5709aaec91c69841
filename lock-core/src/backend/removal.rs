use std::time::Duration;

use async_trait::async_trait;

/// Removal of something from the store that nobody waits for: tried once more, elsewhere, if its
/// runtime ends first.
#[async_trait]
pub trait Removal: Send + Sync + 'static {
    /// Removes it, or gives up. Started again if the runtime ends meanwhile, so it must be safe to
    /// repeat.
    async fn remove(&self);

    /// Describes what stays locked without it, and for how long at most.
    fn left(&self) -> Leftover;
}

/// Remains that a [`Removal`] leaves in the store if it does not happen.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Description, for the log.
    pub what: String,
    /// Time until the store removes it by itself.
    pub ends_in: Duration,
}
