use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::{
    AcquireOptions, DistributedLock, LockError, LockGuard, LockName, Operation,
    backend::{Watchdog, locked},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::Instant,
};

/// Attempts to acquire that have something which others wait for: one that its caller does not poll
/// gives it up, as one that is cancelled does.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    watchdog: Watchdog,
    /// Looks at the attempts while there are any.
    server: Mutex<Option<JoinHandle<()>>>,
}

/// Time without a poll after which an attempt is given up, unless it asks for a TTL.
const UNPOLLED: Duration = Duration::from_secs(30);

impl Attempts {
    /// Runs an attempt, and another one if its caller has not polled for the TTL that it asks for.
    pub(crate) async fn run<F>(
        &self,
        options: &AcquireOptions,
        attempt: impl FnMut() -> F,
    ) -> F::Output
    where
        F: Future + Send + 'static,
    {
        self.serve();
        let unpolled = options.ttl().unwrap_or(UNPOLLED);
        self.watchdog.run(unpolled, attempt).await
    }

    fn serve(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut server = locked(&self.server);
        if server.as_ref().is_none_or(JoinHandle::is_finished) {
            *server = Some(runtime.spawn(self.watchdog.clone().serve()));
        }
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if let Some(server) = locked(&self.server).take() {
            server.abort();
        }
    }
}

/// One acquire, and the time that is left of it.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    pub(crate) inner: Arc<dyn DistributedLock>,
    pub(crate) name: LockName,
    options: AcquireOptions,
    end: Option<Instant>,
}

impl Wait {
    pub(crate) fn new(
        inner: &Arc<dyn DistributedLock>,
        name: &LockName,
        options: AcquireOptions,
    ) -> Self {
        let timeout = options.timeout();
        Self {
            inner: Arc::clone(inner),
            name: name.clone(),
            end: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            options,
        }
    }

    /// Checks the options, for an acquire that does not reach the backend at once.
    ///
    /// # Errors
    ///
    /// Those of [`AcquireOptions::resolve`].
    pub(crate) fn check(&self, operation: Operation) -> Result<(), LockError> {
        let capabilities = self.inner.capabilities();
        let ttl = capabilities.ttl.max;
        let terms = self.options.clone().resolve(&capabilities, ttl);
        match terms {
            Ok(_) => Ok(()),
            Err(error) => Err(self.context(error, operation)),
        }
    }

    /// Adds what an error is about.
    pub(crate) fn context(&self, error: LockError, operation: Operation) -> LockError {
        let backend = self.inner.capabilities().backend;
        error.during(operation).on(backend).of(&self.name)
    }

    /// The timeout, for messages.
    pub(crate) fn timeout(&self) -> Duration {
        self.options.timeout().unwrap_or_default()
    }

    /// Acquires from the lock below, in what is left of the time.
    pub(crate) async fn acquire(&self) -> Result<LockGuard, LockError> {
        let options = self.options.clone();
        let options = match self.end {
            // A timeout of zero is left as it is: the backend refuses it.
            Some(end) if self.timeout() > Duration::ZERO => {
                let left = end.saturating_duration_since(Instant::now());
                options.with_timeout(left.max(Duration::from_millis(1)))
            }
            _ => options,
        };
        self.inner.acquire_named(&self.name, options).await
    }

    /// Waits for a permit; `None` when the time is up.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), if it has to wait.
    pub(crate) async fn permit(
        &self,
        permits: &Arc<Semaphore>,
    ) -> Result<Option<OwnedSemaphorePermit>, LockError> {
        // No timer, which needs a runtime, if there is nothing to wait for.
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(Some(permit));
        }
        self.check(Operation::Acquire)?;
        let permit = Arc::clone(permits).acquire_owned();
        let permit = match self.end {
            Some(end) => match tokio::time::timeout_at(end, permit).await {
                Ok(permit) => permit,
                Err(_) => return Ok(None),
            },
            None => permit.await,
        };
        // Nobody closes it.
        Ok(permit.ok())
    }
}

/// Turns at names, first come first served. A name that nobody wants takes no memory.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<LockName, Place>>);

#[derive(Debug)]
struct Place {
    turn: Arc<Semaphore>,
    /// Those who have the turn or wait for it.
    users: usize,
}

impl Turns {
    /// Waits for the turn at a name; `None` when the time is up.
    ///
    /// # Errors
    ///
    /// Those of [`Wait::check`], if it has to wait.
    pub(crate) async fn take(self: Arc<Self>, wait: &Wait) -> Result<Option<Turn>, LockError> {
        let (visit, turn) = self.visit(wait.name.clone());
        let permit = wait.permit(&turn).await?;
        Ok(permit.map(|permit| Turn {
            _permit: permit,
            _visit: visit,
        }))
    }

    /// Takes the turn if nobody has it.
    pub(crate) fn try_take(self: Arc<Self>, name: LockName) -> Option<Turn> {
        let (visit, turn) = self.visit(name);
        let permit = turn.try_acquire_owned().ok()?;
        Some(Turn {
            _permit: permit,
            _visit: visit,
        })
    }

    fn visit(self: Arc<Self>, name: LockName) -> (Visit, Arc<Semaphore>) {
        let turn = {
            let mut places = locked(&self.0);
            let place = places.entry(name.clone()).or_insert_with(|| Place {
                turn: Arc::new(Semaphore::new(1)),
                users: 0,
            });
            place.users += 1;
            Arc::clone(&place.turn)
        };
        (Visit { turns: self, name }, turn)
    }

    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        locked(&self.0).len()
    }
}

/// The turn at a name, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _visit: Visit,
}

/// Counts as a user of a name.
#[derive(Debug)]
struct Visit {
    turns: Arc<Turns>,
    name: LockName,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut places = locked(&self.turns.0);
        if let Some(place) = places.get_mut(&self.name) {
            place.users -= 1;
            if place.users == 0 {
                places.remove(&self.name);
            }
        }
    }
}
