//! The conformance suite of the distributed-lock framework: proves that a backend keeps the contract of [`lock_core`].
//!
//! A backend's author supplies a [`Harness`], which says how to reach the store and as much trouble as the store can be
//! put into, and one test target with `harness = false`:
//!
//! ```no_run
//! # #[derive(Debug)] struct MyHarness;
//! # impl MyHarness { async fn start(_: Option<String>) -> Result<Self, std::io::Error> { Ok(Self) } }
//! # #[async_trait::async_trait]
//! # impl conformance_tests::Harness for MyHarness {
//! #     fn capabilities(&self) -> lock_core::Capabilities { unimplemented!() }
//! #     async fn connect(&self) -> Result<std::sync::Arc<dyn lock_core::DistributedLock>, lock_core::LockError> { unimplemented!() }
//! # }
//! use conformance_tests::Start;
//! use std::{process::ExitCode, sync::Arc};
//!
//! fn main() -> ExitCode {
//!     conformance_tests::run("my-store", |child_address| async {
//!         Ok(Start::Ready(Arc::new(MyHarness::start(child_address).await?)))
//!     })
//! }
//! ```
//!
//! The runner prints one line per [`Case`], under `cargo test` and under `cargo nextest`. Cases are grouped by guarantee
//! and selected by what the backend declares and the harness can do; a skipped case says what was missing, and a missing
//! capability has a case of its own, which checks that asking for it is refused.
//!
//! Each case has lock names of its own, so that cases run side by side on one store, and a time limit.

mod case;
mod cases;
mod child;
mod context;
mod execute;
mod harness;
mod report;
#[cfg(feature = "servers")]
pub mod servers;
mod suite;
mod waiter;

pub use case::{Case, Failure, Need, Verdict};
pub use execute::run_case;
pub use harness::Harness;
pub use suite::{BoxError, REQUIRE_SERVERS, Start, Suite, run};
