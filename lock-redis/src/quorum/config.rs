use std::{fmt, time::Duration};

use lock_core::{LockError, Operation, common_setters};
#[cfg(feature = "redis-1")]
use redis::Client;
use redis::ConnectionInfo;

#[cfg(feature = "redis-1")]
use crate::transport::address::shown;
use crate::{
    config::{RedisLockBuilder, invalid, redis_setters},
    quorum::{RedisQuorumLock, capabilities::BACKEND},
    transport::address::Address,
};

/// Sets up a [`RedisQuorumLock`].
///
/// ```no_run
/// use lock_redis::RedisQuorumLock;
///
/// # async fn example() -> Result<(), lock_core::LockError> {
/// let locks = RedisQuorumLock::builder().with_servers([("r1", 6379), ("r2", 6379), ("r3", 6379)]).with_namespace("prod").connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisQuorumLockBuilder {
    servers: Vec<Address>,
    /// Those of every server.
    pub(crate) each: RedisLockBuilder,
}

/// Default time that a server has to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);

/// With fewer, no server may fail.
const LEAST_SERVERS: usize = 3;
const MOST_SERVERS: usize = 15;

impl RedisQuorumLockBuilder {
    pub(crate) fn new() -> Self {
        Self {
            servers: Vec::new(),
            each: RedisLockBuilder::new().with_request_timeout(REQUEST_TIMEOUT),
        }
    }

    /// The servers, as host and port: at least 3 and at most 15, better an odd number. They must be
    /// independent: no two of them may be the same server under two names, or replicate each other.
    pub fn with_servers<H: AsRef<str>>(
        mut self,
        servers: impl IntoIterator<Item = (H, u16)>,
    ) -> Self {
        self.servers = servers
            .into_iter()
            .map(|(host, port)| Address::new(host.as_ref(), port))
            .collect();
        self
    }

    /// How far a server's clock may be set forward while a lock is held, up to 1 h; default:
    /// nothing.
    ///
    /// The servers' clocks need not agree, for each ends what it granted by its own; they only have
    /// to run at nearly the same rate. A clock that jumps forward, also between a server's end and
    /// its next start on the same data, ends that server's locks earlier. Guards end earlier by
    /// this time. TTLs must exceed it by 100 ms at least.
    pub fn with_max_clock_offset(mut self, offset: Duration) -> Self {
        self.each = self.each.with_max_clock_offset(offset);
        self
    }

    /// Connects, as soon as a majority of the servers can be used; the others are connected to in
    /// the background.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](lock_core::ErrorKind::InvalidConfig) for a setting that cannot be used,
    /// and those of [`RedisQuorumLock::connect`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(self) -> Result<RedisQuorumLock, LockError> {
        let info = |server: &Address| Ok((server.to_string(), self.each.info(server)?));
        let servers = self
            .check()
            .and_then(|()| self.servers.iter().map(info).collect());
        self.open(servers).await
    }

    /// Connects with the addresses, credentials and TLS settings of existing `redis` clients, one
    /// for each server, instead of the builder's. The connections are the locks' own.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    #[cfg(feature = "redis-1")]
    pub async fn connect_with(
        self,
        clients: impl IntoIterator<Item = Client>,
    ) -> Result<RedisQuorumLock, LockError> {
        let servers: Vec<_> = clients
            .into_iter()
            .map(|client| client.get_connection_info().clone())
            .map(|info| (shown(&info), info))
            .collect();
        let checked = self
            .each
            .check()
            .and_then(|()| check(servers.iter().map(|(address, _)| address)));
        self.open(checked.map(|()| servers)).await
    }

    pub(crate) fn check(&self) -> Result<(), LockError> {
        self.each.check()?;
        check(self.servers.iter())
    }

    async fn open(
        self,
        servers: Result<Vec<(String, ConnectionInfo)>, LockError>,
    ) -> Result<RedisQuorumLock, LockError> {
        let connect = async { RedisQuorumLock::open(servers?, self.each).await };
        connect
            .await
            .map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }
}

redis_setters!(RedisQuorumLockBuilder, each);
common_setters!(
    RedisQuorumLockBuilder,
    each.settings,
    "200 ms. Make it several times the usual answer of the slowest server, and a small part of the \
     TTL: what is waited is missing from the validity, and an acquisition waits no longer than its \
     TTL"
);

/// A server that is counted twice would make a majority of fewer.
fn check<A: fmt::Display>(addresses: impl Iterator<Item = A>) -> Result<(), LockError> {
    let mut addresses: Vec<_> = addresses
        .map(|address| address.to_string().to_lowercase())
        .collect();
    if !(LEAST_SERVERS..=MOST_SERVERS).contains(&addresses.len()) {
        let count = addresses.len();
        return Err(invalid(format!(
            "a quorum needs {LEAST_SERVERS} to {MOST_SERVERS} independent servers, better an odd number, and not {count}"
        )));
    }
    addresses.sort_unstable();
    match addresses.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(invalid(format!(
            "the server {} is given twice; each counts once",
            pair[0]
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_make_no_quorum_are_refused() {
        assert!(check(["a:1", "b:1", "c:1"].iter()).is_ok());
        for (servers, hint) in [
            (vec![], "3 to 15"),
            (vec!["a:1", "b:1"], "3 to 15"),
            (vec!["a:1", "b:1", "A:1"], "twice"),
        ] {
            let error = check(servers.iter()).unwrap_err();
            assert_eq!(error.kind(), lock_core::ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
