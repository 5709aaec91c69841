use std::time::{Duration, SystemTime};

use crate::{FencingToken, OwnerId};

/// Who holds a lock, as the store knows it; what a store does not know is `None`.
///
/// A snapshot: by the time it arrives the lock may have changed hands. For people and dashboards, not for deciding
/// whether to go ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// The holder's acquisition.
    pub owner: OwnerId,
    /// The holder's token.
    pub token: Option<FencingToken>,
    /// When the holder acquired, on the clock of whoever wrote it down.
    pub since: Option<SystemTime>,
    /// What the holder gave as [`AcquireOptions::with_metadata`](crate::AcquireOptions::with_metadata).
    pub metadata: Option<String>,
    /// How long until the store drops the holder unless it renews; `None` if unknown or never.
    pub expires_in: Option<Duration>,
    /// How many others wait in the store's queue.
    pub waiters: Option<u64>,
}

impl LockInfo {
    /// A holder of whom nothing but the owner id is known; set the other fields as far as the store tells.
    #[must_use]
    pub fn new(owner: OwnerId) -> Self {
        Self { owner, token: None, since: None, metadata: None, expires_in: None, waiters: None }
    }
}
