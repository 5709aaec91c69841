use std::{fmt, time::Duration};

/// Mode of an acquisition: the others that it excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Mode {
    /// Everybody else.
    #[default]
    Exclusive,
    /// Only exclusive holders.
    ///
    /// No backend of this workspace has it yet: all answer [`Unsupported`](crate::ErrorKind::Unsupported). It is here
    /// so that a backend that has it, and says so in [`Capabilities::shared_mode`](crate::Capabilities::shared_mode), does not need
    /// another contract.
    Shared,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

/// Options of an acquisition: everything has a default, so `AcquireOptions::new()` waits without a
/// bound and renews for ever.
///
/// ```
/// use lock_core::AcquireOptions;
/// use std::{fmt, time::Duration};
///
/// let options = AcquireOptions::new()
///     .with_ttl(Duration::from_secs(15))
///     .with_timeout(Duration::from_secs(2))
///     .with_max_hold(Duration::from_secs(600))
///     .with_metadata("nightly report on host-7");
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct AcquireOptions {
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    ttl: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(rename = "without_renewal"))]
    no_renewal: bool,
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
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

    /// Sets the TTL, the time for which the store keeps the lock without hearing from the holder;
    /// default: the client's, 30 s unless configured otherwise. The range is in
    /// [`Capabilities::ttl`](crate::Capabilities::ttl).
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the longest wait for the lock, more than zero; default: without a bound. `try_acquire`
    /// ignores it.
    ///
    /// When it has passed the error is [`TimedOut`](crate::ErrorKind::TimedOut) if somebody else held the
    /// lock, and then names the holder where that is known. It is
    /// [`Unavailable`](crate::ErrorKind::Unavailable), with the store's last failure as its cause, if the
    /// store never answered, or has left its requests unanswered for the last half of the wait, or
    /// for as long as the backend lets a request take if that is less. A shorter failure at the end
    /// is no outage. An [outage](crate::DistributedLock::acquire_named) of a TTL ends the wait
    /// earlier.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Turns renewal off: the lock ends one TTL after it was acquired, unless released before.
    #[must_use]
    pub fn without_renewal(mut self) -> Self {
        self.no_renewal = true;
        self
    }

    /// Ends the lock this long after it was acquired, even if its holder is alive: a stuck holder
    /// cannot hold for ever. The lock is free then, and the TTL is no longer than that, as far as
    /// the backend's range allows. More than zero; default: no such bound.
    #[must_use]
    pub fn with_max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// Adds a note for whoever inspects the lock: who holds it and why. At most
    /// [`AcquireOptions::MAX_METADATA`] bytes. Everybody who can read the store can read it. Needs
    /// [`Capabilities::metadata`](crate::Capabilities::metadata).
    #[must_use]
    pub fn with_metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = Some(metadata.into());
        self
    }

    /// Sets the mode, which says whom the lock excludes; default: everybody else.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// TTL that [`with_ttl`](Self::with_ttl) has set.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Timeout that [`with_timeout`](Self::with_timeout) has set.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns true if the lock is renewed: unless [`without_renewal`](Self::without_renewal) was
    /// called.
    #[must_use]
    pub fn renews(&self) -> bool {
        !self.no_renewal
    }

    /// Maximum hold that [`with_max_hold`](Self::with_max_hold) has set.
    #[must_use]
    pub fn max_hold(&self) -> Option<Duration> {
        self.max_hold
    }

    /// Note that [`with_metadata`](Self::with_metadata) has set.
    #[must_use]
    pub fn metadata(&self) -> Option<&str> {
        self.metadata.as_deref()
    }

    pub(crate) fn into_metadata(self) -> Option<String> {
        self.metadata
    }

    /// Mode that [`with_mode`](Self::with_mode) has set.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }
}
