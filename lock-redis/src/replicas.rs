use std::{
    fmt,
    future::Future,
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
    entry,
    error::Failure,
    renewal::{StoredEntry, renew_all},
    scripts::millis,
    transport::reconnect::{Connection, Link},
};

/// Has replicas confirm what was written, before anybody relies on it.
///
/// `WAIT` counts the replicas that have all that its own connection wrote, and blocks that
/// connection until they are enough or its time is up. So each confirmation has a connection to
/// itself: it first renews the locks there, writes that come after everything that is to be
/// confirmed, and then waits. Replicas receive the writes of a server in one order, whoever made
/// them; but the connection may lead to another server than the one before, which has not all of
/// the locks.
pub(crate) struct Replicas {
    asked: Asked,
    /// Makes connections to the same server.
    like: Arc<Link>,
    response: Duration,
    acquisitions: Lane,
    /// However many acquisitions wait for replicas, no renewal waits for them.
    renewals: Lane,
    tasks: Tasks,
}

/// Connections for confirmations.
struct Lane {
    /// None once closed.
    idle: Mutex<Option<Vec<Link>>>,
    permits: Semaphore,
}

impl Lane {
    fn new() -> Self {
        Self {
            idle: Mutex::new(Some(Vec::new())),
            permits: Semaphore::new(MAX_CONNECTIONS),
        }
    }
}

/// The number of replicas must confirm, and how long they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) replicas: u32,
    pub(crate) timeout: Duration,
}

/// A server's answer to the renewal of one lock.
type Renewed = Result<Value, Failure>;

/// Most connections of a lane; those that find none free wait for one, within their time.
const MAX_CONNECTIONS: usize = 32;

impl Replicas {
    pub(crate) fn new(
        asked: Asked,
        like: Arc<Link>,
        response: Duration,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            asked,
            like,
            response,
            acquisitions: Lane::new(),
            renewals: Lane::new(),
            tasks,
        })
    }

    /// Waits until enough replicas have the lock, and everything that was written before. They have
    /// the timeout for it, or a third of the lock's TTL if that is less; a free connection may be
    /// waited for as long before, and the server for an answer's time more.
    ///
    /// # Cancel safety
    ///
    /// It goes on in the background, for its connection is of no use to others until then.
    pub(crate) async fn confirm(
        self: &Arc<Self>,
        stored: &Arc<StoredEntry>,
    ) -> Result<(), LockError> {
        let batch = vec![Arc::clone(stored)];
        let renewed = self.confirm_all(batch, |this| &this.acquisitions).await?;
        match renewed.into_iter().next() {
            Some(Ok(Value::Int(1))) => Ok(()),
            Some(Err(failure)) => Err(failure.into()),
            _ => Err(LockError::new(
                ErrorKind::Unavailable,
                "the lock was gone before any replica confirmed it",
            )),
        }
    }

    /// Renews a batch; tells what renewing each of them said, of which replicas then have the
    /// outcome.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        batch: Vec<Arc<StoredEntry>>,
    ) -> Result<Vec<Renewed>, LockError> {
        self.confirm_all(batch, |this| &this.renewals).await
    }

    async fn confirm_all(
        self: &Arc<Self>,
        batch: Vec<Arc<StoredEntry>>,
        lane: fn(&Self) -> &Lane,
    ) -> Result<Vec<Renewed>, LockError> {
        let limit = self.limit(&batch);
        self.confirmed(lane, limit, move |connection| async move {
            renew_all(&connection, &batch).await
        })
        .await
    }

    /// Raises a lock's counter, of which replicas then have the outcome; nothing if the lock was
    /// gone.
    pub(crate) async fn raise(
        self: &Arc<Self>,
        stored: &Arc<StoredEntry>,
        token: u64,
    ) -> Result<Option<u64>, LockError> {
        let limit = self.limit(std::slice::from_ref(stored));
        let stored = Arc::clone(stored);
        let raised = self
            .confirmed(
                |this| &this.acquisitions,
                limit,
                move |connection| async move { entry::raise(&connection, &stored, token).await },
            )
            .await;
        // Also where too few replicas have it: it is not taken back.
        raised.map_err(LockError::indeterminate)
    }

    async fn confirmed<T, F>(
        self: &Arc<Self>,
        lane: fn(&Self) -> &Lane,
        limit: Duration,
        write: impl FnOnce(Connection) -> F + Send + 'static,
    ) -> Result<T, LockError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let this = Arc::clone(self);
        let (tell, told) = oneshot::channel();
        // A task of its own: whoever is not polled any more keeps no permit and no connection from
        // others.
        self.tasks.spawn(async move {
            drop(tell.send(this.confirm_now(lane(&this), write, limit).await));
        });
        // The longest that it takes, and an answer's time more, should its runtime run no tasks.
        match tokio::time::timeout((limit + self.response) * 2, told).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(LockError::new(
                ErrorKind::Unavailable,
                "the runtime that the client was made on runs no tasks",
            )
            .indeterminate()),
        }
    }

    /// Returns how long replicas have.
    fn limit(&self, batch: &[Arc<StoredEntry>]) -> Duration {
        batch
            .iter()
            .map(|stored| stored.validity / 3)
            .fold(self.asked.timeout, Duration::min)
    }

    /// Gives up the connections; later ones are not kept.
    pub(crate) fn close(&self) {
        for lane in [&self.acquisitions, &self.renewals] {
            let idle = locked(&lane.idle).take();
            drop(idle);
        }
    }

    async fn confirm_now<T, F>(
        &self,
        lane: &Lane,
        write: impl FnOnce(Connection) -> F,
        limit: Duration,
    ) -> Result<T, LockError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let Ok(permit) = tokio::time::timeout(limit, lane.permits.acquire()).await else {
            return Err(LockError::new(
                ErrorKind::Unavailable,
                format!(
                    "no free connection to wait for replicas within {limit:?}: {MAX_CONNECTIONS} others wait for them"
                ),
            ));
        };
        // One that no acquisition needs at the moment is better than one that has to be made.
        let idle = [lane, &self.acquisitions]
            .into_iter()
            .find_map(|lane| locked(&lane.idle).as_mut().and_then(Vec::pop));
        let link = idle.unwrap_or_else(|| self.like.another(self.asked.timeout + self.response));
        // A connection that is still blocked is given up.
        let confirmed = tokio::time::timeout(
            limit + self.response,
            wait_on(&link, write, self.asked.replicas, limit),
        )
        .await;
        if confirmed.is_ok()
            && let Some(idle) = &mut *locked(&lane.idle)
        {
            idle.push(link);
        }
        drop(permit);
        let (written, confirmed) = confirmed.unwrap_or_else(|_| Err(Failure::timed_out()))?;
        if confirmed >= self.asked.replicas {
            return Ok(written);
        }
        let needed = self.asked.replicas;
        Err(LockError::new(
            ErrorKind::Unavailable,
            format!("{confirmed} of {needed} replicas confirmed the lock within {limit:?}"),
        ))
    }
}

