//! The shared suite against a real Redis cluster.

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_conformance::{
    Badge, BoxError, Level, Need, Start, Suite,
    servers::{self, RedisCluster, RedisOptions, Skip, Trouble},
};
use lock_core::LockError;
use lock_redis::capabilities;
use redis::aio::MultiplexedConnection;

mod harness;
use harness::{Elsewhere, PASSWORD, RedisHarness, Starting, Store, operator_at, trouble};

fn main() -> ExitCode {
    let suite = Suite::new("redis cluster", start).with_capabilities(capabilities());
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
        None => match cluster() {
            Ok(cluster) => Arc::new(Cluster(cluster)),
            Err(skip) => return Ok(Start::Skip(skip.reason().to_owned())),
        },
    };
    Ok(Start::Ready(Arc::new(RedisHarness::on(store))))
}

const MASTERS: usize = 3;

fn cluster() -> Result<RedisCluster, Skip> {
    servers::redis_cluster(RedisOptions::new().with_password(PASSWORD), MASTERS, 0)
}

#[derive(Debug)]
struct Cluster(RedisCluster);

impl Cluster {
    async fn operator_of(&self, server: usize) -> Result<MultiplexedConnection, LockError> {
        operator_at(&format!(
            "redis://:{PASSWORD}@{}",
            self.0.direct_endpoint(server)
        ))
        .await
    }
}

#[async_trait]
impl Store for Cluster {
    fn url(&self) -> String {
        self.0.url().replace("://", &format!("://:{PASSWORD}@"))
    }

    async fn operator(&self, key: &str) -> Result<MultiplexedConnection, LockError> {
        let mut any = self.operator_of(0).await?;
        let slot: usize = redis::cmd("CLUSTER")
            .arg("KEYSLOT")
            .arg(key)
            .query_async(&mut any)
            .await
            .map_err(trouble)?;
        let master = (0..MASTERS).find(|at| slot < 16384 * (at + 1) / MASTERS);
        self.operator_of(master.unwrap_or_default()).await
    }

    fn another(&self) -> Result<Starting, Skip> {
        let cluster = cluster()?;
        Ok(Box::pin(async { Ok(Arc::new(Self(cluster)) as _) }))
    }

    fn delay(&self, by: Duration) -> bool {
        (0..MASTERS).for_each(|server| self.0.trouble(server, Trouble::Delay(by)));
        true
    }

    fn freeze(&self) -> Result<(), LockError> {
        (0..MASTERS)
            .try_for_each(|server| self.0.freeze(server))
            .map_err(trouble)
    }

    fn thaw(&self) -> Result<(), LockError> {
        (0..MASTERS)
            .try_for_each(|server| self.0.thaw(server))
            .map_err(trouble)
    }

    async fn restart(&self) -> Result<(), LockError> {
        self.0.restart().await.map_err(trouble)
    }
}
