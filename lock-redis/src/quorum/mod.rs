//! Locks on a majority of independent servers.

mod acquire;
mod attempt;
mod capabilities;
mod client;
mod config;
mod connector;
mod decide;
mod entry;
mod free_majority;
mod holders;
mod majority;
#[cfg(test)]
mod model;
mod queue_entry;
mod renewal;
mod round;
mod server;
mod wait;
mod waiter;

pub use capabilities::quorum_capabilities;
pub use client::RedisQuorumLock;
pub use config::RedisQuorumLockBuilder;
pub use connector::RedisQuorumConnector;
