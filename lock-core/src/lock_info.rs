use std::time::{Duration, SystemTime};

use crate::{FencingToken, LockName, OwnerId};

/// Holders of a lock and the number of its waiters, as the store knows them; what a store does not
/// know is `None`.
///
/// A snapshot: by the time it arrives the lock may have changed hands. For people and dashboards,
/// not for deciding whether to go ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockInfo {
    /// The lock.
    pub name: LockName,
    /// Holders: one, or several in [shared mode](crate::Mode::Shared). Never empty.
    pub holders: Vec<LockHolder>,
    /// Number of others that wait in the store's queue.
    pub waiters: Option<u64>,
}

/// One holder of a lock, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LockHolder {
    /// The holder's acquisition.
    pub owner: OwnerId,
    /// The holder's token.
    pub token: Option<FencingToken>,
    /// Time at which the holder acquired, on the clock of the machine that recorded it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::serialize::since"))]
    pub since: Option<SystemTime>,
    /// Text that the holder gave as
    /// [`AcquireOptions::with_metadata`](crate::AcquireOptions::with_metadata).
    pub metadata: Option<String>,
    /// Time until the store drops the holder unless it renews; `None` if unknown or never.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub expires_in: Option<Duration>,
}

impl LockInfo {
    /// A lock with one holder.
    #[must_use]
    pub fn new(name: LockName, holder: LockHolder) -> Self {
        Self {
            name,
            holders: vec![holder],
            waiters: None,
        }
    }

    /// The holder, or the first of several.
    ///
    /// # Panics
    ///
    /// If [`holders`](Self::holders) has been emptied.
    #[must_use]
    pub fn holder(&self) -> &LockHolder {
        &self.holders[0]
    }
}

impl LockHolder {
    /// A holder of which nothing but the owner id is known; set the other fields as far as the
    /// store tells.
    #[must_use]
    pub fn new(owner: OwnerId) -> Self {
        Self {
            owner,
            token: None,
            since: None,
            metadata: None,
            expires_in: None,
        }
    }
}
