//! The conformance suite of the distributed-lock framework: proves that a backend keeps the
//! contract of [`lock_core`].
//!
//! A backend's author supplies a [`Harness`], which knows how to reach the store and how to cause
//! as many faults as the store allows, and one test target with `harness = false`:
//!
//! ```no_run
//! # #[derive(Debug)] struct MyHarness;
//! # impl MyHarness { async fn start(_: Option<String>) -> Result<Self, std::io::Error> { Ok(Self) } }
//! # #[async_trait::async_trait]
//! # impl lock_conformance::Harness for MyHarness {
//! #     fn capabilities(&self) -> lock_core::Capabilities { unimplemented!() }
//! #     async fn connect(&self) -> Result<std::sync::Arc<dyn lock_core::DistributedLock>, lock_core::LockError> { unimplemented!() }
//! # }
//! use lock_conformance::Start;
//! use std::{process::ExitCode, sync::Arc};
//!
//! fn main() -> ExitCode {
//!     lock_conformance::run("my-store", |child_address| async {
//!         Ok(Start::Ready(Arc::new(MyHarness::start(child_address).await?)))
//!     })
//! }
//! ```
//!
//! The runner prints one line per [`Case`], under `cargo test` and under `cargo nextest`. Cases are
//! grouped by guarantee, and selected by what the backend declares and what the harness can do. A
//! skipped case says what was missing. A missing capability has a case of its own, which checks
//! that asking for it is refused.
//!
//! A layer, which wraps another lock, is run in the same way; [`check_forwarding`] finds the
//! methods that it forgot to forward.
//!
//! Each case has a time limit and lock names of its own, so that cases run side by side on one
//! store.

mod adopt;
mod case;
mod cases;
mod child;
mod claims;
mod context;
#[expect(dead_code, reason = "the tests make the defects")]
mod defects;
mod execute;
mod forwarding;
mod harness;
mod hooks;
mod judge;
mod judgement;
mod known_defects;
mod proxy;
mod seed;
#[cfg(feature = "servers")]
pub mod servers;
mod started;
mod suite;
mod url_harness;
mod verdict;
mod waiter;

pub use adopt::{Backend, backend};
pub use case::{Case, Failure, Need, Verdict};
pub use claims::{Badge, Claim, Level};
pub use execute::run_case;
pub use forwarding::check_forwarding;
pub use harness::Harness;
pub use hooks::{Operator, Server};
pub use judgement::Judgement;
pub use known_defects::{KnownDefect, known_defects};
pub use seed::SEED;
pub use suite::{BoxError, REQUIRE_SERVERS, Start, Suite, run};
pub use url_harness::with_addresses;
pub use verdict::{CaseResult, Finding, Standing};
