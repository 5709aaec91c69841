use std::time::Duration;

use crate::{Capabilities, ErrorKind, LockError};

/// Whom an acquisition excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Everybody else.
    #[default]
    Exclusive,
    /// Only exclusive holders.
    ///
    /// No backend of this workspace has it yet: all answer [`ErrorKind::Unsupported`]. It is here so that one that has
    /// it, and says so in [`Capabilities::shared_mode`], does not need another contract.
    Shared,
}

/// How to acquire: everything has a default, so `AcquireOptions::new()` waits without a bound and renews for ever.
///
/// ```
/// use lock_core::AcquireOptions;
/// use std::time::Duration;
///
/// let options = AcquireOptions::new()
///     .with_ttl(Duration::from_secs(15))
///     .with_timeout(Duration::from_secs(2))
///     .with_max_hold(Duration::from_secs(600))
///     .with_metadata("nightly report on host-7");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcquireOptions {
    ttl: Option<Duration>,
    timeout: Option<Duration>,
    no_renewal: bool,
    max_hold: Option<Duration>,
    metadata: Option<String>,
    mode: Mode,
}

impl AcquireOptions {
    /// Longest metadata, in bytes.
    pub const MAX_METADATA: usize = 4096;

    /// Longest timeout and longest maximum hold: a hundred years.
    pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the store keeps the lock without hearing from the holder; default: the client's, 30 s unless
    /// configured otherwise. The range is in [`Capabilities::ttl`].
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long to wait for the lock, more than zero; default: without a bound. `try_acquire` ignores it.
    ///
    /// When it has passed the error is [`TimedOut`](ErrorKind::TimedOut) if somebody else held the lock, and then names
    /// the holder where that is known. It is [`Unavailable`](ErrorKind::Unavailable), with the store's last failure as its
    /// cause, if the store never answered, or not since it failed, or not for longer than a request may take. An
    /// [outage](crate::DistributedLock::acquire_with) of a TTL ends the wait earlier.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Do not renew: the lock ends one TTL after it was acquired, unless released before.
    #[must_use]
    pub fn without_renewal(mut self) -> Self {
        self.no_renewal = true;
        self
    }

    /// End the lock this long after it was acquired, however alive its holder: a stuck holder cannot hold for ever. The lock
    /// is free then, and the TTL is no longer than that, as far as the range of the backend's allows.
    /// More than zero; default: no such bound.
    #[must_use]
    pub fn with_max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// A note for whoever inspects the lock: who holds it and why. At most [`AcquireOptions::MAX_METADATA`] bytes.
    /// Everybody who can read the store can read it. Needs [`Capabilities::metadata`].
    #[must_use]
    pub fn with_metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = Some(metadata.into());
        self
    }

    /// Whom to exclude; default: everybody else.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Checks the options against a backend and fills in its default TTL: what a backend calls first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOptions`] for a value out of range, [`ErrorKind::Unsupported`] for an option that the
    /// backend lacks.
    pub fn resolve(self, capabilities: &Capabilities, default_ttl: Duration) -> Result<Terms, LockError> {
        let unsupported = |what: &str| {
            let backend = capabilities.backend;
            Err(LockError::new(ErrorKind::Unsupported, format!("{backend} has no {what}")).on(backend))
        };
        if self.mode == Mode::Shared && !capabilities.shared_mode {
            return unsupported("shared mode; use Mode::Exclusive");
        }
        if self.metadata.is_some() && !capabilities.metadata {
            return unsupported("metadata; leave it out");
        }
        if self.metadata.as_ref().is_some_and(|m| m.len() > Self::MAX_METADATA) {
            return invalid(format!("the metadata exceeds {} bytes; shorten it", Self::MAX_METADATA));
        }
        for (what, value) in [("timeout", self.timeout), ("maximum hold", self.max_hold)] {
            match value {
                Some(Duration::ZERO) => {
                    return invalid(format!("the {what} is zero; leave it out for no bound, or use try_acquire not to wait"));
                }
                Some(value) if value > Self::MAX_DURATION => {
                    return invalid(format!("the {what} is over a hundred years; leave it out for no bound"));
                }
                _ => {}
            }
        }
        let ttl = ttl_in_range(self.ttl.unwrap_or(default_ttl), capabilities)?;
        let ttl = match self.max_hold.map(ttl_for) {
            // A stuck or dead holder's lock ends with its lease: that is to be no longer than the hold may be.
            Some(enough) if enough < ttl => ttl_in_range(enough.max(capabilities.ttl.min), capabilities)?,
            _ => ttl,
        };
        Ok(Terms { ttl, timeout: self.timeout, renew: !self.no_renewal, max_hold: self.max_hold, metadata: self.metadata, mode: self.mode })
    }
}

