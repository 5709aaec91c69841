use std::time::Duration;

use lock_core::{Capabilities, Consistency, TokenDurability, TtlRange};

/// The TTL of acquisitions that do not ask for one.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// Lists what a [`MemLock`](crate::MemLock) can do.
#[must_use]
pub fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::new("mem", Consistency::ProcessLocal);
    capabilities.fifo = true;
    capabilities.fencing = Some(TokenDurability::Process);
    // Below that, the margin for drift would leave nothing of it.
    capabilities.ttl = TtlRange::new(
        Duration::from_millis(10),
        capabilities.ttl.max,
        Duration::from_millis(1),
    );
    capabilities.push_wake_up = true;
    capabilities.push_loss = true;
    capabilities.inspect = true;
    capabilities.queue_length = true;
    capabilities.force_release = true;
    capabilities.watch = true;
    capabilities.list = true;
    capabilities.raise_token = true;
    capabilities.metadata = true;
    capabilities.crash_bound = Duration::from_millis(100);
    capabilities
}
