use std::time::Duration;

use lock_core::{Capabilities, Consistency, TokenDurability, TtlRange};

/// Capabilities of this backend.
#[must_use]
pub fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new(crate::BACKEND, Consistency::Linearizable);
    capabilities.fifo = true;
    capabilities.fencing = Some(TokenDurability::StoreData);
    // The server's minimum with default settings is 1.5 election timeouts, rounded up.
    capabilities.ttl = TtlRange::new(
        Duration::from_secs(2),
        Duration::from_secs(30 * 24 * 3600),
        Duration::from_secs(1),
    );
    capabilities.push_wake_up = true;
    capabilities.push_loss = true;
    capabilities.inspect = true;
    capabilities.queue_length = true;
    capabilities.force_release = true;
    capabilities.watch = true;
    capabilities.list = true;
    capabilities.metadata = true;
    // Expiry is checked every 500 ms, and a new leader extends all leases by an election.
    capabilities.crash_bound = Duration::from_secs(2);
    capabilities
}
