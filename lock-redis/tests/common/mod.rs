//! Helpers that the tests against real servers share.
#![allow(dead_code, reason = "every test target uses a part of it")]

use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, Certificates, RedisOptions, Server, Skip, TcpProxy};
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, LockError, LockGuard, LockName,
    RetryAdvice,
};
use lock_redis::{RedisLock, RedisLockBuilder};
use redis::{AsyncCommands, FromRedisValue, aio::MultiplexedConnection};
use tokio::task::JoinHandle;

pub(crate) mod cluster;
pub(crate) mod contention;
pub(crate) mod crowd;
pub(crate) mod quorum;
pub(crate) mod sentinels;

/// Far beyond what a loaded machine needs, and far below any TTL or poll that must not be what
/// helped.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// A TTL and a poll interval that no test waits for.
pub(crate) const NEVER: Duration = Duration::from_secs(600);

/// The server, or the end of the test where there is none to be had.
#[macro_export]
macro_rules! or_skip {
    ($attempt:expr) => {
        match $attempt {
            Ok(value) => value,
            Err(skip) => {
                eprintln!("{skip}");
                return;
            }
        }
    };
}

/// A server of the test's own, which it may disturb.
pub(crate) fn own() -> Result<Server, Skip> {
    servers::redis(RedisOptions::new().own())
}

/// One that comes back without its data.
pub(crate) fn forgetful() -> Result<Server, Skip> {
    servers::redis(RedisOptions::new().without_persistence().own())
}

pub(crate) fn address(server: &Server) -> SocketAddr {
    server.address().unwrap()
}

/// The host and the port of an endpoint.
pub(crate) fn seed(endpoint: &str) -> (String, u16) {
    let (host, port) = endpoint.rsplit_once(':').unwrap();
    (host.to_owned(), port.parse().unwrap())
}

/// A client whose timings cannot be what makes a test pass.
pub(crate) fn builder(address: SocketAddr) -> RedisLockBuilder {
    RedisLock::builder()
        .with_address(address.ip().to_string(), address.port())
        .with_ttl(NEVER)
        .with_poll_interval(NEVER)
}

pub(crate) async fn client(server: &Server) -> RedisLock {
    builder(address(server)).connect().await.unwrap()
}

/// What a restricted user may do according to the documentation, on keys that begin with `app:`;
/// more is needed for more than one server.
pub(crate) const RULES: [&str; 31] = [
    "ACL",
    "SETUSER",
    "app",
    "on",
    ">s3cret",
    "~app:*",
    "+eval",
    "+evalsha",
    "+set",
    "+get",
    "+del",
    "+exists",
    "+pexpire",
    "+pttl",
    "+type",
    "+hdel",
    "+hget",
    "+hmget",
    "+hset",
    "+hincrby",
    "+zadd",
    "+zpopmin",
    "+zrange",
    "+zrank",
    "+zrem",
    "+zscore",
    "+time",
    "+ping",
    "+client|tracking",
    "+hello",
    "+select",
];

/// A URL of a server that demands a certificate, with the documented rules' user, and settings that
/// cannot be what makes a test pass.
pub(crate) fn restricted(url: &str, certificates: &Certificates) -> String {
    let cert = certificates.client_cert();
    let key = certificates.client_key();
    let url = url.replace("://", "://app:s3cret@");
    let identity = format!("cert={}&key={}", cert.display(), key.display());
    format!(
        "{url}?namespace=app:&ttl=10m&poll_interval=10m&connect_timeout=10s&request_timeout=3s&{identity}"
    )
}

/// The same, trusting these certificates' authority.
pub(crate) fn trusting(url: &str, certificates: &Certificates) -> String {
    format!(
        "{}&ca={}",
        restricted(url, certificates),
        certificates.ca().display()
    )
}

pub(crate) fn assert_untrusted(error: &LockError) {
    assert!(
        error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("TLS handshake") && !format!("{error:?}").contains("s3cret"),
        "{error:?}"
    );
}

/// Too few replicas had the lock in time, and so it was given back.
pub(crate) fn assert_unconfirmed(error: &LockError) {
    assert!(
        error.kind() == ErrorKind::Unavailable
            && error.retry() == RetryAdvice::Later
            && !error.is_indeterminate(),
        "{error:?}"
    );
    assert!(error.to_string().contains("replicas confirmed"), "{error}");
}

