use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{
    ErrorKind, LockError,
    backend::{Tasks, locked},
};
use redis::Value;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    error::Failure,
    link::Link,
    renewal::{Kept, renew_all},
    scripts::millis,
};

/// Has replicas confirm what was written, before anybody relies on it.
///
/// `WAIT` counts the replicas that have all that its own connection wrote, and blocks that connection until they are enough or
/// its time is up. So each confirmation has a connection to itself: it first renews the locks there, writes that come after
/// everything that is to be confirmed, and then waits. Replicas receive the writes of a server in one order, whoever made
/// them; but the connection may lead to another server than the one before, which has not all of the locks.
pub(crate) struct Replicas {
    asked: Asked,
    /// Makes connections to the same server.
    like: Arc<Link>,
    response: Duration,
    /// None once closed.
    idle: Mutex<Option<Vec<Link>>>,
    permits: Semaphore,
    tasks: Tasks,
}

/// How many replicas must confirm, and how long they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) replicas: u32,
    pub(crate) timeout: Duration,
}

/// What a server said to the renewal of one lock.
type Renewed = Result<Value, Failure>;

/// Most connections for confirmations; those that find none free wait for one, within their time.
const MAX_CONNECTIONS: usize = 32;

impl Replicas {
    pub(crate) fn new(asked: Asked, like: Arc<Link>, response: Duration, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { asked, like, response, idle: Mutex::new(Some(Vec::new())), permits: Semaphore::new(MAX_CONNECTIONS), tasks })
    }

    /// Waits until enough replicas have the lock, and everything that was written before. They have the timeout for it, or a third of
    /// the lock's TTL if that is less; a free connection may be waited for as long before, and the server for an answer's time more.
    ///
    /// # Cancel safety
    ///
    /// It goes on in the background, for its connection is of no use to others until then.
    pub(crate) async fn confirm(self: &Arc<Self>, kept: &Arc<Kept>) -> Result<(), LockError> {
        match self.confirm_all(vec![Arc::clone(kept)]).await?.pop() {
            Some(Ok(Value::Int(1))) => Ok(()),
            Some(Err(failure)) => Err(failure.into()),
            _ => Err(LockError::new(ErrorKind::Unavailable, "the lock was gone before any replica confirmed it")),
        }
    }

    /// The same for a batch: what renewing each of them said, of which replicas then have the outcome.
    pub(crate) async fn confirm_all(self: &Arc<Self>, batch: Vec<Arc<Kept>>) -> Result<Vec<Renewed>, LockError> {
        let (this, limit) = (Arc::clone(self), self.limit(&batch));
        let (tell, told) = oneshot::channel();
        // A task of its own: whoever is not polled any more keeps no permit and no connection from others.
        self.tasks.spawn(async move { drop(tell.send(this.confirm_now(&batch, limit).await)) });
        // What it takes at most, and an answer's time more, should its runtime run no tasks.
        match tokio::time::timeout((limit + self.response) * 2, told).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(LockError::new(ErrorKind::Unavailable, "the runtime that the client was made on runs no tasks").indeterminate()),
        }
    }

    /// How long replicas have.
    fn limit(&self, batch: &[Arc<Kept>]) -> Duration {
        batch.iter().map(|kept| kept.validity / 3).fold(self.asked.timeout, Duration::min)
    }

    /// Gives up the connections; later ones are not kept.
    pub(crate) fn close(&self) {
        let idle = locked(&self.idle).take();
        drop(idle);
    }

    async fn confirm_now(&self, batch: &[Arc<Kept>], limit: Duration) -> Result<Vec<Renewed>, LockError> {
        let Ok(permit) = tokio::time::timeout(limit, self.permits.acquire()).await else {
            return Err(LockError::new(
                ErrorKind::Unavailable,
                format!("no free connection to wait for replicas within {limit:?}: {MAX_CONNECTIONS} acquisitions wait for them"),
            ));
        };
        let idle = locked(&self.idle).as_mut().and_then(Vec::pop);
        let link = idle.unwrap_or_else(|| self.like.another(self.asked.timeout + self.response));
        // A connection that is still blocked is given up.
        let confirmed = tokio::time::timeout(limit + self.response, wait_on(&link, batch, self.asked.replicas, limit)).await;
        if confirmed.is_ok()
            && let Some(idle) = &mut *locked(&self.idle)
        {
            idle.push(link);
        }
        drop(permit);
        let (renewed, confirmed) = confirmed.unwrap_or_else(|_| Err(Failure::timed_out()))?;
        if confirmed >= self.asked.replicas {
            return Ok(renewed);
        }
        let needed = self.asked.replicas;
        Err(LockError::new(ErrorKind::Unavailable, format!("{confirmed} of {needed} replicas confirmed the lock within {limit:?}")))
    }
}

/// What renewing the locks said, and how many replicas have the outcome.
async fn wait_on(link: &Link, batch: &[Arc<Kept>], replicas: u32, limit: Duration) -> Result<(Vec<Renewed>, u32), Failure> {
    let connection = link.connection().await?;
    let renewed = renew_all(&connection, batch).await?;
    match connection.run(redis::cmd("WAIT").arg(replicas).arg(millis(limit))).await.map_err(Failure::without_effect)? {
        Value::Int(confirmed) => Ok((renewed, u32::try_from(confirmed).unwrap_or_default())),
        _ => Err(Failure::unexpected("no number in answer to WAIT").without_effect()),
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (idle, free) = (locked(&self.idle).as_ref().map(Vec::len), self.permits.available_permits());
        f.debug_struct("Replicas").field("asked", &self.asked).field("idle", &idle).field("free", &free).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use lock_core::OwnerId;

    use super::*;
    use crate::{keys::Keys, link::Timeouts, upstream::Upstream};

    #[tokio::test]
    async fn a_connection_that_was_in_use_when_it_closed_is_not_kept() {
        let (limit, tasks) = (Duration::from_secs(1), Tasks::current());
        // Nobody listens there.
        let info = redis::Client::open("redis://127.0.0.2:1").unwrap().get_connection_info().clone();
        let like = Link::new(Upstream::Fixed(info), Timeouts { connect: limit, response: limit }, tasks.clone(), None);
        let replicas = Replicas::new(Asked { replicas: 1, timeout: limit }, Arc::new(like), limit, tasks);
        let kept = Arc::new(Kept { keys: Keys::new("", &"a".parse().unwrap()), owner: OwnerId::random(), ttl: limit, validity: limit });
        let idle = || locked(&replicas.idle).as_ref().map(Vec::len);
        replicas.confirm(&kept).await.unwrap_err();
        assert_eq!(idle(), Some(1), "for the next");
        let mut late = Box::pin(replicas.confirm(&kept));
        tokio::select! {
            biased;
            outcome = &mut late => panic!("without a connection: {outcome:?}"),
            () = tokio::task::yield_now() => {}
        }
        replicas.close();
        late.await.unwrap_err();
        assert_eq!(idle(), None);
    }
}
