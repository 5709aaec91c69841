use async_trait::async_trait;

use crate::{
    Result,
    stores::{Counts, Requests, Store, etcd::EtcdStore, redis::RedisStore},
    subjects::migrating::SEPARATOR,
};

/// A Redis server and an etcd member, between which locks migrate. Its URL is those of both.
pub(crate) struct MigrateStore {
    source: RedisStore,
    target: EtcdStore,
    url: String,
}

impl MigrateStore {
    pub(crate) async fn start() -> Result<Self> {
        let source = RedisStore::start().await?;
        let target = EtcdStore::start().await?;
        let url = format!("{}{SEPARATOR}{}", source.url(), target.url());
        Ok(Self {
            source,
            target,
            url,
        })
    }
}

#[async_trait]
impl Store for MigrateStore {
    fn url(&self) -> &str {
        &self.url
    }

    async fn version(&self) -> Result<String> {
        let source = self.source.version().await?;
        Ok(format!("{source}; {}", self.target.version().await?))
    }

    /// Redis's commands, none of which is called like one of etcd's methods, and etcd's.
    async fn requests(&self) -> Result<Option<Requests>> {
        let of_source = self.source.requests().await?.unwrap_or_default();
        let of_target = self.target.requests().await?.unwrap_or_default();
        let both = |one: Counts, other: Counts| Counts(one.0.into_iter().chain(other.0).collect());
        Ok(Some(Requests {
            reads: None,
            cpu_s: None,
            calls: both(of_source.calls, of_target.calls),
            messages: both(of_source.messages, of_target.messages),
        }))
    }

    async fn tidy(&self) -> Result<()> {
        self.source.tidy().await?;
        self.target.tidy().await
    }

    async fn leases(&self) -> Result<Option<u64>> {
        self.target.leases().await
    }
}
