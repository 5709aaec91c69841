//! The conformance suite on the small backend of `docs/backend-author.md`, with real processes and
//! real time.

mod backend;
mod harness;
mod table;

use std::{process::ExitCode, sync::Arc};

use lock_conformance::{Badge, Level, Need, Start, Suite};

fn main() -> ExitCode {
    let suite = Suite::new("dir", |child_address| async move {
        Ok(Start::Ready(Arc::new(match child_address {
            Some(directory) => harness::DirHarness::at(directory.into()),
            None => harness::DirHarness::new()?,
        })))
    });
    let suite = suite
        .with_capabilities(backend::DirLock::declared())
        .claims(Level::Exclusive)
        .claims(Badge::Clean);
    [
        Need::Freeze,
        Need::Stop,
        Need::Restart,
        Need::DelayReplies,
        Need::EvictWaiters,
    ]
    .into_iter()
    .fold(suite, |suite, need| {
        suite.without(need, format!("a directory has no server ({need:?})"))
    })
    .run()
}
