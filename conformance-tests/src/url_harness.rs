use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    Capabilities, Connector, Consistency, DistributedLock, ErrorKind, LockError, LockName, LockUrl,
    backend::locked,
};

use crate::{
    Harness, Operator, Server,
    proxy::{Flow, Proxy},
};

/// What only the author of a backend can do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) operator: Option<Arc<dyn Operator>>,
    pub(crate) server: Option<Arc<dyn Server>>,
}

/// A harness made from a connector and a URL.
#[derive(Debug)]
pub(crate) struct UrlHarness {
    connector: Arc<dyn Connector>,
    url: String,
    capabilities: Capabilities,
    hooks: Hooks,
    short_ttl: Option<Duration>,
    /// Present on an isolated harness, each of whose clients has its own proxies.
    links: Option<Mutex<Links>>,
    /// The server that was started for this harness.
    own_server: Option<Box<dyn Server>>,
}

#[derive(Debug, Default)]
struct Links {
    proxies: Vec<Proxy>,
    requests: Flow,
    replies: Flow,
}

impl UrlHarness {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        url: String,
        hooks: Hooks,
        short_ttl: Option<Duration>,
    ) -> Result<Self, LockError> {
        let capabilities = connector.capabilities(&url.parse()?)?;
        Ok(Self {
            connector,
            url,
            capabilities,
            hooks,
            short_ttl,
            links: None,
            own_server: None,
        })
    }

    async fn connect_to(&self, url: &str) -> Result<Arc<dyn DistributedLock>, LockError> {
        self.connector.connect(&url.parse()?).await
    }

    fn set(&self, requests: Flow, replies: Flow) -> bool {
        let Some(links) = &self.links else {
            return false;
        };
        let mut links = locked(links);
        links.requests = requests;
        links.replies = replies;
        let proxies = links.proxies.iter();
        proxies.for_each(|proxy| proxy.set(requests, replies));
        true
    }
}

#[async_trait]
impl Harness for UrlHarness {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        let Some(links) = &self.links else {
            return self.connect_to(&self.url).await;
        };
        let proxies = start_proxies(self.addresses()).await?;
        let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
        {
            let mut links = locked(links);
            proxies
                .iter()
                .for_each(|proxy| proxy.set(links.requests, links.replies));
            links.proxies.extend(proxies);
        }
        self.connect_to(&with_addresses(&self.url, &addresses))
            .await
    }

    fn short_ttl(&self) -> Duration {
        let default = self.capabilities.ttl.min.max(Duration::from_secs(2));
        self.short_ttl.unwrap_or(default)
    }

    fn child_address(&self) -> Option<String> {
        (self.capabilities.consistency != Consistency::ProcessLocal).then(|| self.url.clone())
    }

    fn addresses(&self) -> Vec<String> {
        let url: Option<LockUrl> = self.url.parse().ok();
        let endpoints = url.iter().flat_map(LockUrl::endpoints);
        let addresses: Option<Vec<_>> = endpoints
            .map(|endpoint| Some(endpoint.authority(endpoint.port?)))
            .collect();
        addresses.unwrap_or_default()
    }

    async fn connect_at(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<Option<Arc<dyn DistributedLock>>, LockError> {
        self.connect_to(&with_addresses(&self.url, addresses))
            .await
            .map(Some)
    }

    async fn isolated(&self) -> Result<Option<Arc<dyn Harness>>, LockError> {
        if self.addresses().is_empty() {
            return Ok(None);
        }
        let (own_server, url) = match &self.hooks.server {
            Some(server) => {
                let (server, url) = server.another().await?;
                (Some(server), url)
            }
            // Names are unique per case, so that a store can be shared, but for its own faults.
            None => (None, self.url.clone()),
        };
        let connector = Arc::clone(&self.connector);
        let mut own = Self::new(connector, url, self.hooks.clone(), self.short_ttl)?;
        own.links = Some(Mutex::default());
        own.own_server = own_server;
        Ok(Some(Arc::new(own)))
    }

    async fn entries(&self, name: &LockName) -> Result<Option<Vec<String>>, LockError> {
        match &self.hooks.operator {
            Some(operator) => operator.entries(name).await.map(Some),
            None => Ok(None),
        }
    }

    async fn remove_entry(&self, name: &LockName) -> Result<bool, LockError> {
        match &self.hooks.operator {
            Some(operator) => operator.remove(name).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn evict_waiters(&self, name: &LockName) -> Result<bool, LockError> {
        let Some(operator) = &self.hooks.operator else {
            return Ok(false);
        };
        if operator.entries(name).await?.len() <= 1 {
            return Ok(false);
        }
        operator.evict_waiters(name).await.map(|()| true)
    }

    async fn delay_replies(&self, by: Duration) -> Result<bool, LockError> {
        Ok(self.set(Flow::Free, Flow::After(by)))
    }

    async fn freeze(&self) -> Result<bool, LockError> {
        Ok(self.set(Flow::Held, Flow::Held))
    }

    async fn thaw(&self) -> Result<(), LockError> {
        self.set(Flow::Free, Flow::Free);
        Ok(())
    }

    async fn stop(&self) -> Result<bool, LockError> {
        match &self.own_server {
            Some(server) => server.stop().await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn restart(&self) -> Result<bool, LockError> {
        let Some(server) = &self.own_server else {
            return Ok(false);
        };
        server.stop().await?;
        server.start().await?;
        Ok(true)
    }
}

pub(crate) async fn start_proxies(addresses: Vec<String>) -> Result<Vec<Proxy>, LockError> {
    let mut proxies = Vec::new();
    for address in addresses {
        proxies.push(Proxy::start(address).await.map_err(|error| {
            LockError::new(ErrorKind::Unavailable, "no proxy could be started").caused_by(error)
        })?);
    }
    Ok(proxies)
}

/// Replaces the addresses of a URL and nothing else: for [`Harness::connect_at`].
#[must_use]
pub fn with_addresses(url: &str, addresses: &[SocketAddr]) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let user = authority.rfind('@').map_or("", |end| &authority[..=end]);
    let hosts: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    format!("{scheme}://{user}{}{tail}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_addresses_of_a_url_are_replaced() {
        let addresses = [
            SocketAddr::from(([127, 0, 0, 1], 1)),
            SocketAddr::from(([127, 0, 0, 1], 2)),
        ];
        let given = "redis://me:p%40ss@h:6379,[::1]:7/prod?ttl=3s";
        let moved = "redis://me:p%40ss@127.0.0.1:1,127.0.0.1:2/prod?ttl=3s";
        assert_eq!(with_addresses(given, &addresses), moved);
        assert_eq!(
            with_addresses("my://h:1", &addresses[..1]),
            "my://127.0.0.1:1"
        );
    }
}
