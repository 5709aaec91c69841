use std::fmt;

/// State of an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuardState {
    /// The lock is held, at this instant and until the deadline.
    Held,
    /// The acquisition ended without a release. Final.
    Lost(LossReason),
    /// Released, or about to be. Final.
    Released,
}

/// Reason why an acquisition ended without a release by its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The deadline passed without an acknowledged renewal.
    Expired,
    /// The store no longer has the acquisition: it was deleted, its lease revoked, or somebody
    /// forced its release.
    Removed,
    /// The maximum hold time was reached.
    MaxHold,
    /// The client was shut down.
    Shutdown,
}

impl fmt::Display for GuardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("held"),
            Self::Lost(reason) => write!(f, "lost: {reason}"),
            Self::Released => f.write_str("released"),
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its deadline passed without an acknowledged renewal",
            Self::Removed => "its entry was removed from the store",
            Self::MaxHold => "its maximum hold time was reached",
            Self::Shutdown => "its client was shut down",
        })
    }
}
