//! The conformance suite against a real etcd.

use std::process::ExitCode;

use lock_conformance::{Badge, Level, Suite};

mod support;

fn main() -> ExitCode {
    Suite::new("etcd", support::start)
        .with_capabilities(lock_etcd::capabilities())
        .claims(Level::RestartSafe)
        .claims(Badge::Clean)
        .run()
}
