//! Locks on a majority of independent servers.

mod ballot;
mod builder;
mod capabilities;
mod connector;
mod core;
mod entry;
mod holders;
mod line;
mod lock;
mod majority;
mod member;
#[cfg(test)]
mod model;
mod renewal;
mod sight;
mod stake;

pub use builder::RedisQuorumLockBuilder;
pub use capabilities::quorum_capabilities;
pub use connector::RedisQuorumConnector;
pub use lock::RedisQuorumLock;
