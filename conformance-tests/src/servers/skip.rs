use std::{env, fmt};

use crate::REQUIRE_SERVERS;

/// Reason why a test that needs a server or a program cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    reason: String,
}

impl Skip {
    /// A skip for a test's own reason, under the same rule as for a missing server.
    ///
    /// # Panics
    ///
    /// If the environment demands that nothing is skipped: see [`REQUIRE_SERVERS`].
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        assert!(
            !is_required(),
            "{reason}; and {REQUIRE_SERVERS} says that nothing may be skipped"
        );
        Self { reason }
    }

    /// A skip that is in order even if the environment demands that nothing is skipped: for
    /// something that cannot be had on this kind of machine, as whoever set up the environment has
    /// declared.
    #[must_use]
    pub fn excused(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }

    /// Says what is missing and how to get it.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.reason)
    }
}

impl std::error::Error for Skip {}

fn is_required() -> bool {
    env::var_os(REQUIRE_SERVERS).is_some_and(|value| value == "1")
}
