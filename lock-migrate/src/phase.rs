use std::{fmt, str::FromStr};

use lock_core::{ErrorKind, LockError};
use serde::{Deserialize, Serialize};

/// Which stores a process locks in.
///
/// A fleet goes through the phases in this order, and may go back in the reverse one. It is safe
/// while its live processes are in at most two *adjacent* phases: neighbours share a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// In the source.
    SourceOnly,
    /// In the source, then in the target.
    Dual,
    /// In the target, whose floor is read with every acquisition: a process in [`Dual`](Self::Dual)
    /// may still raise it.
    TargetOnly,
    /// In the target, whose floor is read once: nobody can be in [`Dual`](Self::Dual) any more.
    Final,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::SourceOnly, Self::Dual, Self::TargetOnly, Self::Final];

    /// Tells if a lock in this phase is one in the source.
    #[must_use]
    pub fn takes_source(self) -> bool {
        matches!(self, Self::SourceOnly | Self::Dual)
    }

    /// Tells if a lock in this phase is one in the target.
    #[must_use]
    pub fn takes_target(self) -> bool {
        self != Self::SourceOnly
    }

    /// The phase after this one.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.get(self as usize + 1).copied()
    }

    /// The phase before this one.
    #[must_use]
    pub fn previous(self) -> Option<Self> {
        Self::ALL.get((self as usize).checked_sub(1)?).copied()
    }

    /// Tells if processes in this and the other phase may live at the same time.
    #[must_use]
    pub fn is_compatible_with(self, other: Self) -> bool {
        (self as usize).abs_diff(other as usize) <= 1
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceOnly => "source-only",
            Self::Dual => "dual",
            Self::TargetOnly => "target-only",
            Self::Final => "final",
        })
    }
}

impl FromStr for Phase {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.to_string() == text)
            .ok_or_else(|| {
                LockError::new(
                    ErrorKind::InvalidConfig,
                    "a phase is source-only, dual, target-only or final",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_store() {
        for phase in Phase::ALL {
            assert_eq!(phase.to_string().parse::<Phase>().unwrap(), phase);
            assert!(phase.is_compatible_with(phase));
            if let Some(next) = phase.next() {
                assert_eq!(next.previous(), Some(phase));
                assert!(phase.is_compatible_with(next) && next.is_compatible_with(phase));
                assert!(
                    phase.takes_source() && next.takes_source()
                        || phase.takes_target() && next.takes_target()
                );
            }
        }
        assert!(!Phase::SourceOnly.is_compatible_with(Phase::TargetOnly));
        assert!(!Phase::Dual.is_compatible_with(Phase::Final));
        assert_eq!(
            "both".parse::<Phase>().unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
    }
}
