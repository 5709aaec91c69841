//! Quorums of servers.

use std::net::SocketAddr;

use lock_conformance::servers::{self, RedisOptions, Server, Skip};
use lock_redis::{RedisQuorumLock, RedisQuorumLockBuilder};

use super::{NEVER, Operator, address};

pub(crate) fn start(size: usize, options: &RedisOptions) -> Result<Vec<Server>, Skip> {
    (0..size)
        .map(|_| servers::redis(options.clone().own()))
        .collect()
}

pub(crate) fn three() -> Result<Vec<Server>, Skip> {
    start(3, &RedisOptions::new())
}

pub(crate) fn three_that_forget() -> Result<Vec<Server>, Skip> {
    start(3, &RedisOptions::new().without_persistence())
}

/// Polls and TTLs take ten minutes: nothing happens because of them.
pub(crate) fn at(addresses: impl IntoIterator<Item = SocketAddr>) -> RedisQuorumLockBuilder {
    let addresses = addresses
        .into_iter()
        .map(|address| (address.ip().to_string(), address.port()));
    RedisQuorumLock::builder()
        .with_servers(addresses)
        .with_ttl(NEVER)
        .with_poll_interval(NEVER)
}

/// The same, of servers that are reached directly.
pub(crate) fn of(servers: &[Server]) -> RedisQuorumLockBuilder {
    at(servers.iter().map(address))
}

pub(crate) fn operators(servers: &[Server]) -> Vec<Operator> {
    servers.iter().map(Operator::of).collect()
}
