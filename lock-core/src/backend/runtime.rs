use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    ErrorKind, LockError,
    backend::{Removal, RuntimeOptions, runtime_options::LEAST_IDLE_LIMIT},
    sync::locked,
};

/// Longest time that the end of a runtime waits, for all releases of a client together.
pub const EXIT_LIMIT: Duration = Duration::from_millis(500);

/// The runtime of one client's tasks.
pub(super) struct ClientRuntime {
    options: RuntimeOptions,
    runtime: Handle,
    /// A thread that takes over what is to be removed, once the runtime has ended; `None` if it
    /// could not be started.
    fallback: OnceLock<Option<Handle>>,
    /// Instant at which the runtime that connected ended, which need not be that of the tasks.
    left: OnceLock<Instant>,
    /// Tells those who wait that the runtime of the tasks has ended.
    ended: CancellationToken,
    removals: Mutex<Removals>,
    fewer: Condvar,
    /// Part of [`EXIT_LIMIT`] that is left.
    budget: Mutex<Duration>,
    gone: CancellationToken,
    _gone_on_drop: DropGuard,
}

#[derive(Default)]
struct Removals {
    pending: HashMap<u64, Pending>,
    last: u64,
}

#[derive(Clone)]
struct Pending {
    /// `None`: done, and about to be forgotten.
    removal: Option<Arc<dyn Removal>>,
    tracker: TaskTracker,
    /// True if the log says that it was not done in time.
    told: bool,
}

impl ClientRuntime {
    /// The runtime that is current, or a thread.
    pub(super) fn new(options: RuntimeOptions) -> Result<Arc<Self>, LockError> {
        let here = current()?;
        let gone = CancellationToken::new();
        let runtime = match options.background_thread {
            true => start_thread(gone.clone()).map_err(|error| no_thread().caused_by(error))?,
            false => here.clone(),
        };
        let home = Arc::new(Self {
            options,
            runtime,
            fallback: OnceLock::new(),
            left: OnceLock::new(),
            ended: CancellationToken::new(),
            removals: Mutex::default(),
            fewer: Condvar::new(),
            budget: Mutex::new(EXIT_LIMIT),
            _gone_on_drop: gone.clone().drop_guard(),
            gone: gone.clone(),
        });
        let leaving = RuntimeEnd(Arc::downgrade(&home));
        here.spawn(async move {
            let _leaving = leaving;
            gone.cancelled().await;
        });
        Ok(home)
    }

    /// Runtime on which tasks start now.
    pub(super) fn runtime(&self) -> &Handle {
        self.fallback
            .get()
            .and_then(Option::as_ref)
            .unwrap_or(&self.runtime)
    }

