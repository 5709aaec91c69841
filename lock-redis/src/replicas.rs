use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{ErrorKind, LockError, backend::Tasks};
use redis::Value;
use tokio::sync::Semaphore;

use crate::{
    error::Failure,
    link::Link,
    renewal::Kept,
    scripts::{self, millis},
    sync::locked,
};

/// Has replicas confirm what was written, before anybody relies on it.
///
/// `WAIT` counts the replicas that have all that its own connection wrote, and blocks that connection until they are enough or
/// its time is up. So each confirmation has a connection to itself: it first renews the lock there, a write that comes after
/// everything that is to be confirmed, and then waits. Replicas receive the writes of a server in one order, whoever made
/// them.
pub(crate) struct Replicas {
    asked: Asked,
    /// Makes connections to the same server.
    like: Arc<Link>,
    response: Duration,
    idle: Mutex<Vec<Link>>,
    permits: Semaphore,
    tasks: Tasks,
}

/// How many replicas must confirm, and how long they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) replicas: u32,
    pub(crate) timeout: Duration,
}

/// Most connections for confirmations; those that find none free wait for one, within their time.
const MAX_CONNECTIONS: usize = 32;

impl Replicas {
    pub(crate) fn new(asked: Asked, like: Arc<Link>, response: Duration, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { asked, like, response, idle: Mutex::default(), permits: Semaphore::new(MAX_CONNECTIONS), tasks })
    }

    /// Waits until enough replicas have the lock, and everything that was written before; no longer than the timeout, or a third of
    /// the lock's TTL.
    ///
    /// # Cancel safety
    ///
    /// It goes on in the background, for its connection is of no use to others until then.
    pub(crate) async fn confirm(self: &Arc<Self>, kept: &Arc<Kept>) -> Result<(), LockError> {
        let (this, kept) = (Arc::clone(self), Arc::clone(kept));
        self.tasks.finish(async move { this.confirm_now(&kept).await }).await
    }

    async fn confirm_now(&self, kept: &Kept) -> Result<(), LockError> {
        let limit = self.asked.timeout.min(kept.ttl / 3);
        let Ok(permit) = tokio::time::timeout(limit, self.permits.acquire()).await else {
            return Err(LockError::new(
                ErrorKind::Unavailable,
                format!("no free connection to wait for replicas within {limit:?}: {MAX_CONNECTIONS} acquisitions wait for them"),
            ));
        };
        let idle = locked(&self.idle).pop();
        let link = idle.unwrap_or_else(|| self.like.another(self.asked.timeout + self.response));
        // A connection that is still blocked is given up.
        let confirmed = tokio::time::timeout(limit + self.response, wait_on(&link, kept, self.asked.replicas, limit)).await;
        if confirmed.is_ok() {
            locked(&self.idle).push(link);
        }
        drop(permit);
        let confirmed = confirmed.unwrap_or_else(|_| Err(Failure::sent(std::io::Error::from(std::io::ErrorKind::TimedOut))))?;
        if confirmed >= self.asked.replicas {
            return Ok(());
        }
        let needed = self.asked.replicas;
        Err(LockError::new(ErrorKind::Unavailable, format!("{confirmed} of {needed} replicas confirmed the lock within {limit:?}")))
    }
}

/// How many replicas have the lock.
async fn wait_on(link: &Link, kept: &Kept, replicas: u32, limit: Duration) -> Result<u32, Failure> {
    let connection = link.connection().await?;
    let renewed = connection.run_script(&scripts::RENEW, &kept.keys, |command| {
        command.arg(kept.owner.as_str()).arg(millis(kept.ttl)).arg(scripts::companion_ttl(kept.ttl));
    });
    if renewed.await? != Value::Int(1) {
        // Gone in the meantime: nobody has it.
        return Ok(0);
    }
    match connection.run(redis::cmd("WAIT").arg(replicas).arg(millis(limit))).await.map_err(Failure::without_effect)? {
        Value::Int(confirmed) => Ok(u32::try_from(confirmed).unwrap_or_default()),
        _ => Err(Failure::unexpected("no number in answer to WAIT").without_effect()),
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (idle, free) = (locked(&self.idle).len(), self.permits.available_permits());
        f.debug_struct("Replicas").field("asked", &self.asked).field("idle", &idle).field("free", &free).finish_non_exhaustive()
    }
}
