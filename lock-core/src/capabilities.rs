use std::{borrow::Cow, fmt, time::Duration};

/// Capabilities of a backend, as plain data, known without connecting.
///
/// The conformance suite runs the cases of every capability that a backend declares, and checks
/// that a request for one that it lacks fails with a clear
/// [`Unsupported`](crate::ErrorKind::Unsupported) error.
///
/// ```
/// use lock_core::{Capabilities, Consistency};
///
/// let mut capabilities = Capabilities::new("my-store", Consistency::BestEffort);
/// capabilities.inspect = true;
/// assert!(!capabilities.fifo);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend's name in errors and reports, usually its URL scheme.
    pub backend: Cow<'static, str>,
    /// Extent to which mutual exclusion can be relied on.
    pub consistency: Consistency,
    /// Waiters are granted in the order in which they arrived at the store.
    pub fifo: bool,
    /// Events that the growth of fencing tokens survives; `None` if guards carry no tokens.
    pub fencing: Option<TokenDurability>,
    /// Range of TTLs that can be asked for.
    pub ttl: TtlRange,
    /// A release wakes a waiter without polling.
    pub push_wake_up: bool,
    /// A guard whose entry is removed in the store learns of it within a fraction of the TTL, not
    /// at its next renewal.
    pub push_loss: bool,
    /// [`inspect`](crate::DistributedLock::inspect_named) tells who holds a lock.
    pub inspect: bool,
    /// [`inspect`](crate::DistributedLock::inspect_named) tells how many wait.
    pub queue_length: bool,
    /// [`force_release`](crate::DistributedLock::force_release_named) works.
    pub force_release: bool,
    /// [`watch`](crate::DistributedLock::watch_named) tells who holds a lock whenever that changes.
    pub watch: bool,
    /// [`list`](crate::DistributedLock::list) returns all locks that somebody holds.
    pub list: bool,
    /// [`raise_token`](crate::LockGuard::raise_token) works.
    pub raise_token: bool,
    /// [`with_metadata`](crate::AcquireOptions::with_metadata) works.
    pub metadata: bool,
    /// [`Mode::Shared`](crate::Mode::Shared) works.
    pub shared_mode: bool,
    /// Longest time, on top of the TTL, until the next waiter has the lock when a holder dies.
    pub crash_bound: Duration,
}

impl Capabilities {
    /// A backend that does nothing beyond acquire, try-acquire and release.
    ///
    /// The TTL ranges from 1 ms to 30 days in steps of 1 ms, and the crash bound is 2 s.
    #[must_use]
    pub fn new(backend: impl Into<Cow<'static, str>>, consistency: Consistency) -> Self {
        Self {
            backend: backend.into(),
            consistency,
            fifo: false,
            fencing: None,
            ttl: TtlRange {
                min: Duration::from_millis(1),
                max: Duration::from_secs(30 * 24 * 3600),
                granularity: Duration::from_millis(1),
            },
            push_wake_up: false,
            push_loss: false,
            inspect: false,
            queue_length: false,
            force_release: false,
            watch: false,
            list: false,
            raise_token: false,
            metadata: false,
            shared_mode: false,
            crash_bound: Duration::from_secs(2),
        }
    }
}

/// Extent to which mutual exclusion can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Consistency {
    /// Through any failure that the store's consensus survives.
    Linearizable,
    /// While one server keeps its data; a failover may grant a lock twice.
    BestEffort,
    /// Among the tasks and threads of one process.
    ProcessLocal,
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::BestEffort => "best-effort",
            Self::ProcessLocal => "process-local",
        })
    }
}

impl fmt::Display for TokenDurability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::StoreData => "store-data",
            Self::ServerClock => "server-clock",
        })
    }
}

/// Events that the growth of fencing tokens survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TokenDurability {
    /// The lifetime of the backend value in this process.
    Process,
    /// Restarts and failovers as long as the store keeps its data.
    StoreData,
    /// Also the loss of the store's data, as long as its clock does not go back.
    ServerClock,
}

/// Range of TTLs that a backend accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TtlRange {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
    /// A TTL is rounded up to a multiple of this.
    pub granularity: Duration,
}

impl TtlRange {
    /// From `min` to `max` in steps of `granularity`.
    #[must_use]
    pub const fn new(min: Duration, max: Duration, granularity: Duration) -> Self {
        Self {
            min,
            max,
            granularity,
        }
    }
}
