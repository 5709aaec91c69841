use std::sync::Arc;

use async_trait::async_trait;
use lock_core::{Capabilities, Connector, DistributedLock, ErrorKind, LockError, LockUrl};

use crate::{
    connector,
    quorum::{capabilities::quorum_capabilities, config::RedisQuorumLockBuilder},
};

/// Opens
/// `redis+quorum://[user[:password]@]host[:port],host[:port],host[:port][,...][/database][?key=value&...]`
/// and, with TLS, `rediss+quorum://` URLs.
///
/// The hosts are independent servers, at least three, which
/// [`RedisQuorumLock`](crate::RedisQuorumLock) asks for a majority. The parameters are those of
/// [`RedisConnector`](crate::RedisConnector), but for `request_timeout`, the time that one server
/// has to answer: its default is `200ms`; and for
/// [`max_clock_offset`](crate::RedisQuorumLockBuilder::with_max_clock_offset), whose default is
/// `0s`.
///
/// ```
/// use lock_core::Registry;
/// use lock_redis::RedisQuorumConnector;
///
/// let registry = Registry::new().with(RedisQuorumConnector);
/// assert_eq!(registry.schemes().collect::<Vec<_>>(), ["redis+quorum", "rediss+quorum"]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisQuorumConnector;

#[async_trait]
impl Connector for RedisQuorumConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["redis+quorum", "rediss+quorum"]
    }

    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        let builder = builder_of(url)?;
        builder.check().map_err(LockError::in_url)?;
        Ok(builder.each.validity().applied_to(quorum_capabilities()))
    }

    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let connected = builder_of(url)?.connect().await;
        Ok(Arc::new(connected.map_err(LockError::in_url)?))
    }
}

/// Settings that a URL gives.
pub(crate) fn builder_of(url: &LockUrl) -> Result<RedisQuorumLockBuilder, LockError> {
    connector::check_params(url, &[])?;
    if url.endpoints().is_empty() {
        return Err(LockError::new(
            ErrorKind::InvalidUrl,
            "the URL has no host; write redis+quorum://host:port,host:port,host:port",
        ));
    }
    let mut builder = RedisQuorumLockBuilder::new()
        .with_servers(connector::addresses(url, crate::config::DEFAULT_PORT));
    builder.each = connector::settings(url, builder.each)?;
    builder.each = connector::with_database(builder.each, url.path())?;
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisQuorumLockBuilder, LockError> {
        builder_of(&url.parse()?)
    }

    #[test]
    fn what_a_url_says_is_set() {
        let shown = format!(
            "{:?}",
            parse("redis+quorum://app:s3cret@a,b:1,c/7?ttl=15s&namespace=prod:").unwrap()
        );
        for part in [
            "\"a\", port: 6379",
            "\"b\", port: 1 ",
            "\"c\"",
            "database: 7",
            "\"app\"",
            "15s",
            "\"prod:\"",
            "200ms",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("s3cret"));
        assert!(
            format!(
                "{:?}",
                parse("redis+quorum://a,b,c?request_timeout=50ms").unwrap()
            )
            .contains("50ms")
        );
    }

    #[test]
    fn what_cannot_be_used_says_what_to_do() {
        for (url, hint) in [
            ("redis+quorum://", "no host"),
            ("redis+quorum://a,b,c/prod", "?namespace="),
            ("redis+quorum://a,b,c?tll=1s", "known are"),
            ("redis+quorum://a,b,c?ca=/x", "rediss"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
