use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl, Secret};

use crate::{
    builder::{DEFAULT_PORT, DEFAULT_SENTINEL_PORT, RedisLockBuilder},
    capabilities::capabilities,
};

/// Opens `redis://` URLs, and their like for several servers:
///
/// | URL | the locks are on |
/// | --- | --- |
/// | `redis://[user[:password]@]host[:port][/database]` | that server |
/// | `redis+sentinel://[user[:password]@]host[:port],host[:port],.../service[/database]` | the server that these sentinels name as the master of the service, also after a failover |
/// | `redis+cluster://[user[:password]@]host[:port],host[:port],...` | the cluster that these servers belong to |
///
/// With `rediss` instead of `redis` all connections are encrypted, those to sentinels too. The port is 6379, of a sentinel
/// 26379. User and password are those of the servers. Give all sentinels, and of a cluster as many servers as may be
/// down at once, and one more: the others are found.
///
/// Parameters, as `?key=value&...`:
///
/// | parameter | meaning | default |
/// | --- | --- | --- |
/// | `ttl` | TTL of acquisitions that do not ask for one | `30s` |
/// | `prefix` | what is put before every name to make its key | nothing |
/// | `connect_timeout` | until a connection can be used | `5s` |
/// | `request_timeout` | for the answer to a request | `1s` |
/// | `poll_interval` | how often a waiter looks although nothing was reported | `2s` |
/// | `background_thread` | whether the client has a thread of its own for its connections and renewals | `false` |
/// | `release_at_exit` | whether the end of the runtime waits for releases, for at most half a second | `true` |
/// | `max_clock_offset` | how far apart the clocks of servers may be that take over from each other; see [`with_max_clock_offset`](RedisLockBuilder::with_max_clock_offset) | `500ms` with sentinels, a cluster or `replicas`, else `0s` |
/// | `ca`, `cert`, `key` | PEM files, with `rediss` | the system's authorities |
/// | `replicas`, `replica_timeout` | how many replicas must confirm a lock, and within which time; not with `cluster` | none, `1s` |
/// | `sentinel_username`, `sentinel_password` | the sentinels' own | none |
///
/// User, password and PEM files may also come from the environment: `LOCK_REDIS_USERNAME`, `LOCK_REDIS_PASSWORD`,
/// `LOCK_REDIS_CA`, `LOCK_REDIS_CERT`, `LOCK_REDIS_KEY`, `LOCK_REDIS_SENTINEL_USERNAME`, `LOCK_REDIS_SENTINEL_PASSWORD`.
///
/// ```
/// use lock_core::Registry;
/// use lock_redis::RedisConnector;
///
/// let registry = Registry::new().with(RedisConnector);
/// assert!(registry.schemes().any(|scheme| scheme == "redis+sentinel"));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisConnector;

/// Of every URL.
pub(crate) const PARAMS: [&str; 11] = [
    "ttl",
    "prefix",
    "connect_timeout",
    "request_timeout",
    "poll_interval",
    "max_clock_offset",
    "ca",
    "cert",
    "key",
    "background_thread",
    "release_at_exit",
];

/// Of one server, also behind sentinels.
const REPLICA_PARAMS: [&str; 2] = ["replicas", "replica_timeout"];

const SENTINEL_PARAMS: [&str; 2] = ["sentinel_username", "sentinel_password"];

const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);

/// Where credentials and PEM files are looked up if the URL does not give them.
const ENV_PREFIX: &str = "LOCK_REDIS";

#[async_trait]
impl Connector for RedisConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"]
    }

    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        Ok(Arc::new(builder_of(url)?.connect().await?))
    }
}

/// What a URL says.
pub(crate) fn builder_of(url: &LockUrl) -> Result<RedisLockBuilder, LockError> {
    let topology = url.scheme().split_once('+').map_or("", |(_, topology)| topology);
    let params: Vec<_> = match topology {
        "" => [&PARAMS[..], &REPLICA_PARAMS].concat(),
        "sentinel" => [&PARAMS[..], &REPLICA_PARAMS, &SENTINEL_PARAMS].concat(),
        _ => PARAMS.to_vec(),
    };
    url.check_params(&params)?;
    let builder = RedisLockBuilder::new();
    let builder = match topology {
        "" => server(url, builder)?,
        "sentinel" => sentinels(url, builder)?,
        _ => cluster(url, builder)?,
    };
    settings(url, replicas(url, builder)?)
}

fn replicas(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    let timeout = url.duration("replica_timeout")?;
    match (url.param("replicas").map(str::parse), timeout) {
        (Some(Ok(replicas)), timeout) => Ok(builder.with_replicas(replicas, timeout.unwrap_or(REPLICA_TIMEOUT))),
        (Some(Err(error)), _) => Err(invalid("`replicas` is not a number").caused_by(error)),
        (None, Some(_)) => Err(invalid("a replica_timeout needs replicas to wait for; add replicas=1")),
        (None, None) => Ok(builder),
    }
}

/// What is the same for all servers.
pub(crate) fn settings(url: &LockUrl, mut builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    builder = builder.with_prefix(url.param("prefix").unwrap_or_default());
    let security = url.scheme().split('+').next().unwrap_or_default();
    let (username, password) = url.credentials(ENV_PREFIX);
    if let Some(username) = username {
        builder = builder.with_username(username);
    }
    if let Some(password) = password {
        builder = builder.with_password(password);
    }
    match security {
        "redis" if ["ca", "cert", "key"].iter().any(|file| url.param(file).is_some()) => {
            return Err(invalid("PEM files are for TLS; write rediss instead of redis"));
        }
        "redis" => {}
        "rediss" => builder = builder.with_tls(url.tls_files(ENV_PREFIX)?),
        _ => return Err(invalid("the scheme is neither redis nor rediss")),
    }
    timings(url, builder)
}

