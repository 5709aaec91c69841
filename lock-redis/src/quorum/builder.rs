use std::{fmt, time::Duration};

use lock_core::{LockError, Operation, Secret, TlsFiles};
use redis::{Client, ConnectionAddr, ConnectionInfo};

use crate::{
    address::Address,
    builder::{RedisLockBuilder, ensure_crypto, invalid},
    quorum::{RedisQuorumLock, capabilities::BACKEND},
};

/// Sets up a [`RedisQuorumLock`].
///
/// ```no_run
/// use lock_redis::RedisQuorumLock;
///
/// # async fn example() -> Result<(), lock_core::LockError> {
/// let locks = RedisQuorumLock::builder().with_servers([("r1", 6379), ("r2", 6379), ("r3", 6379)]).with_prefix("prod:").connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisQuorumLockBuilder {
    servers: Vec<Address>,
    /// What goes for every server.
    pub(crate) settings: RedisLockBuilder,
}

/// How long a server has to answer, unless said otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);

/// With fewer, no server may fail.
const LEAST_SERVERS: usize = 3;
const MOST_SERVERS: usize = 15;

impl RedisQuorumLockBuilder {
    pub(crate) fn new() -> Self {
        Self { servers: Vec::new(), settings: RedisLockBuilder::new().with_request_timeout(REQUEST_TIMEOUT) }
    }

    /// The servers, as host and port: at least 3 and at most 15, better an odd number. They must be independent: no two of them may
    /// be the same server under two names, or replicate each other.
    pub fn with_servers<H: AsRef<str>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.servers = servers.into_iter().map(|(host, port)| Address::new(host.as_ref(), port)).collect();
        self
    }

    /// The number of the database, on every server; default: 0.
    pub fn with_database(mut self, database: u32) -> Self {
        self.settings = self.settings.with_database(database);
        self
    }

    /// The user, on every server; default: the server's default user.
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.settings = self.settings.with_username(username);
        self
    }

    /// The password, on every server; default: none.
    pub fn with_password(mut self, password: Secret) -> Self {
        self.settings = self.settings.with_password(password);
        self
    }

    /// Encrypts the connections, and trusts the system's certificate authorities unless the files name one.
    pub fn with_tls(mut self, files: TlsFiles) -> Self {
        self.settings = self.settings.with_tls(files);
        self
    }

    /// What is put before every name to make its key, as it is; default: nothing. Up to 1024 bytes without control
    /// characters.
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings = self.settings.with_prefix(prefix);
        self
    }

    /// The TTL of acquisitions that do not ask for one; default: 30 s.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.settings = self.settings.with_ttl(ttl);
        self
    }

    /// Longest time until a connection can be used, from 1 ms to 1 h; default: 5 s.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings = self.settings.with_connect_timeout(timeout);
        self
    }

    /// Longest time that a server is waited for, from 1 ms to 1 h; default: 200 ms. An acquisition waits no longer than its
    /// TTL.
    ///
    /// Make it several times the usual answer of the slowest server, and a small part of the TTL: what is waited is missing from
    /// the validity.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.settings = self.settings.with_request_timeout(timeout);
        self
    }

    /// How often a waiter looks although no server reported anything; default: 2 s, less some jitter.
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.settings = self.settings.with_poll_interval(interval);
        self
    }

    /// Whether the client has a thread of its own for its connections, renewals and clean-ups; default: no, they are tasks of the
    /// runtime that connects.
    ///
    /// With it a guard is renewed whatever the application's runtimes do: a current-thread runtime that does no work outside
    /// `block_on`, one that is blocked for longer than a TTL, or one that ends. It costs a switch of threads for each request.
    pub fn with_background_thread(mut self, background_thread: bool) -> Self {
        self.settings = self.settings.with_background_thread(background_thread);
        self
    }

    /// Whether the end of the runtime waits for releases that are on their way, or that it sets off: as of a guard that is alive
    /// at the end of `main`; default: yes, for at most half a second in the life of the client
    /// ([`EXIT_LIMIT`](lock_core::backend::EXIT_LIMIT)).
    ///
    /// What is not released then stays locked until its lease ends, and a warning says so.
    pub fn with_release_at_exit(mut self, release_at_exit: bool) -> Self {
        self.settings = self.settings.with_release_at_exit(release_at_exit);
        self
    }

    /// How far a server's clock may be set forward while a lock is held, up to 1 h; default: nothing.
    ///
    /// The servers' clocks need not agree, for each ends what it granted by its own; they only have to run at nearly the same rate. A
    /// clock that jumps forward, also between a server's end and its next start on the same data, ends that server's locks
    /// earlier. Guards end earlier by this time. TTLs must exceed it by 100 ms at least.
    pub fn with_max_clock_offset(mut self, offset: Duration) -> Self {
        self.settings = self.settings.with_max_clock_offset(offset);
        self
    }

    /// Connects, as soon as a majority of the servers can be used; the others are connected to in the background.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`](lock_core::ErrorKind::InvalidOptions) for a setting that cannot be used, and those of
    /// [`RedisQuorumLock::connect`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind when it is dropped.
    pub async fn connect(self) -> Result<RedisQuorumLock, LockError> {
        let servers = self.servers.iter().map(|server| Ok((server.to_string(), self.settings.info(server)?))).collect();
        self.open(servers).await
    }

    /// Connects with the addresses, credentials and TLS settings of existing `redis` clients, one for each server, instead of
    /// the builder's.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(self, clients: impl IntoIterator<Item = Client>) -> Result<RedisQuorumLock, LockError> {
        let info = |client: Client| client.get_connection_info().clone();
        let servers = clients.into_iter().map(info).map(|info| Ok((info.addr().to_string(), info))).collect();
        self.open(servers).await
    }

    async fn open(self, servers: Result<Vec<(String, ConnectionInfo)>, LockError>) -> Result<RedisQuorumLock, LockError> {
        let connect = async {
            let servers = servers?;
            self.settings.check()?;
            check(servers.iter().map(|(address, _)| address))?;
            if servers.iter().any(|(_, info)| matches!(info.addr(), ConnectionAddr::TcpTls { .. })) {
                ensure_crypto();
            }
            RedisQuorumLock::open(servers, self.settings).await
        };
        connect.await.map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }
}

/// A server that is counted twice would make a majority of fewer.
fn check<A: fmt::Display>(addresses: impl Iterator<Item = A>) -> Result<(), LockError> {
    let mut addresses: Vec<_> = addresses.map(|address| address.to_string().to_lowercase()).collect();
    if !(LEAST_SERVERS..=MOST_SERVERS).contains(&addresses.len()) {
        let count = addresses.len();
        return Err(invalid(format!(
            "a quorum needs {LEAST_SERVERS} to {MOST_SERVERS} independent servers, better an odd number, and not {count}"
        )));
    }
    addresses.sort_unstable();
    match addresses.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(invalid(format!("the server {} is given twice; each counts once", pair[0]))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_make_no_quorum_are_refused() {
        assert!(check(["a:1", "b:1", "c:1"].iter()).is_ok());
        for (servers, hint) in [(vec![], "3 to 15"), (vec!["a:1", "b:1"], "3 to 15"), (vec!["a:1", "b:1", "A:1"], "twice")] {
            let error = check(servers.iter()).unwrap_err();
            assert_eq!(error.kind(), lock_core::ErrorKind::InvalidOptions);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