/// Returns what writing said, and how many replicas have the outcome.
async fn wait_on<T, F>(
    link: &Link,
    write: impl FnOnce(Connection) -> F,
    replicas: u32,
    limit: Duration,
) -> Result<(T, u32), Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let connection = link.connection().await?;
    let written = write(connection.clone()).await?;
    match connection
        .run(redis::cmd("WAIT").arg(replicas).arg(millis(limit)))
        .await
        .map_err(Failure::without_effect)?
    {
        Value::Int(confirmed) => Ok((written, u32::try_from(confirmed).unwrap_or_default())),
        _ => Err(Failure::unexpected("no number in answer to WAIT").without_effect()),
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas")
            .field("asked", &self.asked)
            .field("acquisitions", &self.acquisitions)
            .field("renewals", &self.renewals)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = locked(&self.idle).as_ref().map(Vec::len);
        let free = self.permits.available_permits();
        f.debug_struct("Lane")
            .field("idle", &idle)
            .field("free", &free)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use lock_core::OwnerId;

    use super::*;
    use crate::{keys::Keys, transport::reconnect::Timeouts, transport::upstream::Upstream};

    #[tokio::test]
    async fn a_connection_that_was_in_use_when_it_closed_is_not_kept() {
        let limit = Duration::from_secs(1);
        let tasks = Tasks::current();
        // Nobody listens there.
        let info = redis::Client::open("redis://127.0.0.2:1")
            .unwrap()
            .get_connection_info()
            .clone();
        let like = Link::new(
            Upstream::Fixed(info),
            Timeouts {
                connect: limit,
                response: limit,
            },
            tasks.clone(),
            None,
            Arc::default(),
        );
        let replicas = Replicas::new(
            Asked {
                replicas: 1,
                timeout: limit,
            },
            Arc::new(like),
            limit,
            tasks,
        );
        let stored = Arc::new(StoredEntry {
            keys: Keys::new("", &"a".parse().unwrap()),
            owner: OwnerId::random(),
            ttl: limit,
            counter_ttl: limit,
            validity: limit,
        });
        let idle = || locked(&replicas.acquisitions.idle).as_ref().map(Vec::len);
        replicas.confirm(&stored).await.unwrap_err();
        assert_eq!(idle(), Some(1), "for the next");
        let mut late = Box::pin(replicas.confirm(&stored));
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
