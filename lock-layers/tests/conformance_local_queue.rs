//! The conformance suite over memory, through the local queue, under paused time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::process::ExitCode;

use lock_layers::{LocalQueue, Metrics, Namespace, Stack, Trace};

mod layered;
use layered::{NAMESPACE, mem};

fn main() -> ExitCode {
    layered::listen();
    let stack = || {
        Stack::new()
            .with(Trace::new())
            .with(Metrics::new())
            .with(LocalQueue::new())
            .with(Namespace::new(NAMESPACE).unwrap())
    };
    mem::suite("mem through a local queue", stack, |capabilities| {
        capabilities.queue_length = false;
    })
    .run()
}