fn server(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    match url.endpoints() {
        [] => Err(invalid("the URL has no host; write redis://host:port")),
        [server] => with_database(builder.with_address(&server.host, server.port.unwrap_or(DEFAULT_PORT)), url.path()),
        [_, ..] => {
            Err(invalid("the URL has several hosts; give the one server that keeps the locks, or write redis+sentinel or redis+cluster"))
        }
    }
}

fn sentinels(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    let (service, database) = url.path().split_once('/').unwrap_or((url.path(), ""));
    if url.endpoints().is_empty() || service.is_empty() {
        return Err(invalid("the URL has no host or no service; write redis+sentinel://host:port,host:port/service"));
    }
    let mut builder = builder.with_sentinels(addresses(url, DEFAULT_SENTINEL_PORT), service);
    let env = |name: &str| std::env::var(format!("{ENV_PREFIX}_SENTINEL_{name}")).ok().filter(|value| !value.is_empty());
    let username = url.param("sentinel_username").map(str::to_owned).or_else(|| env("USERNAME"));
    match (username, url.param("sentinel_password").map(str::to_owned).or_else(|| env("PASSWORD"))) {
        (None, None) => {}
        (username, Some(password)) => builder = builder.with_sentinel_credentials(username, Secret::new(password)),
        (Some(_), None) => return Err(invalid("a sentinel_username needs a sentinel_password")),
    }
    with_database(builder, database)
}

fn cluster(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    match (url.endpoints(), url.path()) {
        ([], _) => Err(invalid("the URL has no host; write redis+cluster://host:port,host:port")),
        (_, "" | "0") => Ok(builder.with_cluster(addresses(url, DEFAULT_PORT))),
        _ => Err(invalid("a cluster has no databases; give a namespace as ?prefix=NAME")),
    }
}

pub(crate) fn addresses(url: &LockUrl, port: u16) -> impl Iterator<Item = (&str, u16)> {
    url.endpoints().iter().map(move |endpoint| (endpoint.host.as_str(), endpoint.port.unwrap_or(port)))
}

pub(crate) fn with_database(builder: RedisLockBuilder, path: &str) -> Result<RedisLockBuilder, LockError> {
    if path.is_empty() {
        return Ok(builder);
    }
    let wrong = |error| invalid("the path is not the number of a database; give a namespace as ?prefix=NAME").caused_by(error);
    Ok(builder.with_database(path.parse().map_err(wrong)?))
}

fn timings(url: &LockUrl, mut builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    type Setter = fn(RedisLockBuilder, Duration) -> RedisLockBuilder;
    let setters: [(&str, Setter); 5] = [
        ("ttl", RedisLockBuilder::with_ttl),
        ("connect_timeout", RedisLockBuilder::with_connect_timeout),
        ("request_timeout", RedisLockBuilder::with_request_timeout),
        ("poll_interval", RedisLockBuilder::with_poll_interval),
        ("max_clock_offset", RedisLockBuilder::with_max_clock_offset),
    ];
    for (param, set) in setters {
        if let Some(value) = url.duration(param)? {
            builder = set(builder, value);
        }
    }
    if let Some(background_thread) = url.flag("background_thread")? {
        builder = builder.with_background_thread(background_thread);
    }
    if let Some(release_at_exit) = url.flag("release_at_exit")? {
        builder = builder.with_release_at_exit(release_at_exit);
    }
    Ok(builder)
}

fn invalid(message: &'static str) -> LockError {
    LockError::new(ErrorKind::InvalidUrl, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisLockBuilder, LockError> {
        builder_of(&url.parse()?)
    }

    #[test]
    fn what_a_url_says_is_set() {
        let url = "redis://app:s3cret@h:1/7?ttl=15s&prefix=prod:&connect_timeout=1s&request_timeout=200ms&max_clock_offset=70ms";
        let shown = format!("{:?}", parse(url).unwrap());
        for part in ["\"h\"", "port: 1 ", "database: 7", "\"app\"", "15s", "\"prod:\"", "200ms", "70ms"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret"));
    }

    #[test]
    fn what_a_url_says_of_sentinels_and_clusters_is_set() {
        let url = "redis+sentinel://app:s3cret@h1,h2:2/mymaster/7?sentinel_username=watcher&sentinel_password=s4cret";
        let shown = format!("{:?}", parse(url).unwrap());
        for part in ["\"h1\", port: 26379", "\"h2\", port: 2 ", "\"mymaster\"", "database: 7", "\"app\"", "\"watcher\""] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret") && !shown.contains("s4cret"));
        let shown = format!("{:?}", parse("rediss+cluster://h1,[::1]:2?prefix=p").unwrap());
        for part in ["\"h1\", port: 6379", "\"::1\", port: 2 ", "tls: Some"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }

    #[test]
    fn what_cannot_be_used_says_what_to_do() {
        for (url, hint) in [
            ("redis://", "no host"),
            ("redis://a,b", "redis+cluster"),
            ("redis://a?sentinel_password=x", "known are"),
            ("redis+sentinel://a,b", "no service"),
            ("redis+sentinel://a/s/prod", "?prefix="),
            ("redis+sentinel://a/s?sentinel_username=x", "sentinel_password"),
            ("redis+cluster://", "no host"),
            ("redis+cluster://a/1", "?prefix="),
            ("redis://h/prod", "?prefix="),
            ("redis://h?tll=1s", "known are"),
            ("redis://h?replicas=some", "not a number"),
            ("redis://h?replica_timeout=1s", "add replicas"),
            ("redis+cluster://h?replicas=1", "known are"),
            ("redis://h?ttl=soon", "duration"),
            ("redis://h?ca=/x", "rediss"),
            ("rediss://h?ca=/no/such/file", "cannot read"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