/// The least TTL whose [deadline](crate::backend::deadline) a hold of this length does not reach.
fn ttl_for(hold: Duration) -> Duration {
    // The deadline rule takes 1 % and 2 ms away.
    hold + hold / 99 + Duration::from_micros(2_500)
}

fn ttl_in_range(ttl: Duration, capabilities: &Capabilities) -> Result<Duration, LockError> {
    let (range, backend) = (capabilities.ttl, capabilities.backend);
    if ttl < range.min {
        return invalid(format!("the TTL of {ttl:?} is below {backend}'s minimum of {:?}; ask for at least that", range.min));
    }
    if ttl > range.max {
        return invalid(format!("the TTL of {ttl:?} is above {backend}'s maximum of {:?}; renewal keeps a shorter one alive", range.max));
    }
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos());
    if let (Ok(ttl), Ok(step)) = (nanos(ttl), nanos(range.granularity))
        && let Some(rounded) = ttl.checked_next_multiple_of(step.max(1))
    {
        return Ok(Duration::from_nanos(rounded));
    }
    // Over 584 years.
    let step = range.granularity.as_nanos().max(1);
    let rounded = ttl.as_nanos().div_ceil(step) * step;
    Ok(Duration::new((rounded / 1_000_000_000) as u64, (rounded % 1_000_000_000) as u32))
}

fn invalid<T>(message: String) -> Result<T, LockError> {
    Err(LockError::new(ErrorKind::InvalidOptions, message))
}

/// [`AcquireOptions`] after [`AcquireOptions::resolve`]: every value is in range and supported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// The TTL to ask the store for, a multiple of its granularity.
    pub ttl: Duration,
    /// How long to wait.
    pub timeout: Option<Duration>,
    /// Whether to renew.
    pub renew: bool,
    /// When to stop renewing, counted from the acquisition.
    pub max_hold: Option<Duration>,
    /// A note for whoever inspects the lock.
    pub metadata: Option<String>,
    /// Whom to exclude.
    pub mode: Mode,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Consistency, TtlRange};

    fn store() -> Capabilities {
        let mut store = Capabilities::new("store", Consistency::BestEffort);
        store.ttl = TtlRange::new(Duration::from_secs(2), Duration::from_secs(3600), Duration::from_secs(1));
        store
    }

    fn resolve(options: AcquireOptions) -> Result<Terms, LockError> {
        options.resolve(&store(), Duration::from_secs(30))
    }

    #[test]
    fn defaults_wait_and_renew_for_ever() {
        let terms = resolve(AcquireOptions::new()).unwrap();
        assert_eq!((terms.ttl, terms.timeout, terms.renew, terms.max_hold), (Duration::from_secs(30), None, true, None));
    }

    #[test]
    fn ttl_is_rounded_up_to_the_granularity() {
        let terms = resolve(AcquireOptions::new().with_ttl(Duration::from_millis(2001))).unwrap();
        assert_eq!(terms.ttl, Duration::from_secs(3));
    }

    #[test]
    fn the_lease_is_no_longer_than_the_maximum_hold() {
        for (ttl, most, expected) in [(30, 1.0, 2), (30, 2.5, 3), (30, 5.0, 6), (30, 29.9, 30), (30, 60.0, 30), (2, 60.0, 2)] {
            let most = Duration::from_secs_f64(most);
            let terms = resolve(AcquireOptions::new().with_ttl(Duration::from_secs(ttl)).with_max_hold(most)).unwrap();
            assert_eq!((terms.ttl, terms.max_hold), (Duration::from_secs(expected), Some(most)));
        }
        for hold in [1, 999, 1_000_000, 3_600_000_000_000].map(Duration::from_micros) {
            let sent = crate::backend::Moment::from_origin(Duration::from_secs(1));
            assert!(crate::backend::deadline(sent, ttl_for(hold)) >= sent + hold, "{hold:?}");
        }
    }

    #[test]
    fn out_of_range_is_refused() {
        let new = AcquireOptions::new;
        for options in [
            new().with_ttl(Duration::ZERO),
            new().with_ttl(Duration::from_millis(1999)),
            new().with_ttl(Duration::MAX),
            new().with_timeout(Duration::ZERO),
            new().with_timeout(Duration::MAX),
            new().with_max_hold(Duration::ZERO),
            new().with_max_hold(Duration::MAX),
        ] {
            assert_eq!(resolve(options.clone()).unwrap_err().kind(), ErrorKind::InvalidOptions, "{options:?}");
        }
    }

    #[test]
    fn missing_capabilities_are_unsupported() {
        for options in [AcquireOptions::new().with_mode(Mode::Shared), AcquireOptions::new().with_metadata("x")] {
            assert_eq!(resolve(options.clone()).unwrap_err().kind(), ErrorKind::Unsupported, "{options:?}");
        }
    }
}
