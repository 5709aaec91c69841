use std::sync::Arc;

use polylock::{AcquireOptions, DistributedLock, LockGuard, LockName};
use tokio::sync::Mutex;

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

impl Ours {
    /// A client of locks that are connected already.
    #[cfg(any(feature = "layers", feature = "migrate"))]
    pub(crate) fn over(locks: Arc<dyn DistributedLock>) -> Self {
        Self(locks)
    }
}

impl Client for Ours {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        Ok(Self(polylock::connect(&job.url).await?))
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        Ok(OurContender {
            locks: Arc::clone(&self.0),
            name: name.try_into()?,
        })
    }

    async fn close(self) {
        // A store that is gone has nothing left to tidy up.
        let _ = self.0.shutdown().await;
    }
}

/// The same, with a client for each contender: as many processes of one task would be, and more
/// of them than a machine can run.
pub(crate) struct OursApart {
    url: String,
    clients: Mutex<Vec<Arc<dyn DistributedLock>>>,
}

impl Client for OursApart {
    type Contender = OurContender;

    async fn connect(job: &Job) -> Result<Self> {
        Ok(Self {
            url: job.url.clone(),
            clients: Mutex::default(),
        })
    }

    async fn contender(&self, name: &str) -> Result<OurContender> {
        let locks = polylock::connect(&self.url).await?;
        self.clients.lock().await.push(Arc::clone(&locks));
        Ok(OurContender {
            locks,
            name: name.try_into()?,
        })
    }

    async fn close(self) {
        for locks in self.clients.into_inner() {
            let _ = locks.shutdown().await;
        }
    }
}

impl Contender for OurContender {
    type Held = LockGuard;

    async fn acquire(&self) -> Result<LockGuard> {
        Ok(self
            .locks
            .acquire_named(&self.name, AcquireOptions::new())
            .await?)
    }

    async fn release(&self, held: LockGuard) -> Result<()> {
        Ok(held.release().await?)
    }
}
