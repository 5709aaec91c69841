use std::time::Duration;

use lock_core::{AcquireOptions, Capabilities, ErrorKind, LockError, Terms};

/// For how much of a lock's TTL a guard relies on it.
///
/// A server replicates and saves an expiry as an instant of its own clock. Whoever takes over with
/// what it wrote applies its own clock, and ends the lock earlier by as much as that is ahead. So a
/// guard ends earlier by the largest offset that is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    offset: Duration,
}

/// Where another server may take over, unless said otherwise: clocks that are kept by NTP are much
/// closer.
pub(crate) const DEFAULT_OFFSET: Duration = Duration::from_millis(500);

impl Validity {
    pub(crate) fn new(offset: Duration) -> Self {
        Self { offset }
    }

    /// For how long after it was asked for a lock with this TTL can be relied on.
    pub(crate) fn of(self, ttl: Duration) -> Duration {
        ttl.saturating_sub(self.offset)
    }

    /// The same capabilities with TTLs that leave as much to rely on as the shortest one does
    /// otherwise.
    pub(crate) fn applied_to(self, mut capabilities: Capabilities) -> Capabilities {
        capabilities.ttl.min += self.offset;
        capabilities
    }

    /// Resolves options, and refuses a TTL that leaves nothing to rely on.
    pub(crate) fn resolve(
        self,
        options: AcquireOptions,
        capabilities: &Capabilities,
        default: Duration,
    ) -> Result<Terms, LockError> {
        let usable = self.applied_to(capabilities.clone());
        let (ttl, offset, least) = match (
            options.clone().resolve(&usable, default),
            options.resolve(capabilities, default),
        ) {
            (Err(_), Ok(terms)) => (terms.ttl, self.offset, usable.ttl.min),
            (resolved, _) => return resolved,
        };
        Err(LockError::new(
            ErrorKind::InvalidOptions,
            format!(
                "the TTL of {ttl:?} leaves too little after the max_clock_offset of {offset:?}; ask for at least {least:?}, or lower it"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::capabilities;

    #[test]
    fn a_ttl_that_the_clock_offset_uses_up_is_refused() {
        let validity = Validity::new(Duration::from_millis(500));
        let resolve = |millis| {
            let options = AcquireOptions::new().with_ttl(Duration::from_millis(millis));
            validity.resolve(options, &capabilities(), Duration::from_secs(30))
        };
        assert_eq!(
            validity.of(resolve(600).unwrap().ttl),
            Duration::from_millis(100)
        );
        for millis in [100, 500, 599] {
            let error = resolve(millis).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions);
            assert!(
                error.to_string().contains("max_clock_offset of 500ms")
                    && error.to_string().contains("600ms"),
                "{error}"
            );
        }
        assert_eq!(
            validity.applied_to(capabilities()).ttl.min,
            Duration::from_millis(600)
        );
    }
}
