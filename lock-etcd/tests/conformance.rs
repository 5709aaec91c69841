//! The conformance suite against a real etcd.

use std::process::ExitCode;

mod support;

fn main() -> ExitCode {
    conformance_tests::Suite::new("etcd", support::start).with_capabilities(lock_etcd::capabilities()).run()
}
