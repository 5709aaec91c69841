//! A harness on a real etcd.
#![allow(dead_code, reason = "each test target uses its part")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, GetOptions, SortOrder, SortTarget};
use lock_conformance::{
    BoxError, Harness, Start,
    servers::{self, EtcdOptions, Server, TcpProxy, Trouble},
};
use lock_core::{Capabilities, DistributedLock, ErrorKind, LockError, LockName};
use lock_etcd::{EtcdLock, capabilities};

/// Locks in one etcd, and what a test does behind their back.
#[derive(Debug)]
pub(crate) struct EtcdHarness {
    endpoint: String,
    /// Present in a parent process; a child uses its parent's.
    server: Option<Server>,
    proxy: Option<TcpProxy>,
    clients: Mutex<Vec<EtcdLock>>,
}

/// Servers that the conformance runner starts.
pub(crate) async fn start(child_address: Option<String>) -> Result<Start, BoxError> {
    let harness = match child_address {
        Some(endpoint) => EtcdHarness {
            endpoint,
            server: None,
            proxy: None,
            clients: Mutex::default(),
        },
        None => match servers::etcd(EtcdOptions::new()) {
            Ok(server) => EtcdHarness {
                endpoint: server.endpoint().to_owned(),
                server: Some(server),
                proxy: None,
                clients: Mutex::default(),
            },
            Err(skip) => return Ok(Start::Skip(skip.to_string())),
        },
    };
    Ok(Start::Ready(Arc::new(harness)))
}

impl EtcdHarness {
    /// A server of one's own behind a proxy of one's own; `None` where this machine has no etcd to
    /// start.
    pub(crate) async fn own() -> Result<Option<Self>, BoxError> {
        let Ok(server) = servers::etcd(EtcdOptions::new().own()) else {
            return Ok(None);
        };
        let proxy = TcpProxy::start(server.address()?).await?;
        Ok(Some(Self {
            endpoint: proxy.address().to_string(),
            server: Some(server),
            proxy: Some(proxy),
            clients: Mutex::default(),
        }))
    }

    async fn connect_to(
        &self,
        endpoints: &[String],
    ) -> Result<Arc<dyn DistributedLock>, LockError> {
        let lock = EtcdLock::builder(endpoints).connect().await?;
        self.clients.lock().unwrap().push(lock.clone());
        Ok(Arc::new(lock))
    }

    pub(crate) fn server(&self) -> &Server {
        self.server
            .as_ref()
            .expect("only a parent process asks for it")
    }

    pub(crate) fn proxy(&self) -> &TcpProxy {
        self.proxy
            .as_ref()
            .expect("only a harness of one's own has a proxy")
    }

    pub(crate) async fn lock(&self) -> EtcdLock {
        EtcdLock::builder([self.endpoint.as_str()])
            .connect()
            .await
            .expect("the server is up")
    }

    /// A client that no trouble of the proxy's reaches.
    pub(crate) async fn operator(&self) -> Client {
        let endpoint = self
            .server
            .as_ref()
            .map_or(self.endpoint.as_str(), Server::endpoint);
        Client::connect([endpoint], None)
            .await
            .expect("the server is up")
    }

    /// The keys below a name, in the order of their creation.
    pub(crate) async fn keys(&self, name: &LockName) -> Result<Vec<String>, etcd_client::Error> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Ascend);
        let prefix = format!("{name}/");
        let found = self
            .operator()
            .await
            .get(prefix.as_str(), Some(options))
            .await?;
        let keys = found
            .kvs()
            .iter()
            .map(|kv| String::from_utf8_lossy(kv.key()).into_owned());
        // Keys with a further slash belong to locks with longer names.
        Ok(keys
            .filter(|key| !key[prefix.len()..].contains('/'))
            .collect())
    }

    async fn delete(&self, keys: &[String]) -> Result<(), LockError> {
        let mut operator = self.operator().await;
        for key in keys {
            operator.delete(key.as_str(), None).await.map_err(trouble)?;
        }
        Ok(())
    }
}

fn trouble(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LockError {
    LockError::new(ErrorKind::Unavailable, "the test's own access failed").caused_by(error)
}

#[async_trait]
impl Harness for EtcdHarness {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        self.connect_to(std::slice::from_ref(&self.endpoint)).await
    }

    fn short_ttl(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn child_address(&self) -> Option<String> {
        Some(self.endpoint.clone())
    }

    fn addresses(&self) -> Vec<String> {
        vec![self.endpoint.clone()]
    }

    async fn connect_at(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<Option<Arc<dyn DistributedLock>>, LockError> {
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        self.connect_to(&addresses).await.map(Some)
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        let own = Self::own().await.map_err(trouble)?;
        Ok(own.map(|harness| Arc::new(harness) as _))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        self.keys(name).await.map(Some).map_err(trouble)
    }

    async fn client_residue(&self) -> Option<usize> {
        let clients = self.clients.lock().unwrap().clone();
        let leases = self.operator().await.leases().await.ok()?.leases().len();
        Some(clients.iter().map(EtcdLock::residue).sum::<usize>() + leases)
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        let keys = self.keys(name).await.map_err(trouble)?;
        self.delete(&keys[..keys.len().min(1)]).await?;
        Ok(true)
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        let keys = self.keys(name).await.map_err(trouble)?;
        self.delete(keys.get(1..).unwrap_or_default()).await?;
        Ok(true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        let Some(proxy) = &self.proxy else {
            return Ok(false);
        };
        proxy.set(Trouble::Delay(by));
        Ok(true)
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        self.server().freeze().map_err(trouble)?;
        Ok(true)
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.server().thaw().map_err(trouble)
    }

    async fn stop(&self) -> Result<bool, LockError> {
        self.server().kill().map_err(trouble)?;
        Ok(true)
    }

    async fn restart(&self) -> Result<bool, LockError> {
        self.server().restart().await.map_err(trouble)?;
        Ok(true)
    }
}
