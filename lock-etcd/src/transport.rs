//! Requests and watches, sent to one member of the cluster at a time.
//!
//! The lowest layer: it knows nothing of locks.

mod auth_token;
pub(crate) mod batch;
mod breaker;
mod cluster;
mod failover;
mod history;
mod member;
mod unanswered;
mod watch;
mod watch_request;
mod watch_writer;

pub(crate) use cluster::{Cluster, Times, kv};
pub(crate) use history::{KnownStore, StorePosition};
pub(crate) use watch::{Watch, Watches};
pub(crate) use watch_request::{WatchEvent, WatchSink, WatchTarget};
