//! The conformance suite over a real Redis server, through layers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    fmt,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::{
    BoxError, Harness, Need, Start, Suite,
    servers::{self, RedisOptions, Server, TcpProxy, Trouble},
};
use lock_core::{Capabilities, DistributedLock, ErrorKind, LockError, LockName};
use lock_layers::{Metrics, Namespace, Stack, Trace};
use lock_redis::{RedisLock, capabilities};
use redis::{AsyncCommands, aio::MultiplexedConnection};

mod layered;
use layered::{Layered, NAMESPACE, listen};

const PASSWORD: &str = "pa55-of-the-suite";

fn main() -> ExitCode {
    listen();
    Suite::new("redis through layers", start)
        .with_capabilities(capabilities())
        .without(Need::EvictWaiters, "a waiter has no entry in the store")
        .run()
}

fn stack() -> Stack {
    Stack::new()
        .with(Trace::new())
        .with(Metrics::new())
        .with(Namespace::new(NAMESPACE).unwrap())
}

async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    let harness = match child_address {
        Some(url) => RedisHarness::at(url, None),
        None => match servers::redis(options()) {
            Ok(server) => RedisHarness::own(server).await?,
            Err(skip) => return Ok(Start::Skip(skip.reason().to_owned())),
        },
    };
    Ok(Start::Ready(Layered::new(
        Arc::new(harness),
        stack(),
        capabilities(),
    )))
}

fn options() -> RedisOptions {
    RedisOptions::new().with_password(PASSWORD).own()
}

type Residue = Box<dyn Fn() -> usize + Send + Sync>;

/// A server behind a proxy, or that of another process.
struct RedisHarness {
    url: String,
    own: Option<(Server, TcpProxy)>,
    residues: Mutex<Vec<Residue>>,
}

impl RedisHarness {
    fn at(url: String, own: Option<(Server, TcpProxy)>) -> Self {
        Self {
            url,
            own,
            residues: Mutex::default(),
        }
    }

    async fn own(server: Server) -> Result<Self, BoxError> {
        let proxy = TcpProxy::start(server.address()?).await?;
        let url = format!("redis://:{PASSWORD}@{}", proxy.address());
        Ok(Self::at(url, Some((server, proxy))))
    }

    fn server(&self) -> Result<&Server, LockError> {
        let own = self.own.as_ref();
        own.map(|(server, _)| server)
            .ok_or_else(|| trouble("not our own server"))
    }

    /// A connection that no trouble reaches.
    async fn operator(&self) -> Result<MultiplexedConnection, LockError> {
        let url = format!("redis://:{PASSWORD}@{}", self.server()?.endpoint());
        redis::Client::open(url)
            .map_err(trouble)?
            .get_multiplexed_async_connection()
            .await
            .map_err(trouble)
    }
}

fn trouble(error: impl Into<BoxError>) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the harness failed").caused_by(error)
}

#[async_trait]
impl Harness for RedisHarness {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let locks = RedisLock::connect(&self.url).await?;
        let mut residues = self.residues.lock().unwrap();
        residues.push(Box::new(locks.residue()));
        Ok(Arc::new(locks))
    }

    fn child_address(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let started = tokio::task::spawn_blocking(|| servers::redis(options()));
        match started.await.map_err(trouble)? {
            Ok(server) => Ok(Some(Arc::new(Self::own(server).await.map_err(trouble)?))),
            Err(_) => Ok(None),
        }
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        let mut operator = self.operator().await?;
        let owner: Option<Vec<u8>> = operator.get(name.as_str()).await.map_err(trouble)?;
        let text = |owner: Vec<u8>| String::from_utf8_lossy(&owner).into_owned();
        Ok(Some(owner.map(text).into_iter().collect()))
    }

    async fn client_residue(&self) -> Option<usize> {
        let residues = self.residues.lock().unwrap();
        Some(residues.iter().map(|residue| residue()).sum())
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        let mut operator = self.operator().await?;
        let () = operator.del(name.as_str()).await.map_err(trouble)?;
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        let Some((_, proxy)) = &self.own else {
            return Ok(false);
        };
        proxy.set(Trouble::Delay(by));
        Ok(true)
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.server()?.freeze().map_err(trouble)?;
        Ok(true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.server()?.thaw().map_err(trouble)
    }

    async fn stop(&self) -> Result<bool, LockError> {
        self.server()?.kill().map_err(trouble)?;
        Ok(true)
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.server()?.restart().await.map_err(trouble)?;
        Ok(true)
    }
}

impl fmt::Debug for RedisHarness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisHarness").finish_non_exhaustive()
    }
}
