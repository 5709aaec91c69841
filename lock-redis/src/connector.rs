use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl};

use crate::{
    builder::{DEFAULT_PORT, RedisLockBuilder},
    capabilities::capabilities,
};

/// Opens `redis://` and, with TLS, `rediss://` URLs: `redis://[user[:password]@]host[:port][/database][?key=value&...]`.
///
/// | parameter | meaning | default |
/// | --- | --- | --- |
/// | `ttl` | TTL of acquisitions that do not ask for one | `30s` |
/// | `prefix` | what is put before every name to make its key | nothing |
/// | `connect_timeout` | until a connection can be used | `5s` |
/// | `request_timeout` | for the answer to a request | `1s` |
/// | `poll_interval` | how often a waiter looks although nothing was reported | `2s` |
/// | `ca`, `cert`, `key` | PEM files, with `rediss` | the system's authorities |
///
/// User, password and PEM files may also come from the environment: `LOCK_REDIS_USERNAME`, `LOCK_REDIS_PASSWORD`,
/// `LOCK_REDIS_CA`, `LOCK_REDIS_CERT`, `LOCK_REDIS_KEY`.
///
/// ```
/// use lock_core::Registry;
/// use lock_redis::RedisConnector;
///
/// let registry = Registry::new().with(RedisConnector);
/// assert_eq!(registry.schemes().collect::<Vec<_>>(), ["redis", "rediss"]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisConnector;

const PARAMS: [&str; 8] = ["ttl", "prefix", "connect_timeout", "request_timeout", "poll_interval", "ca", "cert", "key"];

/// Where credentials and PEM files are looked up if the URL does not give them.
const ENV_PREFIX: &str = "LOCK_REDIS";

#[async_trait]
impl Connector for RedisConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["redis", "rediss"]
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
    url.check_params(&PARAMS)?;
    let mut builder = RedisLockBuilder::new().with_prefix(url.param("prefix").unwrap_or_default());
    match url.endpoints() {
        [] => return Err(invalid("the URL has no host; write redis://host:port")),
        [server] => builder = builder.with_address(&server.host, server.port.unwrap_or(DEFAULT_PORT)),
        [_, ..] => return Err(invalid("the URL has several hosts; give the one server that keeps the locks")),
    }
    if !url.path().is_empty() {
        let number = url.path().parse();
        builder = builder.with_database(
            number
                .map_err(|error| invalid("the path is not the number of a database; give a namespace as ?prefix=NAME").caused_by(error))?,
        );
    }
    let (username, password) = url.credentials(ENV_PREFIX);
    if let Some(username) = username {
        builder = builder.with_username(username);
    }
    if let Some(password) = password {
        builder = builder.with_password(password);
    }
    match url.scheme() {
        "redis" if ["ca", "cert", "key"].iter().any(|file| url.param(file).is_some()) => {
            return Err(invalid("PEM files are for TLS; write rediss:// instead of redis://"));
        }
        "redis" => {}
        "rediss" => builder = builder.with_tls(url.tls_files(ENV_PREFIX)?),
        _ => return Err(invalid("the scheme is neither redis nor rediss")),
    }
    timings(url, builder)
}

fn timings(url: &LockUrl, mut builder: RedisLockBuilder) -> Result<RedisLockBuilder, LockError> {
    type Setter = fn(RedisLockBuilder, std::time::Duration) -> RedisLockBuilder;
    let setters: [(&str, Setter); 4] = [
        ("ttl", RedisLockBuilder::with_ttl),
        ("connect_timeout", RedisLockBuilder::with_connect_timeout),
        ("request_timeout", RedisLockBuilder::with_request_timeout),
        ("poll_interval", RedisLockBuilder::with_poll_interval),
    ];
    for (param, set) in setters {
        if let Some(value) = url.duration(param)? {
            builder = set(builder, value);
        }
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
        let url = "redis://app:s3cret@h:1/7?ttl=15s&prefix=prod:&connect_timeout=1s&request_timeout=200ms&poll_interval=1s";
        let shown = format!("{:?}", parse(url).unwrap());
        for part in ["\"h\"", "port: 1,", "database: 7", "\"app\"", "15s", "\"prod:\"", "200ms"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret"));
    }

    #[test]
    fn what_cannot_be_used_says_what_to_do() {
        for (url, hint) in [
            ("redis://", "no host"),
            ("redis://a,b", "several hosts"),
            ("redis://h/prod", "?prefix="),
            ("redis://h?tll=1s", "known are"),
            ("redis://h?ttl=soon", "duration"),
            ("redis://h?ca=/x", "rediss://"),
            ("rediss://h?ca=/no/such/file", "cannot read"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
