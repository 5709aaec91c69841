use std::{fmt, time::Duration};

use lock_core::backend::Clock;
use polylock::migrate::Phase;
use serde::{Deserialize, Serialize};

/// Something that happened, as reported by whoever did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) at: Instant,
    /// The process that reports it; a restarted process has a new number. The home is 0.
    pub(crate) process: u32,
    pub(crate) kind: Kind,
}

/// Microseconds on the clock that all processes of the machine share, and that guards' deadlines
/// are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Instant(pub(crate) u64);

/// Names one attempt to acquire, and the acquisition that came of it: unique in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Ask(pub(crate) u64);

/// Kind of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// About to acquire.
    Asked {
        ask: Ask,
        register: u32,
        how: How,
        ttl: Duration,
    },
    /// Got a guard, which was valid from `at` until `valid_until` unless renewed. `valid_until` is
    /// not later than `at` if the guard was lost already.
    Granted {
        ask: Ask,
        token: u64,
        valid_until: Instant,
    },
    /// Somebody else has the lock.
    NotFree { ask: Ask },
    /// The time was up.
    TimedOut { ask: Ask },
    /// Gave up: dropped the future.
    GaveUp { ask: Ask },
    /// An error from the store.
    Failed { ask: Ask, error: String },
    /// The guard said that it is valid, and until when.
    Held { ask: Ask, valid_until: Instant },
    /// The guard said that it is lost.
    Lost { ask: Ask, why: String },
    /// The register refused the token; `still_held` if the guard still said that it was valid.
    Refused { ask: Ask, still_held: bool },
    /// The register acknowledged the increment.
    Incremented { ask: Ask, value: u64 },
    /// About to release or drop the guard.
    Ending { ask: Ask },
    /// Has released or dropped it.
    Ended { ask: Ask, error: Option<String> },
    /// The client is shut down.
    Closed { error: Option<String> },
    /// The home's register took a write.
    Wrote {
        ask: Ask,
        register: u32,
        token: u64,
        value: u64,
    },
    /// The home disturbs the store.
    FaultBegan { fault: String, majority: bool },
    /// The store is healthy again.
    FaultEnded { fault: String },
    /// The process is stopped.
    Paused { process: u32 },
    /// The process goes on.
    Resumed { process: u32 },
    /// The process is cut off from a store that others reach.
    CutOff { process: u32 },
    /// The process reaches all stores again.
    Rejoined { process: u32 },
    /// The process is gone.
    Killed { process: u32 },
    /// Entry that the store had for a lock, asked at `asked` on a path that no fault touches: the
    /// acquisition with this token, or 0 for none that is known, until `expires` unless renewed.
    Seen {
        register: u32,
        asked: Instant,
        token: u64,
        expires: Instant,
    },
    /// The store answered a request that was sent at `asked` on a path that no fault touches.
    Served { asked: Instant },
    /// The store has had at least this many elections: a different number means that there was
    /// another one.
    Elected { term: u64 },
    /// The data that the store will go back to is kept.
    BackedUp,
    /// The whole store is stopped, and will start again with data from some time before.
    WentBack,
    /// The home removes the entry of this acquisition, as an operator might.
    Removed { register: u32, token: u64 },
    /// A worker did not end well when it was told to.
    EndedBadly { process: u32, how: String },
    /// An operator of a migration has written a plan with this phase.
    Moved { prefix: String, phase: Phase },
    /// All live members of the migration have followed the plan.
    Settled { prefix: String, phase: Phase },
    /// After the end the store contained something that should not be there.
    LeftBehind { what: String },
}

/// Way in which a client asks for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    Wait,
    Bounded(Duration),
    Try,
    GiveUpAfter(Duration),
}

impl Instant {
    pub(crate) fn now() -> Self {
        Self::from(Clock::Suspend.now().since_origin())
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(Self::from(duration).0))
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(Self::from(duration).0))
    }

    /// Returns zero if `self` is before `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl From<Duration> for Instant {
    fn from(since_origin: Duration) -> Self {
        Self(u64::try_from(since_origin.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Ask {
    /// The number of the first attempt of a client of a process.
    pub(crate) fn first(process: u32, client: u32) -> Self {
        Self(u64::from(process) << 32 | u64::from(client) << 24)
    }

    /// The client whose attempt it is.
    pub(crate) fn client(self) -> u64 {
        self.0 >> 24
    }
}

impl Event {
    pub(crate) fn of_home(kind: Kind) -> Self {
        Self {
            at: Instant::now(),
            process: 0,
            kind,
        }
    }
}

impl Kind {
    /// The attempt that the event is about.
    pub(crate) fn ask(&self) -> Option<Ask> {
        match self {
            Self::Asked { ask, .. }
            | Self::Granted { ask, .. }
            | Self::NotFree { ask }
            | Self::TimedOut { ask }
            | Self::GaveUp { ask }
            | Self::Failed { ask, .. }
            | Self::Held { ask, .. }
            | Self::Lost { ask, .. }
            | Self::Refused { ask, .. }
            | Self::Incremented { ask, .. }
            | Self::Ending { ask }
            | Self::Ended { ask, .. }
            | Self::Wrote { ask, .. } => Some(*ask),
            _ => None,
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}