    pub(super) fn is_current(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.runtime().id())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.left.get().is_some() && !self.options.background_thread
    }

    /// Fails once the runtime has ended.
    pub(super) fn ensure_runs(&self) -> Result<(), LockError> {
        if self.has_ended() {
            Err(ended())
        } else {
            Ok(())
        }
    }

    /// Fails once the runtime has ended, unless a thread has taken over what is to be removed, or
    /// does so now.
    pub(super) fn ensure_removes(&self) -> Result<(), LockError> {
        if self.has_ended() && self.fallback().is_none() {
            Err(ended())
        } else {
            Ok(())
        }
    }

    /// Waits until the runtime ends, or turns out not to run. Never completes if the runtime is the
    /// one that polls this, or has ended before.
    pub(super) async fn stopped(&self) -> LockError {
        if self.is_current() || self.options.background_thread || self.has_ended() {
            return std::future::pending().await;
        }
        let pause = self.options.idle_limit.max(LEAST_IDLE_LIMIT) / 2;
        loop {
            tokio::select! {
                () = self.ended.cancelled() => return ended(),
                () = tokio::time::sleep(pause) => {}
            }
            if let Some(stopped) = self.stopped_within(pause).await {
                return stopped;
            }
        }
    }

    async fn stopped_within(&self, limit: Duration) -> Option<LockError> {
        let sign_of_life = self.runtime.spawn(async {});
        tokio::select! {
            biased;
            Ok(()) = sign_of_life => None,
            () = self.ended.cancelled() => Some(ended()),
            () = tokio::time::sleep(limit) => Some(stands_still()),
        }
    }

    /// Returns the error or, if the runtime is behind it, one that says so with the error as its
    /// cause.
    pub(super) async fn explain(&self, error: LockError) -> LockError {
        if self.is_current() || self.options.background_thread || self.fallback.get().is_some() {
            return error;
        }
        match self.stopped_within(LEAST_IDLE_LIMIT / 2).await {
            Some(stopped) if error.is_indeterminate() => stopped.indeterminate().caused_by(error),
            Some(stopped) => stopped.caused_by(error),
            None => error,
        }
    }

    /// Removes it in a task; if the runtime ends first, on a thread, for which the runtime waits.
    pub(super) fn remove(self: &Arc<Self>, removal: Arc<dyn Removal>, tracker: &TaskTracker) {
        let id = {
            let mut removals = locked(&self.removals);
            removals.last += 1;
            let pending = Pending {
                removal: Some(Arc::clone(&removal)),
                tracker: tracker.clone(),
                told: false,
            };
            let id = removals.last;
            removals.pending.insert(id, pending);
            id
        };
        // The removal is registered before this check, so an end of the runtime after it finds the
        // removal.
        if self.ensure_removes().is_err() {
            return self.give_up(&[id]);
        }
        self.start(id, removal, tracker);
        if self.is_waited_for() {
            self.wait();
        }
    }

    fn start(self: &Arc<Self>, id: u64, removal: Arc<dyn Removal>, tracker: &TaskTracker) {
        let home = Arc::clone(self);
        let task = async move {
            removal.remove().await;
            drop(removal);
            home.done(id);
        };
        tracker.spawn_on(task, self.runtime());
    }

    fn done(&self, id: u64) {
        // Its drop may ask for another removal. It stays registered until then, so that there is
        // always one until all are done.
        let done = locked(&self.removals)
            .pending
            .get_mut(&id)
            .and_then(|pending| pending.removal.take());
        drop(done);
        locked(&self.removals).pending.remove(&id);
        self.fewer.notify_all();
    }

    /// The thread that takes over, started when it is first asked for.
    fn fallback(&self) -> Option<&Handle> {
        let start = || {
            let start = self
                .options
                .release_at_exit
                .then(|| start_thread(self.gone.clone()))?;
            start.inspect_err(|error| tracing::warn!(%error, "cannot start a thread that releases what is held")).ok()
        };
        self.fallback.get_or_init(start).as_ref()
    }

    /// Notes that the runtime that connected is being shut down.
    fn leave(self: &Arc<Self>) {
        let _ = self.left.set(Instant::now());
        if !self.options.background_thread {
            self.ended.cancel();
            self.begin_again();
        }
        if self.is_waited_for() {
            self.wait();
        }
    }

    /// Returns true if a removal may now be cut short by the end of the process. A client with a
    /// thread of its own may go on.
    fn is_waited_for(&self) -> bool {
        let leaving =
            |left: &Instant| !self.options.background_thread || left.elapsed() < EXIT_LIMIT * 2;
        self.options.release_at_exit && self.left.get().is_some_and(leaving) && !self.is_current()
    }

    fn begin_again(self: &Arc<Self>) {
        let pending: Vec<_> = locked(&self.removals)
            .pending
            .iter()
            .map(|(id, pending)| (*id, pending.clone()))
            .collect();
        if pending.is_empty() {
            return;
        }
        if self.ensure_removes().is_err() {
            return self.give_up(&pending.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        }
        for (
            id,
            Pending {
                removal, tracker, ..
            },
        ) in pending
        {
            if let Some(removal) = removal {
                self.start(id, removal, &tracker);
            }
        }
    }

    /// Waits until everything is removed, as long as the client's budget lasts.
    fn wait(&self) {
        // A second caller waits for the first.
        let mut budget = locked(&self.budget);
        let start = Instant::now();
        let removals = locked(&self.removals);
        let waited = self
            .fewer
            .wait_timeout_while(removals, *budget, |removals| !removals.pending.is_empty());
        let mut removals = waited.unwrap_or_else(PoisonError::into_inner).0;
        *budget = budget.saturating_sub(start.elapsed());
        let untold = |pending: &mut Pending| {
            if std::mem::replace(&mut pending.told, true) {
                None
            } else {
                pending.removal.clone()
            }
        };
        let left: Vec<_> = removals.pending.values_mut().filter_map(untold).collect();
        drop((removals, budget));
        warn_of(&left);
    }

    fn give_up(&self, ids: &[u64]) {
        let left: Vec<_> = {
            let mut removals = locked(&self.removals);
            ids.iter()
                .filter_map(|id| removals.pending.remove(id)?.removal)
                .collect()
        };
        warn_of(&left);
    }
}

/// Names at most so many.
const NAMED: usize = 10;

fn warn_of(left: &[Arc<dyn Removal>]) {
    let left: Vec<_> = left.iter().map(|removal| removal.left()).collect();
    let Some(longest) = left.iter().map(|left| left.ends_in).max() else {
        return;
    };
    let named: Vec<_> = left
        .iter()
        .take(NAMED)
        .map(|left| left.what.as_str())
        .collect();
    tracing::warn!(
        count = left.len(),
        what = named.join(", "),
        for_at_most = ?longest,
        "the client's runtime ended before this was released; it may stay locked until its lease ends"
    );
}

impl fmt::Debug for ClientRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.has_ended();
        let pending = locked(&self.removals).pending.len();
        f.debug_struct("Home")
            .field("options", &self.options)
            .field("ended", &ended)
            .field("pending", &pending)
            .finish_non_exhaustive()
    }
}

/// Belongs to a task that ends only with its runtime, or when the client is gone.
struct RuntimeEnd(Weak<ClientRuntime>);

impl Drop for RuntimeEnd {
    fn drop(&mut self) {
        if let Some(home) = self.0.upgrade() {
            home.leave();
        }
    }
}

/// A thread with a runtime, which ends when the client is gone.
fn start_thread(gone: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("lock-client".into())
        .spawn(move || {
            runtime.block_on(gone.cancelled());
            // Does not wait for a name look-up that takes long.
            runtime.shutdown_background();
        })?;
    Ok(handle)
}

/// Checks that a runtime is current, for an operation that needs no client's runtime: without one
/// nothing can wait.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] where no runtime is current.
pub fn ensure_runtime() -> Result<(), LockError> {
    current().map(drop)
}

fn current() -> Result<Handle, LockError> {
    let missing = "there is no Tokio runtime here; call it from a task, or within `block_on`";
    Handle::try_current().map_err(|_| LockError::new(ErrorKind::Unavailable, missing))
}

fn no_thread() -> LockError {
    LockError::new(
        ErrorKind::Unavailable,
        "cannot start the client's background thread",
    )
}

pub(super) fn ended() -> LockError {
    let message = "the runtime on which this client was made has ended; connect again on one that lasts, or with a background thread";
    LockError::new(ErrorKind::Unavailable, message)
}

fn stands_still() -> LockError {
    let message = "the runtime on which this client was made is not running: nothing polls it; use a multi-thread runtime, or a \
                   background thread (`background_thread=true`)";
    LockError::new(ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests;
