//! The shared suite against the master that real sentinels name.

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_conformance::{
    Badge, BoxError, Level, Need, Start, Suite,
    servers::{self, RedisOptions, RedisSentinel, Skip, Trouble},
};
use lock_core::LockError;
use lock_redis::capabilities;
use redis::aio::MultiplexedConnection;

mod harness;
use harness::{Elsewhere, PASSWORD, RedisHarness, Starting, Store, operator_at, trouble};

fn main() -> ExitCode {
    let suite = Suite::new("redis sentinel", start).with_capabilities(capabilities());
    let suite = suite
        .without(Need::Stop, "what is down is taken over")
        .without(Need::NoFailover, "a failover is waited for a minute");
    suite
        // No proxy can stand between one client and servers that send it elsewhere.
        .claims(Level::Exclusive)
        .claims(Badge::Clean)
        .run()
}

async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    let store: Arc<dyn Store> = match child_address {
        Some(url) => Arc::new(Elsewhere(url)),
        None => match servers_with(3) {
            Ok(servers) => Arc::new(Sentinel(servers)),
            Err(skip) => return Ok(Start::Skip(skip.reason().to_owned())),
        },
    };
    Ok(Start::Ready(Arc::new(RedisHarness::on(store))))
}

/// Sentinels that do not replace the master however long a case freezes it: `tests/sentinel.rs` is
/// about that.
fn servers_with(sentinels: usize) -> Result<RedisSentinel, Skip> {
    servers::redis_sentinel(
        RedisOptions::new().with_password(PASSWORD),
        1,
        sentinels,
        Duration::from_secs(600),
    )
}

#[derive(Debug)]
struct Sentinel(RedisSentinel);

const MASTER: usize = 0;

#[async_trait]
impl Store for Sentinel {
    fn url(&self) -> String {
        format!(
            "{}?sentinel_password={}",
            self.0.url().replace("://", &format!("://:{PASSWORD}@")),
            RedisSentinel::PASSWORD
        )
    }

    async fn operator(&self, _key: &str) -> Result<MultiplexedConnection, LockError> {
        operator_at(&format!(
            "redis://:{PASSWORD}@{}",
            self.0.direct_endpoint(MASTER)
        ))
        .await
    }

    fn another(&self) -> Result<Starting, Skip> {
        let servers = servers_with(1)?;
        Ok(Box::pin(async { Ok(Arc::new(Self(servers)) as _) }))
    }

    fn delay(&self, by: Duration) -> bool {
        self.0.trouble(MASTER, Trouble::Delay(by));
        true
    }

    fn freeze(&self) -> Result<(), LockError> {
        self.0.freeze(MASTER).map_err(trouble)
    }

    fn thaw(&self) -> Result<(), LockError> {
        self.0.thaw(MASTER).map_err(trouble)
    }

    async fn restart(&self) -> Result<(), LockError> {
        self.0.start(MASTER).await.map_err(trouble)
    }
}
