use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl, backend::Settings,
};

use crate::{
    capabilities::capabilities,
    config::{DEFAULT_PORT, DEFAULT_SENTINEL_PORT, RedisLockBuilder},
};

/// Opens `redis://` URLs, and their like for several servers:
///
/// | URL | the locks are on |
/// | --- | --- |
/// | `redis://[user[:password]@]host[:port][/database]` | that server |
/// | `redis+sentinel://[user[:password]@]host[:port],host[:port],.../service[/database]` | the server that these sentinels name as the master of the service, also after a failover |
/// | `redis+cluster://[user[:password]@]host[:port],host[:port],...` | the cluster that these servers belong to |
///
/// With `rediss` instead of `redis` all connections are encrypted, those to sentinels too. The port
/// is 6379, of a sentinel 26379. User and password are those of the servers. Give all sentinels,
/// and of a cluster as many servers as may be down at once, and one more: the others are found.
///
/// Parameters, as `?key=value&...`:
///
/// | parameter | meaning | default |
/// | --- | --- | --- |
/// | `ttl` | TTL of acquisitions that ask for none | `30s` |
/// | `namespace` | start of every key; a `:` follows it unless it ends in a separator of its own | none |
/// | `connect_timeout` | time until a connection can be used | `5s` |
/// | `request_timeout` | time until a request is answered | `1s` |
/// | `poll_interval` | interval at which a waiter looks although nothing was reported | `2s` |
/// | `counter_ttl` | time for which a fencing counter outlives its lock; see [`with_counter_ttl`](RedisLockBuilder::with_counter_ttl) | `10m` |
/// | `background_thread` | run connections and renewals on a thread of the client's own | `false` |
/// | `release_at_exit` | let the end of the runtime wait for releases, for at most half a second | `true` |
/// | `max_clock_offset` | greatest difference of the clocks of servers that take over from each other; see [`with_max_clock_offset`](RedisLockBuilder::with_max_clock_offset) | `500ms` with sentinels, a cluster or `replicas`, else `0s` |
/// | `ca`, `cert`, `key` | PEM files, with `rediss` | the system's authorities |
/// | `replicas`, `replica_timeout` | number of replicas that must confirm a lock, and the time they have; not with `cluster` | none, `1s` |
/// | `sentinel_username`, `sentinel_password` | credentials for the sentinels themselves | none |
///
/// User, password and PEM files may also come from the environment: `LOCK_REDIS_USERNAME`,
/// `LOCK_REDIS_PASSWORD`, `LOCK_REDIS_CA`, `LOCK_REDIS_CERT`, `LOCK_REDIS_KEY`,
/// `LOCK_REDIS_SENTINEL_USERNAME`, `LOCK_REDIS_SENTINEL_PASSWORD`.
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

/// Parameters of every URL besides the common ones.
const PARAMS: [&str; 3] = ["poll_interval", "max_clock_offset", "counter_ttl"];

/// Of one server, also behind sentinels.
const REPLICA_PARAMS: [&str; 2] = ["replicas", "replica_timeout"];

const SENTINEL_PARAMS: [&str; 2] = ["sentinel_username", "sentinel_password"];

const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);

/// Environment variables of credentials and PEM files that the URL does not give.
const ENV_PREFIX: &str = "LOCK_REDIS";

#[async_trait]
impl Connector for RedisConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &[
            "redis",
            "rediss",
            "redis+sentinel",
            "rediss+sentinel",
            "redis+cluster",
            "rediss+cluster",
        ]
    }

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        let builder = builder_of(url)?;
        builder.check().map_err(LockError::in_url)?;
        Ok(builder.validity().applied_to(capabilities()))
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let connected = builder_of(url)?.connect().await;
        Ok(Arc::new(connected.map_err(LockError::in_url)?))
    }
}

/// Settings that a URL gives.
pub(crate) fn builder_of(url: &LockUrl) -> Result<RedisLockBuilder, LockError> {
    let topology = url
        .scheme()
        .split_once('+')
        .map_or("", |(_, topology)| topology);
    let more: &[&[&str]] = match topology {
        "" => &[&REPLICA_PARAMS],
        "sentinel" => &[&REPLICA_PARAMS, &SENTINEL_PARAMS],
        _ => &[],
    };
    check_params(url, more)?;
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
        (Some(Ok(replicas)), timeout) => {
            Ok(builder.with_replicas(replicas, timeout.unwrap_or(REPLICA_TIMEOUT)))
        }
        (Some(Err(error)), _) => Err(invalid("`replicas` is not a number").caused_by(error)),
        (None, Some(_)) => Err(invalid(
            "a replica_timeout needs replicas to wait for; add replicas=1",
        )),
        (None, None) => Ok(builder),
    }
}

pub(crate) fn check_params(url: &LockUrl, more: &[&[&str]]) -> Result<(), LockError> {
    url.check_params(&[&Settings::PARAMS[..], &PARAMS, &more.concat()].concat())
}

