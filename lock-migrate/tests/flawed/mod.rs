//! Parts of a migration with a deliberate error each, around the real ones.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Acquisition, AcquisitionStatus, DistributedLock, FencingToken, LockError,
    LockGuard, LockName,
    backend::{Clock, Lease},
    forward_lock,
};
use lock_migrate::{FloorStore, Record, RecordLease, RecordStore, RecordWatch, RecordWrite, Write};

/// The source is released while the guard is in use: what the guard holds instead is another name.
#[derive(Debug)]
pub(crate) struct ReleasedEarly(pub(crate) Arc<dyn DistributedLock>);

impl ReleasedEarly {
    fn inner(&self) -> &Arc<dyn DistributedLock> {
        &self.0
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for ReleasedEarly {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let taken = self.0.acquire_named(name, options.clone()).await?;
        taken.release().await?;
        let other = LockName::new(format!("{name}-released"))?;
        self.0.acquire_named(&other, options).await
    }

    forward_lock!(inner(): capabilities, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
}

/// The source's counter stays as it is, though it is told to be raised.
#[derive(Debug)]
pub(crate) struct NotRaised(pub(crate) Arc<dyn DistributedLock>);

impl NotRaised {
    fn inner(&self) -> &Arc<dyn DistributedLock> {
        &self.0
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for NotRaised {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let guard = self.0.acquire_named(name, options).await?;
        Ok(LockGuard::new(Arc::new(Lower(guard.into_acquisition()))))
    }

    forward_lock!(inner(): capabilities, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
}

#[derive(Debug)]
struct Lower(Arc<dyn Acquisition>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Lower {
    fn status(&self) -> &dyn AcquisitionStatus {
        self.0.status()
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        self.0.view()
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        self.0.release_now()
    }

    async fn release(&self) -> Result<(), LockError> {
        self.0.release().await
    }

    fn release_in_background(self: Arc<Self>) {
        Arc::clone(&self.0).release_in_background();
    }

    async fn extend(&self) -> Result<(), LockError> {
        self.0.extend().await
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        Ok(at_least)
    }
}

/// There is no floor: what is raised is forgotten.
#[derive(Debug)]
pub(crate) struct NoFloor;

#[async_trait]
impl FloorStore for NoFloor {
    async fn read_at(&self, _: FencingToken) -> Result<u64, LockError> {
        Ok(0)
    }

    async fn read(&self) -> Result<u64, LockError> {
        Ok(0)
    }

    async fn raise(&self, at_least: u64) -> Result<u64, LockError> {
        Ok(at_least)
    }
}

/// The floor as it was when the client came, and not as it was when the lock was owned.
#[derive(Debug)]
pub(crate) struct EarlyFloor {
    pub(crate) inner: Arc<dyn FloorStore>,
    pub(crate) early: u64,
}

#[async_trait]
impl FloorStore for EarlyFloor {
    async fn read_at(&self, _: FencingToken) -> Result<u64, LockError> {
        Ok(self.early)
    }

    async fn read(&self) -> Result<u64, LockError> {
        Ok(self.early)
    }

    async fn raise(&self, at_least: u64) -> Result<u64, LockError> {
        self.inner.raise(at_least).await
    }
}

/// An error of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It reports that it has followed while guards of the older phase are left.
    ReportsEarly,
    /// Its guards, and what it knows of the plans, outlive the membership.
    EndlessMembership,
}

/// The records as a member with an error sees them.
#[derive(Debug)]
pub(crate) struct FlawedRecords {
    pub(crate) inner: Arc<dyn RecordStore>,
    pub(crate) flaw: Flaw,
}

const FOREVER: Duration = Duration::from_secs(3600);

#[async_trait]
impl RecordStore for FlawedRecords {
    async fn read(&self, name: &str) -> Result<Option<Record>, LockError> {
        self.inner.read(name).await
    }

    async fn read_at(&self, name: &str, token: FencingToken) -> Result<Option<Record>, LockError> {
        self.inner.read_at(name, token).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Record>, LockError> {
        self.inner.list(prefix).await
    }

    async fn write(&self, writes: &[RecordWrite<'_>]) -> Result<Option<i64>, LockError> {
        let [report] = writes else {
            return self.inner.write(writes).await;
        };
        let Write::PutUnder(lease, value) = report.write else {
            return self.inner.write(writes).await;
        };
        let mut told: serde_json::Value = serde_json::from_slice(value).unwrap();
        if self.flaw == Flaw::ReportsEarly {
            told.as_object_mut().unwrap().remove("draining");
        }
        let told = serde_json::to_vec(&told).unwrap();
        let report = RecordWrite {
            write: Write::PutUnder(lease, &told),
            ..*report
        };
        self.inner.write(&[report]).await
    }

    async fn lease(&self) -> Result<RecordLease, LockError> {
        let real = self.inner.lease().await?;
        if self.flaw != Flaw::EndlessMembership {
            return Ok(real);
        }
        let clock = Clock::Suspend;
        Ok(RecordLease {
            lease: Lease::new(clock, clock.now() + FOREVER, None),
            handle: real.handle,
        })
    }

    fn watch(&self, name: &str) -> Box<dyn RecordWatch> {
        self.inner.watch(name)
    }
}
