//! The contract of the distributed-lock framework.
//!
//! An application locks through [`DistributedLock`] and its sugar [`DistributedLockExt`], holds a
//! [`LockGuard`], and hands the guard's [`FencingToken`] to whatever it protects. It never names a
//! backend: which store keeps the lock is a matter of a URL and a Cargo feature (see the `polylock`
//! crate).
//!
//! ```
//! use lock_core::{AcquireOptions, DistributedLock, DistributedLockExt, LockError};
//! use std::{sync::Arc, time::Duration};
//!
//! async fn nightly_report(locks: Arc<dyn DistributedLock>) -> Result<(), LockError> {
//!     let options = AcquireOptions::new().with_timeout(Duration::from_secs(10));
//!     let guard = locks.acquire_with("reports/nightly", options).await?;
//!     // ... write the report, stamped with guard.token() ...
//!     guard.release().await
//! }
//! ```
//!
//! # What a guard promises
//!
//! A guard is valid until its *deadline*: the instant just before the last acknowledged acquire or
//! renew request was sent, plus the TTL that the store granted, less a margin for clock drift. The
//! deadline is compared with a clock that keeps counting while the machine is suspended, and needs
//! neither a reply nor a running task: past it [`LockGuard::state`] says [`GuardState::Lost`],
//! whatever the network does.
//!
//! # For backend authors
//!
//! Implement [`DistributedLock`] with the pieces of [`backend`] that every backend needs, so that
//! none writes them twice: the clock, the lease and its deadline, the renewal driver, guards, and
//! background release. Then prove it with the `lock-conformance` crate.

mod acquisition;
pub mod backend;
mod capabilities;
mod compose;
mod error;
mod ext;
mod guard;
mod latch;
mod lock;
mod lock_info;
mod name;
mod options;
mod parse_name;
mod registry;
mod secret;
#[cfg(feature = "serde")]
mod serialize;
mod state;
mod streams;
mod sync;
mod terms;
mod tls;
mod token;
mod url;

pub use acquisition::{Acquisition, AcquisitionObserver, AcquisitionStatus, Ended};
pub use capabilities::{Capabilities, Consistency, TokenDurability, TtlRange};
pub use error::{ErrorKind, LockError, Operation, RetryAdvice};
pub use ext::DistributedLockExt;
pub use guard::{GuardView, LockGuard};
pub use lock::{Answer, DistributedLock};
pub use lock_info::{LockHolder, LockInfo};
pub use name::LockName;
pub use options::{AcquireOptions, Mode};
pub use registry::{Connector, Registry};
pub use secret::Secret;
pub use state::{GuardState, LossReason};
pub use streams::{LockList, LockWatch};
pub use terms::Terms;
pub use tls::TlsPem;
pub use token::{FencingToken, OwnerId};
pub use url::{Endpoint, LockUrl};
