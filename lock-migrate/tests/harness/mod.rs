//! Harnesses of the conformance suite.

#![allow(dead_code, reason = "every test target uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

pub(crate) mod mem;
pub(crate) mod world;