/// A client of a server that knows the scripts already: a single request then takes effect.
pub(crate) async fn warm_up(server: &Server) {
    let locks = client(server).await;
    locks
        .acquire("warm-up")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

pub(crate) async fn behind(server: &Server) -> (TcpProxy, RedisLockBuilder) {
    let proxy = TcpProxy::start(address(server)).await.unwrap();
    let builder = builder(proxy.address())
        .with_request_timeout(Duration::from_millis(300))
        .with_connect_timeout(Duration::from_secs(2));
    (proxy, builder)
}

pub(crate) fn name(name: &str) -> LockName {
    name.parse().unwrap()
}

pub(crate) fn ttl(ttl: Duration) -> AcquireOptions {
    AcquireOptions::new().with_ttl(ttl)
}

/// An operator, who connects anew for every command: it works after a restart.
#[derive(Clone)]
pub(crate) struct Operator(redis::Client);

impl Operator {
    pub(crate) fn of(server: &Server) -> Self {
        Self::at(server.endpoint())
    }

    pub(crate) fn at(endpoint: &str) -> Self {
        Self(redis::Client::open(format!("redis://{endpoint}")).unwrap())
    }

    async fn connection(&self) -> MultiplexedConnection {
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PROMPT))
            .set_response_timeout(Some(PROMPT));
        self.0
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .unwrap()
    }

    pub(crate) async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        words[1..].iter().for_each(|word| {
            command.arg(word);
        });
        command
            .query_async(&mut self.connection().await)
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.connection().await.get(key).await.unwrap()
    }

    pub(crate) async fn clients(&self) -> usize {
        self.run::<String>(&["CLIENT", "LIST"])
            .await
            .lines()
            .count()
    }

    /// The connection that tracks what it reads, if there is one.
    pub(crate) async fn tracker(&self) -> Option<String> {
        let list: String = self.run(&["CLIENT", "LIST"]).await;
        let line = list.lines().find(|line| line.contains("flags=t"))?;
        line.split(' ').next().map(str::to_owned)
    }

    /// The connection over which a client waits for replicas, or did so last.
    pub(crate) async fn confirming(&self) -> Option<String> {
        let list: String = self.run(&["CLIENT", "LIST"]).await;
        let line = list.lines().find(|line| line.contains("cmd=wait"))?;
        line.split(' ')
            .next()?
            .strip_prefix("id=")
            .map(str::to_owned)
    }

    /// Ends that wait.
    pub(crate) async fn end_confirming(&self) {
        let waits = || async { self.info("clients", "blocked_clients").await > 0 };
        until("it waits for replicas", waits).await;
        let _: usize = self
            .run(&["CLIENT", "UNBLOCK", &self.confirming().await.unwrap()])
            .await;
    }

    /// Number of keys of which the server reports the next change.
    pub(crate) async fn tracked_keys(&self) -> usize {
        self.info("stats", "tracking_total_keys").await
    }

    /// Number of times that the server has run a command.
    pub(crate) async fn calls(&self, command: &str) -> usize {
        let (stats, prefix): (String, _) = (
            self.run(&["INFO", "commandstats"]).await,
            format!("cmdstat_{command}:calls="),
        );
        let calls = |line: &str| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok();
        stats.lines().find_map(calls).unwrap_or(0)
    }

    pub(crate) async fn info(&self, section: &str, field: &str) -> usize {
        let info: String = self.run(&["INFO", section]).await;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().trim().parse().unwrap()
    }

    pub(crate) async fn companion(&self, name: &str, field: &str) -> Option<String> {
        self.run(&["HGET", &format!("{name}\u{1f}{{{name}}}"), field])
            .await
    }
}

/// Waits for a condition, and fails the test if it does not come true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    until_within(PROMPT, what, condition).await;
}

pub(crate) async fn until_within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the output of a future that is ready promptly.
pub(crate) async fn promptly<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PROMPT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PROMPT:?}"),
    }
}

/// A waiting acquisition, as a task.
pub(crate) fn waiter<L>(
    locks: &L,
    key: impl Into<String>,
) -> JoinHandle<Result<LockGuard, LockError>>
where
    L: DistributedLock + Clone + 'static,
{
    let locks = locks.clone();
    let key = key.into();
    tokio::spawn(async move { locks.acquire(key).await })
}

/// Waits until a guard's lease has been extended.
pub(crate) async fn renewed(guard: &LockGuard) {
    renewed_within(PROMPT, guard).await;
}

/// As [`renewed`], for leases that are renewed more rarely, or while servers fail.
pub(crate) async fn renewed_within(limit: Duration, guard: &LockGuard) {
    let mut least = guard.remaining();
    until_within(limit, "a renewal", || {
        assert!(!guard.is_lost(), "lost instead of renewed: {guard:?}");
        let left = guard.remaining();
        let extended = left > least;
        least = least.min(left);
        async move { extended }
    })
    .await;
}

/// All features are on in tests, so that more than one provider of cryptography is compiled in, and
/// the application chooses.
pub(crate) fn choose_crypto() {
    // Fails if another test of this process has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub(crate) fn certificates() -> Certificates {
    choose_crypto();
    Certificates::new().unwrap()
}
