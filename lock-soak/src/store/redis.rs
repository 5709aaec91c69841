use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::servers::{self, RedisOptions, Server, TcpProxy, Trouble};
use redis::{Client, aio::MultiplexedConnection};

use super::Store;
use crate::{
    BoxError,
    schedule::{Cut, Side},
};

/// One Redis server on this machine that has every write on disk before its reply; clients reach it through a proxy.
#[derive(Debug)]
pub(super) struct Redis {
    server: Server,
    proxy: TcpProxy,
}

/// Separates a lock's key from what makes the key of its counter.
const SEPARATOR: u8 = 0x1f;
/// How long a counter outlives the last use of its lock.
const COUNTER_TTL: Duration = Duration::from_secs(24 * 3600);
/// For a server that reads its data again after it was killed.
const HEALTHY_LIMIT: Duration = Duration::from_secs(60);

impl Redis {
    pub(super) async fn start() -> Result<Self, BoxError> {
        let server = tokio::task::spawn_blocking(|| servers::redis(RedisOptions::new().own())).await??;
        let proxy = TcpProxy::start(server.endpoint().parse()?).await?;
        Ok(Self { server, proxy })
    }

    /// Unlike the clients under test, on a way that no fault touches.
    async fn operator(&self) -> Result<MultiplexedConnection, BoxError> {
        Ok(Client::open(self.server.url())?.get_multiplexed_async_connection().await?)
    }

    async fn answers(&self) -> Result<(), BoxError> {
        Ok(redis::cmd("PING").query_async(&mut self.operator().await?).await?)
    }
}

#[async_trait]
impl Store for Redis {
    fn url(&self) -> String {
        format!("redis://{}", self.proxy.address())
    }

    async fn leader(&self) -> Result<usize, BoxError> {
        Ok(0)
    }

    fn kill(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.kill()?)
    }

    fn start(&self, _: usize) -> Result<(), BoxError> {
        Ok(tokio::task::block_in_place(|| self.server.start_blocking())?)
    }

    fn pause(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.freeze()?)
    }

    fn resume(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.thaw()?)
    }

    fn cut(&self, _: usize, _: Side, cut: Cut) {
        self.proxy.set(match cut {
            Cut::Silent => Trouble::Blackhole,
            Cut::Refused => Trouble::Refuse,
            Cut::Replies => Trouble::DropReplies,
        });
    }

    fn delay(&self, _: usize, by: Duration) {
        self.proxy.set(Trouble::Delay(by));
    }

    fn heal(&self, _: usize) {
        self.proxy.set(Trouble::None);
    }

    async fn wait_healthy(&self) -> Result<(), BoxError> {
        let begin = tokio::time::Instant::now();
        while let Err(error) = self.answers().await {
            if begin.elapsed() >= HEALTHY_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn longest_leader_pause(&self, _: Duration) -> Option<Duration> {
        None
    }

    /// Forgets all scripts, and closes all connections.
    async fn chore(&self) -> Result<(), BoxError> {
        let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut self.operator().await?).await?;
        self.proxy.cut().await;
        Ok(())
    }

    /// Counters belong there, if they go some day.
    async fn contents(&self) -> Result<Vec<String>, BoxError> {
        let mut operator = self.operator().await?;
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut operator).await?;
        let mut found = Vec::new();
        for key in keys {
            let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut operator).await?;
            let expires = u64::try_from(left).is_ok_and(|left| Duration::from_millis(left) <= COUNTER_TTL);
            if !(key.contains(&SEPARATOR) && expires) {
                found.push(format!("the key {}, whose PTTL is {left}", key.escape_ascii()));
            }
        }
        Ok(found)
    }
}
