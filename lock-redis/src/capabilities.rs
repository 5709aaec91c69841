use std::time::Duration;

use lock_core::{Capabilities, Consistency, TokenDurability, TtlRange};

/// The backend's name in errors and reports.
pub(crate) const BACKEND: &str = "redis";

/// What [`RedisLock`](crate::RedisLock) can do.
///
/// - Exclusion is best effort: a failover to a replica that had not received the lock grants it twice, with sentinels, in a
///   cluster, and behind an address that is moved to another server.
/// - With sentinels, a cluster or replicas it relies on clocks, too: those of servers that take over from each other may be apart by
///   [`with_max_clock_offset`](crate::RedisLockBuilder::with_max_clock_offset), 500 ms unless set. A client's own capabilities have
///   a shortest TTL that is longer by this.
/// - Waiters of one client are served in arrival order, those of different clients in no particular order. Waiters of
///   one client hand a lock on among themselves for 20 ms at most, or until the first release after that.
/// - Tokens come from a counter that is never behind the server's clock, so they survive the loss of the store's data.
///
/// ```
/// use lock_core::Consistency;
///
/// let redis = lock_redis::capabilities();
/// assert_eq!(redis.consistency, Consistency::BestEffort);
/// assert!(redis.push_wake_up && !redis.fifo);
/// ```
#[must_use]
pub const fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new(BACKEND, Consistency::BestEffort);
    capabilities.fencing = Some(TokenDurability::ServerClock);
    capabilities.ttl = TtlRange::new(Duration::from_millis(100), Duration::from_secs(30 * 24 * 3600), Duration::from_millis(1));
    capabilities.push_wake_up = true;
    capabilities.push_loss = true;
    capabilities.inspect = true;
    capabilities.force_release = true;
    capabilities.metadata = true;
    capabilities
}