/// Takes over what is the same for all servers.
pub(crate) fn settings(
    url: &LockUrl,
    mut builder: RedisLockBuilder,
) -> Result<RedisLockBuilder, LockError> {
    builder.settings.read(url, ENV_PREFIX, "rediss")?;
    if let Some(interval) = url.duration("poll_interval")? {
        builder = builder.with_poll_interval(interval);
    }
    if let Some(ttl) = url.duration("counter_ttl")? {
        builder = builder.with_counter_ttl(ttl);
    }
    if let Some(offset) = url.duration("max_clock_offset")? {
        builder = builder.with_max_clock_offset(offset);
    }
    // A password alone is that of the default user.
    if builder.settings.password.is_some() {
        builder.settings.user.get_or_insert_default();
    }
    Ok(builder)
}

fn server(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    match url.endpoints() {
        [] => Err(invalid("the URL has no host; write redis://host:port")),
        [server] => with_database(
            builder.with_address(&server.host, server.port.unwrap_or(DEFAULT_PORT)),
            url.path(),
        ),
        [_, ..] => Err(invalid(
            "the URL has several hosts; give the one server that keeps the locks, or write redis+sentinel or redis+cluster",
        )),
    }
}

fn sentinels(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    let (service, database) = url.path().split_once('/').unwrap_or((url.path(), ""));
    if url.endpoints().is_empty() || service.is_empty() {
        return Err(invalid(
            "the URL has no host or no service; write redis+sentinel://host:port,host:port/service",
        ));
    }
    let mut builder = builder.with_sentinels(addresses(url, DEFAULT_SENTINEL_PORT), service);
    let env = |name: &str| {
        std::env::var(format!("{ENV_PREFIX}_SENTINEL_{name}"))
            .ok()
            .filter(|value| !value.is_empty())
    };
    let given = |param: &str, variable: &str| {
        url.param(param)
            .map(str::to_owned)
            .or_else(|| env(variable))
    };
    let user = given("sentinel_username", "USERNAME");
    match (user, given("sentinel_password", "PASSWORD")) {
        (None, None) => {}
        (user, Some(password)) => {
            builder = builder.with_sentinel_credentials(user.unwrap_or_default(), password);
        }
        (Some(_), None) => return Err(invalid("a sentinel_username needs a sentinel_password")),
    }
    with_database(builder, database)
}

fn cluster(url: &LockUrl, builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    match (url.endpoints(), url.path()) {
        ([], _) => Err(invalid(
            "the URL has no host; write redis+cluster://host:port,host:port",
        )),
        (_, "" | "0") => Ok(builder.with_cluster(addresses(url, DEFAULT_PORT))),
        _ => Err(invalid(
            "a cluster has no databases; give a namespace as ?namespace=NAME",
        )),
    }
}

pub(crate) fn addresses(url: &LockUrl, port: u16) -> impl Iterator<Item = (&str, u16)> {
    url.endpoints()
        .iter()
        .map(move |endpoint| (endpoint.host.as_str(), endpoint.port.unwrap_or(port)))
}

pub(crate) fn with_database(
    builder: RedisLockBuilder,
    path: &str,
) -> Result<RedisLockBuilder, LockError> {
    if path.is_empty() {
        return Ok(builder);
    }
    let wrong = |error| {
        invalid("the path is not the number of a database; give a namespace as ?namespace=NAME")
            .caused_by(error)
    };
    Ok(builder.with_database(path.parse().map_err(wrong)?))
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
        let url = "redis://app:s3cret@h:1/7?ttl=15s&namespace=prod:&connect_timeout=1s&request_timeout=200ms&max_clock_offset=70ms&counter_ttl=77s";
        let shown = format!("{:?}", parse(url).unwrap());
        for part in [
            "\"h\"",
            "port: 1 ",
            "database: 7",
            "\"app\"",
            "15s",
            "\"prod:\"",
            "200ms",
            "70ms",
            "counter_ttl: 77s",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret"));
    }

    #[test]
    fn what_a_url_says_of_sentinels_and_clusters_is_set() {
        let url = "redis+sentinel://app:s3cret@h1,h2:2/mymaster/7?sentinel_username=watcher&sentinel_password=s4cret";
        let shown = format!("{:?}", parse(url).unwrap());
        for part in [
            "\"h1\", port: 26379",
            "\"h2\", port: 2 ",
            "\"mymaster\"",
            "database: 7",
            "\"app\"",
            "\"watcher\"",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret") && !shown.contains("s4cret"));
        let shown = format!(
            "{:?}",
            parse("rediss+cluster://h1,[::1]:2?namespace=p").unwrap()
        );
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
            ("redis+sentinel://a/s/prod", "?namespace="),
            (
                "redis+sentinel://a/s?sentinel_username=x",
                "sentinel_password",
            ),
            ("redis+cluster://", "no host"),
            ("redis+cluster://a/1", "?namespace="),
            ("redis://h/prod", "?namespace="),
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
