//! The shared suite against a real Redis server.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use conformance_tests::{
    BoxError, Harness, Need, Start, Suite,
    servers::{self, RedisOptions, Server, TcpProxy, Trouble},
};
use lock_core::{Capabilities, DistributedLock, ErrorKind, LockError, LockName};
use lock_redis::{RedisLock, capabilities};
use redis::AsyncCommands;

const PASSWORD: &str = "pa55-of-the-suite";

fn main() -> ExitCode {
    Suite::new("redis", start).with_capabilities(capabilities()).without(Need::EvictWaiters, "a waiter has no entry in the store").run()
}

async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    Ok(match child_address {
        Some(address) => Start::Ready(Arc::new(Redis::at(address, None))),
        None => match servers::redis(options()) {
            Ok(server) if server.is_own() => Start::Ready(Arc::new(Redis::on(server).await?)),
            Ok(server) => Start::Ready(Arc::new(Redis::at(server.url().to_owned(), None))),
            Err(skip) => Start::Skip(skip.reason().to_owned()),
        },
    })
}

/// A server with a password, unless there is one already.
fn options() -> RedisOptions {
    match std::env::var_os("LOCK_TEST_REDIS") {
        Some(_) => RedisOptions::new(),
        None => RedisOptions::new().with_password(PASSWORD),
    }
}

/// A Redis server behind a proxy, or somebody else's.
#[derive(Debug)]
struct Redis {
    url: String,
    own: Option<(Server, TcpProxy)>,
    residues: Mutex<Vec<Residue>>,
}

struct Residue(Box<dyn Fn() -> usize + Send + Sync>);

impl std::fmt::Debug for Residue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Residue").field(&self.0()).finish()
    }
}

impl Redis {
    fn at(url: String, own: Option<(Server, TcpProxy)>) -> Self {
        Self { url, own, residues: Mutex::default() }
    }

    async fn on(server: Server) -> Result<Self, BoxError> {
        let address: SocketAddr = server.endpoint().parse()?;
        let proxy = TcpProxy::start(address).await?;
        Ok(Self::at(format!("redis://:{PASSWORD}@{}", proxy.address()), Some((server, proxy))))
    }

    fn server(&self) -> Result<&Server, LockError> {
        self.own.as_ref().map(|(server, _)| server).ok_or_else(|| trouble("not our own server"))
    }

    /// An operator's connection, past the proxy.
    async fn raw(&self) -> Result<redis::aio::MultiplexedConnection, LockError> {
        let url = match &self.own {
            Some((server, _)) => format!("redis://:{PASSWORD}@{}", server.endpoint()),
            None => self.url.clone(),
        };
        let client = redis::Client::open(url).map_err(trouble)?;
        client.get_multiplexed_async_connection().await.map_err(trouble)
    }
}

fn trouble(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the harness failed").caused_by(error)
}

#[async_trait]
impl Harness for Redis {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let locks = RedisLock::connect(&self.url).await?;
        self.residues.lock().unwrap_or_else(PoisonError::into_inner).push(Residue(Box::new(locks.residue())));
        Ok(Arc::new(locks))
    }

    fn child_address(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let server = tokio::task::spawn_blocking(|| servers::redis(RedisOptions::new().with_password(PASSWORD).own()));
        match server.await.map_err(trouble)? {
            Ok(server) => Ok(Some(Arc::new(Self::on(server).await.map_err(trouble)?))),
            Err(_) => Ok(None),
        }
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        let owner: Option<Vec<u8>> = self.raw().await?.get(name.as_str()).await.map_err(trouble)?;
        Ok(Some(owner.iter().map(|owner| String::from_utf8_lossy(owner).into_owned()).collect()))
    }

    async fn client_residue(&self) -> Option<usize> {
        Some(self.residues.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|residue| residue.0()).sum())
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        let () = self.raw().await?.del(name.as_str()).await.map_err(trouble)?;
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        let Some((_, proxy)) = &self.own else { return Ok(false) };
        proxy.set(Trouble::Delay(by));
        Ok(true)
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.server()?.freeze().map(|()| true).map_err(trouble)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.server()?.thaw().map_err(trouble)
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.server()?.restart().await.map(|()| true).map_err(trouble)
    }
}
