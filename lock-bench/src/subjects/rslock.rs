use std::time::Duration;

use rslock::{Lock, LockManager};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

/// The crate rslock with its default retries.
pub(crate) struct Rslock(LockManager);

pub(crate) struct RslockContender {
    manager: LockManager,
    name: String,
}

const TTL: Duration = Duration::from_secs(30);

impl Client for Rslock {
    type Contender = RslockContender;

    async fn connect(job: &Job) -> Result<Self> {
        Ok(Self(LockManager::new(vec![job.url.as_str()])))
    }

    async fn contender(&self, name: &str) -> Result<RslockContender> {
        Ok(RslockContender {
            manager: self.0.clone(),
            name: name.to_owned(),
        })
    }

    async fn close(self) {}
}

impl Contender for RslockContender {
    type Held = Lock;

    async fn acquire(&self) -> Result<Lock> {
        Ok(self
            .manager
            .acquire_no_guard(self.name.as_str(), TTL)
            .await?)
    }

    async fn release(&self, held: Lock) -> Result<()> {
        self.manager.unlock(&held).await;
        Ok(())
    }
}
