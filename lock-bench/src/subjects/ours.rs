use std::sync::Arc;

use lock::{AcquireOptions, DistributedLock, LockGuard, LockName};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

/// Our locks on any backend, as an application uses them.
pub(crate) struct Ours(Arc<dyn DistributedLock>);

pub(crate) struct OurContender {
    locks: Arc<dyn DistributedLock>,
    name: LockName,
}

impl Client for Ours {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        Ok(Self(lock::connect(&job.url).await?))
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        Ok(OurContender { locks: Arc::clone(&self.0), name: name.try_into()? })
    }

    async fn close(self) {
        // A store that is gone by now has nothing left to tidy up.
        let _ = self.0.shutdown().await;
    }
}

impl Contender for OurContender {
    type Held = LockGuard;

    async fn acquire(&self) -> Result<LockGuard> {
        Ok(self.locks.acquire_with(&self.name, AcquireOptions::new()).await?)
    }

    async fn release(&self, held: LockGuard) -> Result<()> {
        Ok(held.release().await?)
    }
}
