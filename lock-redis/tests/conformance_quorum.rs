//! The shared suite against a quorum of independent Redis servers.

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{FutureExt, future::try_join_all};
use lock_conformance::{
    Badge, BoxError, Level, Start, Suite,
    servers::{self, RedisOptions, Server, Skip, TcpProxy, Trouble},
};
use lock_core::LockError;
use lock_redis::quorum_capabilities;
use redis::aio::MultiplexedConnection;

mod harness;
use harness::{Elsewhere, PASSWORD, RedisHarness, Starting, Store, operator_at, trouble};

fn main() -> ExitCode {
    Suite::new("redis quorum", start)
        .with_capabilities(quorum_capabilities())
        .claims(Level::RestartSafe)
        .claims(Badge::Clean)
        .run()
}

async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    let store: Arc<dyn Store> = match child_address {
        Some(url) => Arc::new(Elsewhere(url)),
        None => match three() {
            Ok(servers) => quorum(servers).await?,
            Err(skip) => return Ok(Start::Skip(skip.reason().to_owned())),
        },
    };
    Ok(Start::Ready(Arc::new(RedisHarness::on(store))))
}

fn three() -> Result<Vec<Server>, Skip> {
    (0..3)
        .map(|_| servers::redis(RedisOptions::new().with_password(PASSWORD).own()))
        .collect()
}

async fn quorum(servers: Vec<Server>) -> Result<Arc<dyn Store>, LockError> {
    let mut members = Vec::new();
    for server in servers {
        let proxy = TcpProxy::start(server.address().map_err(trouble)?)
            .await
            .map_err(trouble)?;
        members.push((server, proxy));
    }
    Ok(Arc::new(Quorum(members)))
}

/// Servers, each behind a proxy; all of them get into the same trouble.
#[derive(Debug)]
struct Quorum(Vec<(Server, TcpProxy)>);

#[async_trait]
impl Store for Quorum {
    /// A loaded machine answers late, and the trouble of the cases is no slow server.
    fn url(&self) -> String {
        let addresses: Vec<_> = self
            .0
            .iter()
            .map(|(_, proxy)| proxy.address().to_string())
            .collect();
        format!(
            "redis+quorum://:{PASSWORD}@{}?request_timeout=1s",
            addresses.join(",")
        )
    }

    async fn operator(&self, _key: &str) -> Result<MultiplexedConnection, LockError> {
        operator_at(&format!("redis://:{PASSWORD}@{}", self.0[0].0.endpoint())).await
    }

    async fn operators(&self, _key: &str) -> Result<Vec<MultiplexedConnection>, LockError> {
        let url =
            |(server, _): &(Server, TcpProxy)| format!("redis://:{PASSWORD}@{}", server.endpoint());
        try_join_all(
            self.0
                .iter()
                .map(url)
                .map(|url| async move { operator_at(&url).await }),
        )
        .await
    }

    fn another(&self) -> Result<Starting, Skip> {
        let servers = three()?;
        Ok(async { quorum(servers).await }.boxed())
    }

    fn delay(&self, by: Duration) -> bool {
        self.0
            .iter()
            .for_each(|(_, proxy)| proxy.set(Trouble::Delay(by)));
        true
    }

    fn freeze(&self) -> Result<(), LockError> {
        self.0
            .iter()
            .try_for_each(|(server, _)| server.freeze().map_err(trouble))
    }

    fn thaw(&self) -> Result<(), LockError> {
        self.0
            .iter()
            .try_for_each(|(server, _)| server.thaw().map_err(trouble))
    }

    fn stop(&self) -> Result<bool, LockError> {
        self.0
            .iter()
            .try_for_each(|(server, _)| server.kill().map_err(trouble))
            .map(|()| true)
    }

    async fn restart(&self) -> Result<(), LockError> {
        try_join_all(self.0.iter().map(|(server, _)| server.restart()))
            .await
            .map(drop)
            .map_err(trouble)
    }
}
