//! The shared suite against a real Redis server.

use std::{process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_conformance::{
    Badge, BoxError, Level, Start, Suite,
    servers::{self, RedisOptions, Server, Skip, TcpProxy, Trouble},
};
use lock_core::LockError;
use lock_redis::capabilities;
use redis::aio::MultiplexedConnection;

mod harness;
use harness::{Elsewhere, PASSWORD, RedisHarness, Starting, Store, operator_at, trouble};

fn main() -> ExitCode {
    Suite::new("redis", start)
        .with_capabilities(capabilities())
        .claims(Level::RestartSafe)
        .claims(Badge::Clean)
        .run()
}

async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    let store: Arc<dyn Store> = match child_address {
        Some(url) => Arc::new(Elsewhere(url)),
        None => match servers::redis(options()) {
            Ok(server) if server.is_own() => Arc::new(One::own(server).await?),
            Ok(server) => Arc::new(One {
                url: server.url().to_owned(),
                own: None,
            }),
            Err(skip) => return Ok(Start::Skip(skip.reason().to_owned())),
        },
    };
    Ok(Start::Ready(Arc::new(RedisHarness::on(store))))
}

/// A server with a password, unless there is one already.
fn options() -> RedisOptions {
    match std::env::var_os("LOCK_TEST_REDIS") {
        Some(_) => RedisOptions::new(),
        None => RedisOptions::new().with_password(PASSWORD),
    }
}

/// One server behind a proxy, or somebody else's.
#[derive(Debug)]
struct One {
    url: String,
    own: Option<(Server, TcpProxy)>,
}

impl One {
    async fn own(server: Server) -> Result<Self, BoxError> {
        let proxy = TcpProxy::start(server.address()?).await?;
        Ok(Self {
            url: format!("redis://:{PASSWORD}@{}", proxy.address()),
            own: Some((server, proxy)),
        })
    }

    fn server(&self) -> Result<&Server, LockError> {
        self.own
            .as_ref()
            .map(|(server, _)| server)
            .ok_or_else(|| trouble("not our own server"))
    }
}

#[async_trait]
impl Store for One {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn operator(&self, _key: &str) -> Result<MultiplexedConnection, LockError> {
        match &self.own {
            Some((server, _)) => {
                operator_at(&format!("redis://:{PASSWORD}@{}", server.endpoint())).await
            }
            None => operator_at(&self.url).await,
        }
    }

    fn another(&self) -> Result<Starting, Skip> {
        let server = servers::redis(RedisOptions::new().with_password(PASSWORD).own())?;
        Ok(Box::pin(async {
            Ok(Arc::new(Self::own(server).await.map_err(trouble)?) as _)
        }))
    }

    fn delay(&self, by: Duration) -> bool {
        let Some((_, proxy)) = &self.own else {
            return false;
        };
        proxy.set(Trouble::Delay(by));
        true
    }

    fn freeze(&self) -> Result<(), LockError> {
        self.server()?.freeze().map_err(trouble)
    }

    fn thaw(&self) -> Result<(), LockError> {
        self.server()?.thaw().map_err(trouble)
    }

    fn stop(&self) -> Result<bool, LockError> {
        self.server()?.kill().map(|()| true).map_err(trouble)
    }

    async fn restart(&self) -> Result<(), LockError> {
        self.server()?.restart().await.map_err(trouble)
    }
}
