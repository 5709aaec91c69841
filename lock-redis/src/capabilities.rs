use std::time::Duration;

use lock_core::{Capabilities, Consistency, TokenDurability, TtlRange};

/// The backend's name in errors and reports.
pub(crate) const BACKEND: &str = "redis";

/// Returns what [`RedisLock`](crate::RedisLock) can do.
///
/// - Exclusion is best effort: a failover to a replica that had not received the lock grants it
///   twice, with sentinels, in a cluster, and behind an address that is moved to another server.
/// - With sentinels, a cluster or replicas it relies on clocks, too: those of servers that take
///   over from each other may be apart by
///   [`with_max_clock_offset`](crate::RedisLockBuilder::with_max_clock_offset), 500 ms unless set.
///   A client's own capabilities have a shortest TTL that is longer by this.
/// - Waiters of one client are served in arrival order, and so are the clients that wait. But a
///   client hands a lock on among its own waiters for 20 ms before another one has its turn, so
///   FIFO is not declared.
/// - Tokens come from a counter that is never behind the server's clock, so they survive the
///   counter's end, ten minutes after the lock's unless set, and the loss of the store's data; but
///   for those that were raised above the clock, which survive the former alone.
///
/// ```
/// use lock_core::Consistency;
///
/// let redis = lock_redis::capabilities();
/// assert_eq!(redis.consistency, Consistency::BestEffort);
/// assert!(redis.push_wake_up && !redis.fifo);
/// ```
#[must_use]
pub fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new(BACKEND, Consistency::BestEffort);
    capabilities.fencing = Some(TokenDurability::ServerClock);
    capabilities.ttl = TtlRange::new(
        Duration::from_millis(100),
        Duration::from_secs(30 * 24 * 3600),
        Duration::from_millis(1),
    );
    capabilities.push_wake_up = true;
    capabilities.push_loss = true;
    capabilities.inspect = true;
    capabilities.force_release = true;
    capabilities.watch = true;
    capabilities.list = true;
    capabilities.raise_token = true;
    capabilities.metadata = true;
    capabilities
}
