//! The conformance suite in this phase, with both stores in memory.

use std::process::ExitCode;

use lock_migrate::Phase;

mod harness;

fn main() -> ExitCode {
    harness::mem::run(Phase::Dual)
}
