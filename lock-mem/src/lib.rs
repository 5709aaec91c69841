//! The in-memory backend of the distributed-lock framework.
//!
//! A [`MemStore`] stands for the server, a [`MemLock`] is a client of it. It is a faithful double
//! of a remote store: locks have a TTL and expire, waiters queue in order of arrival, guards carry
//! fencing tokens and are lost when the store takes their lock away, or when it has not
//! acknowledged a renewal in time. Code that was tested against it meets nothing new in production
//! but latency.
//!
//! # In tests
//!
//! Everything runs on tokio's clock: with `#[tokio::test(start_paused = true)]` a TTL passes in no
//! time, and to the millisecond. [`MemStore`] has hooks that freeze it, expire or evict a holder,
//! or fail requests; see there for an example. One store's clients then belong on one runtime, for
//! each paused runtime has its own time.
//!
//! # As a keyed lock inside one process
//!
//! An uncontended acquire and release takes no task, no timer and no I/O; releasing is synchronous,
//! also by dropping the guard, and also outside a runtime. A name that nobody holds or waits for
//! takes no memory, so there may be millions.
//!
//! Locks that are held for longer are renewed by a task on each runtime that has acquired a lock
//! from the same [`MemLock`]. So a client in a `static` may be shared by several runtimes, such as
//! those of tests: when one of them ends the others go on. A guard that has outlived them all is
//! lost at its deadline. So is one on a runtime without time (`enable_time` of its builder), where
//! that task panics.
//!
//! # What it does not do
//!
//! It excludes nobody in another process, and forgets everything with the process.

mod capabilities;
mod client;
mod config;
mod entry;
mod faults;
mod held_entry;
mod key;
mod pending_entry;
mod queue;
mod store;
mod watches;

pub use capabilities::capabilities;
pub use client::MemLock;
pub use config::{MemConnector, MemLockBuilder};
pub use store::MemStore;

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
