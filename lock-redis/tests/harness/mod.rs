//! The conformance suite's harness for Redis in whichever arrangement.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test target uses a part of it"
)]

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_conformance::{Harness, servers::Skip, with_addresses};
use lock_core::{
    Capabilities, DistributedLock, ErrorKind, LockError, LockName, LockUrl, backend::locked,
};
use lock_redis::{RedisLock, RedisQuorumLock, capabilities, quorum_capabilities};
use redis::{AsyncCommands, aio::MultiplexedConnection};

pub(crate) const PASSWORD: &str = "pa55-of-the-suite";

/// Servers that keep locks, and the trouble that they can be put into.
#[async_trait]
pub(crate) trait Store: fmt::Debug + Send + Sync + 'static {
    /// The way in which clients connect.
    fn url(&self) -> String;

    /// An operator's connection to the server that keeps a key, which no trouble reaches.
    async fn operator(&self, key: &str) -> Result<MultiplexedConnection, LockError>;

    /// The same to every server that has the key, where that is more than one.
    async fn operators(&self, key: &str) -> Result<Vec<MultiplexedConnection>, LockError> {
        Ok(vec![self.operator(key).await?])
    }

    /// Starts the same once more; takes long, and blocks.
    fn another(&self) -> Result<Starting, Skip>;

    /// Delays what goes to clients and comes from them; `false` if it cannot.
    fn delay(&self, by: Duration) -> bool;

    fn freeze(&self) -> Result<(), LockError>;

    fn thaw(&self) -> Result<(), LockError>;

    /// Kills the servers; `false` if it cannot.
    fn stop(&self) -> Result<bool, LockError> {
        Ok(false)
    }

    async fn restart(&self) -> Result<(), LockError>;
}

/// Work left to be done in the runtime when the servers have started.
pub(crate) type Starting =
    futures_util::future::BoxFuture<'static, Result<Arc<dyn Store>, LockError>>;

/// A store that another process has started: good for connecting, and nothing else.
#[derive(Debug)]
pub(crate) struct Elsewhere(pub(crate) String);

pub(crate) struct RedisHarness {
    store: Arc<dyn Store>,
    residues: Mutex<Vec<Residue>>,
}

type Residue = Box<dyn Fn() -> usize + Send + Sync>;

impl RedisHarness {
    pub(crate) fn on(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            residues: Mutex::default(),
        }
    }

    fn is_quorum(&self) -> bool {
        self.store.url().starts_with("redis+quorum")
    }

    /// Default for how far the servers' clocks may be apart.
    fn clock_offset(&self) -> Duration {
        let takes_over = ["+sentinel", "+cluster"]
            .iter()
            .any(|servers| self.store.url().contains(servers));
        if takes_over {
            Duration::from_millis(500)
        } else {
            Duration::ZERO
        }
    }

    async fn connect_to(&self, url: &str) -> Result<Arc<dyn DistributedLock>, LockError> {
        if self.is_quorum() {
            let locks = RedisQuorumLock::connect(url).await?;
            self.count(Box::new(locks.residue()));
            return Ok(Arc::new(locks));
        }
        let locks = RedisLock::connect(url).await?;
        self.count(Box::new(locks.residue()));
        Ok(Arc::new(locks))
    }

    fn count(&self, residue: Residue) {
        locked(&self.residues).push(residue);
    }

    fn residue(&self) -> usize {
        locked(&self.residues).iter().map(|residue| residue()).sum()
    }
}

pub(crate) fn trouble(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the harness failed").caused_by(error)
}

/// A connection to one server.
pub(crate) async fn operator_at(url: &str) -> Result<MultiplexedConnection, LockError> {
    redis::Client::open(url)
        .map_err(trouble)?
        .get_multiplexed_async_connection()
        .await
        .map_err(trouble)
}

#[async_trait]
impl Harness for RedisHarness {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = if self.is_quorum() {
            quorum_capabilities()
        } else {
            capabilities()
        };
        capabilities.ttl.min += self.clock_offset();
        capabilities
    }

    fn short_ttl(&self) -> Duration {
        // Of a short TTL the offset is a large part.
        Duration::from_secs(2) + self.clock_offset() * 4
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        self.connect_to(&self.store.url()).await
    }

    fn child_address(&self) -> Option<String> {
        Some(self.store.url())
    }

    /// Sentinels and clusters tell their clients where to go, past any proxy.
    fn addresses(&self) -> Vec<String> {
        let url = self.store.url();
        let is_direct = !url.contains("+sentinel") && !url.contains("+cluster");
        let url: Option<LockUrl> = url.parse().ok().filter(|_| is_direct);
        let endpoints = url.iter().flat_map(LockUrl::endpoints);
        endpoints.map(|server| server.authority(6379)).collect()
    }

    async fn connect_at(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<Option<Arc<dyn DistributedLock>>, LockError> {
        let url = with_addresses(&self.store.url(), addresses);
        self.connect_to(&url).await.map(Some)
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.another())
            .await
            .map_err(trouble)?
        {
            Ok(starting) => Ok(Some(Arc::new(Self::on(starting.await?)))),
            Err(_) => Ok(None),
        }
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        let mut owners = BTreeSet::new();
        for mut operator in self.store.operators(name.as_str()).await? {
            let owner: Option<Vec<u8>> = operator.get(name.as_str()).await.map_err(trouble)?;
            owners.extend(owner.map(|owner| String::from_utf8_lossy(&owner).into_owned()));
        }
        Ok(Some(owners.into_iter().collect()))
    }

    async fn client_residue(&self) -> Option<usize> {
        Some(self.residue())
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        for mut operator in self.store.operators(name.as_str()).await? {
            let () = operator.del(name.as_str()).await.map_err(trouble)?;
        }
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        Ok(self.store.delay(by))
    }

    fn secrets(&self) -> Vec<String> {
        vec![
            PASSWORD.to_owned(),
            lock_conformance::servers::RedisSentinel::PASSWORD.to_owned(),
        ]
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.store.freeze().map(|()| true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.store.thaw()
    }

    async fn stop(&self) -> Result<bool, LockError> {
        self.store.stop()
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.store.restart().await.map(|()| true)
    }
}

impl fmt::Debug for RedisHarness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisHarness")
            .field("store", &self.store)
            .field("residue", &self.residue())
            .finish()
    }
}

#[async_trait]
impl Store for Elsewhere {
    fn url(&self) -> String {
        self.0.clone()
    }

    async fn operator(&self, _key: &str) -> Result<MultiplexedConnection, LockError> {
        Err(trouble("not our own servers"))
    }

    fn another(&self) -> Result<Starting, Skip> {
        Err(Skip::excused("not our own servers"))
    }

    fn delay(&self, _by: Duration) -> bool {
        false
    }

    fn freeze(&self) -> Result<(), LockError> {
        Err(trouble("not our own servers"))
    }

    fn thaw(&self) -> Result<(), LockError> {
        Err(trouble("not our own servers"))
    }

    async fn restart(&self) -> Result<(), LockError> {
        Err(trouble("not our own servers"))
    }
}
