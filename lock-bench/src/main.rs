//! Side-by-side benchmarks of our locks, the raw client that does the same, and the locks that a
//! user would choose otherwise.
//!
//! `scripts/bench.sh etcd` starts a server and measures everything on this machine in one run. The
//! subjects that are compared take turns, A B C A B C, for at least three rounds, and the medians
//! are reported: absolute figures drift with whatever else the machine does, but their ratios hold
//! better.
//!
//! Every contender runs in worker processes of its own, written in any language: see [`protocol`].
//! The workers connect, wait for the start, run for a moment to warm up, and count the cycles of
//! one window.

// Each suite uses only a part of the code that all of them share.
#![cfg_attr(
    not(all(
        feature = "etcd",
        feature = "layers",
        feature = "mem",
        feature = "migrate",
        feature = "redis"
    )),
    allow(dead_code)
)]

mod cli;
mod fleet;
mod holding;
mod idling;
mod machine;
mod measure;
mod output;
mod passage;
mod passing;
mod plan;
mod progress;
mod protocol;
mod report;
mod stores;
mod subjects;
mod suites;
mod worker;

use std::process::ExitCode;

/// Anything that went wrong, for a person to read.
type Error = Box<dyn std::error::Error + Send + Sync>;

type Result<T> = std::result::Result<T, Error>;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
