//! Layers over any backend of the distributed-lock framework.
//!
//! A [`Layer`] wraps a lock and is a lock itself: it sees every call, and every guard that comes
//! back. A [`Stack`] applies several; the first one that is added sees a call first:
//!
//! ```
//! use lock_core::{DistributedLockExt, LockError};
//! use lock_layers::{Metrics, Stack, Trace};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), LockError> {
//! let store = Arc::new(lock_mem::MemLock::new());
//! let locks = Stack::new().with(Trace::new()).with(Metrics::new()).over(store);
//!
//! let guard = locks.acquire("orders/42").await?;
//! guard.release().await
//! # }
//! ```
//!
//! | layer | what it does |
//! | --- | --- |
//! | [`Trace`] | spans and events on [`tracing`] |
//! | [`Metrics`] | counters, gauges and histograms on the [`metrics`] facade |
//! | [`DefaultOptions`] | options that acquisitions leave out; a bound on every wait |
//! | [`Retry`] | repeats what failed, where that is safe, with pauses that grow |
//! | [`ConcurrencyLimit`] | limits the acquisitions that wait or are held |
//! | [`LocalQueue`] | lets one waiter for each name reach the store |
//! | [`Namespace`] | puts a prefix before every name |
//! | [`Faults`] | loses guards, fails and delays calls, for the tests of an application |
//!
//! [`ReentrantOwner`] is no layer of a stack, but a lock of its own for one owner, who may acquire
//! again what it holds.
//!
//! A stack without layers returns the lock that it is given: it costs nothing. A guard's view that
//! is kept keeps no layer alive. Layers that make callers wait ([`ConcurrencyLimit`],
//! [`LocalQueue`], [`ReentrantOwner`]) have a task that looks, while somebody waits, for callers
//! that do not poll; the others have none.

mod attempts;
mod concurrency_limit;
mod default_options;
mod end_status;
mod faults;
mod layer;
mod local_queue;
mod metric_set;
mod namespace;
mod observed;
mod reentrant;
mod retry;
mod stack;
mod trace;
mod words;

pub use concurrency_limit::ConcurrencyLimit;
pub use default_options::DefaultOptions;
pub use faults::Faults;
pub use layer::Layer;
pub use local_queue::LocalQueue;
pub use metric_set::{Metrics, describe_metrics, metric_names};
pub use namespace::Namespace;
pub use reentrant::ReentrantOwner;
pub use retry::Retry;
pub use stack::Stack;
pub use trace::{Trace, process_metadata};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
