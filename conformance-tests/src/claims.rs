use std::fmt;

use lock_core::Capabilities;

use crate::{Case, Need};

/// Extent to which mutual exclusion holds. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Among the tasks and clients of one process.
    Local,
    /// Among several processes, which may also die.
    Exclusive,
    /// Through cut connections, silence, late and lost replies, and entries that the store has
    /// dropped.
    PartitionSafe,
    /// Through crashes and restarts of the store on the same data.
    RestartSafe,
}

impl Level {
    pub(crate) const ALL: [Self; 4] = [
        Self::Local,
        Self::Exclusive,
        Self::PartitionSafe,
        Self::RestartSafe,
    ];
}

/// A property beside mutual exclusion. It is checked at the claimed level and those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Badge {
    /// Fencing tokens grow with each acquisition. Claimed by [`Capabilities::fencing`].
    Fenced,
    /// Waiters are granted in the order of their arrival. Claimed by [`Capabilities::fifo`].
    Fifo,
    /// A release wakes the next waiter at once. Claimed by [`Capabilities::push_wake_up`].
    Push,
    /// Nothing is left behind in the store or in the client.
    Clean,
}

impl Badge {
    pub(crate) const ALL: [Self; 4] = [Self::Fenced, Self::Fifo, Self::Push, Self::Clean];

    /// True if the backend claims it by what it declares.
    pub(crate) fn is_declared_by(self, backend: &Capabilities) -> bool {
        match self {
            Self::Fenced => backend.fencing.is_some(),
            Self::Fifo => backend.fifo,
            Self::Push => backend.push_wake_up,
            Self::Clean => false,
        }
    }
}

/// A statement about a backend that the suite proves, refutes, or leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// Mutual exclusion up to this level.
    Level(Level),
    /// A property beside it.
    Badge(Badge),
}

impl From<Level> for Claim {
    fn from(level: Level) -> Self {
        Self::Level(level)
    }
}

impl From<Badge> for Claim {
    fn from(badge: Badge) -> Self {
        Self::Badge(badge)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Level(Level::Local) => "local",
            Self::Level(Level::Exclusive) => "exclusive",
            Self::Level(Level::PartitionSafe) => "partition-safe",
            Self::Level(Level::RestartSafe) => "restart-safe",
            Self::Badge(Badge::Fenced) => "fenced",
            Self::Badge(Badge::Fifo) => "FIFO",
            Self::Badge(Badge::Push) => "push",
            Self::Badge(Badge::Clean) => "clean",
        })
    }
}

impl Claim {
    /// True if the claim cannot be proven without this case. Badges count up to `level`.
    pub(crate) fn rests_on(self, case: &Case, level: Level) -> bool {
        match self {
            Self::Level(claimed) => case.badge().is_none() && case.level() <= claimed,
            Self::Badge(badge) => case.badge() == Some(badge) && case.level() <= level,
        }
    }
}

impl Case {
    /// The lowest level that needs this case.
    #[must_use]
    pub fn level(&self) -> Level {
        let of_need = |need: &Need| match need {
            Need::OtherProcess => Level::Exclusive,
            Need::Proxy
            | Need::Freeze
            | Need::DelayReplies
            | Need::RemoveEntry
            | Need::EvictWaiters => Level::PartitionSafe,
            Need::Stop | Need::Restart => Level::RestartSafe,
            _ => Level::Local,
        };
        self.needs.iter().map(of_need).max().unwrap_or(Level::Local)
    }

    /// The badge that needs this case; `None` if the levels need it.
    #[must_use]
    pub fn badge(&self) -> Option<Badge> {
        let needs = |need| self.needs.contains(&need);
        if self.group == "fencing" {
            Some(Badge::Fenced)
        } else if self.group == "leaks" || needs(Need::Entries) || needs(Need::Residue) {
            Some(Badge::Clean)
        } else if needs(Need::Fifo) {
            Some(Badge::Fifo)
        } else if needs(Need::PushWakeUp) {
            Some(Badge::Push)
        } else {
            None
        }
    }
}
