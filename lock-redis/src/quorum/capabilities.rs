use lock_core::{Capabilities, TokenDurability};

use crate::capabilities::capabilities;

/// The backend's name in errors and reports.
pub(crate) const BACKEND: &str = "redis+quorum";

/// Returns what [`RedisQuorumLock`](crate::RedisQuorumLock) can do.
///
/// - Exclusion is best effort: it survives the failure of any minority of the servers, but not that
///   servers of a majority lose their data within a TTL.
/// - The servers' clocks need not agree. One that is set forward while a lock is held ends it
///   earlier; see [`with_max_clock_offset`](crate::RedisQuorumLockBuilder::with_max_clock_offset).
/// - Waiters of one client are served in arrival order. The clients that wait queue up on one of the
///   servers, but a majority without that server may grant the lock to somebody else: so FIFO is not
///   declared.
/// - Tokens grow for as long as the servers keep their data. A counter that has ended, ten minutes
///   after its lock unless set, goes on from its server's clock; a client's clock sets no tokens.
///
/// ```
/// use lock_core::TokenDurability;
///
/// assert_eq!(lock_redis::quorum_capabilities().fencing, Some(TokenDurability::StoreData));
/// ```
#[must_use]
pub fn quorum_capabilities() -> Capabilities {
    let mut quorum = capabilities();
    quorum.backend = BACKEND.into();
    quorum.fencing = Some(TokenDurability::StoreData);
    quorum.list = false;
    quorum.raise_token = false;
    quorum
}
