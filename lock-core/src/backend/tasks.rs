use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    runtime::{Handle, Id},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

use crate::{
    ErrorKind, LockError,
    backend::{
        Removal, RuntimeOptions,
        runtime::{ClientRuntime, ended, ensure_runtime},
    },
};

/// Owner of a client's background tasks: knows where they run and how many still do.
///
/// Clones share the count.
#[derive(Clone, Debug)]
pub struct Tasks {
    home: Option<Arc<ClientRuntime>>,
    tracker: TaskTracker,
}

impl Tasks {
    /// Tasks on the current runtime, or on a thread of their own. A backend with a connection makes
    /// this first when it connects: its tasks then outlive a runtime that an application starts for
    /// a single call.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a current runtime, or if no thread can be started.
    pub fn start(options: RuntimeOptions) -> Result<Self, LockError> {
        Ok(Self {
            home: Some(ClientRuntime::new(options)?),
            ..Self::anywhere()
        })
    }

    /// Tasks on the current runtime, or without one: they then run on the runtime that is current
    /// when they start.
    #[must_use]
    pub fn current() -> Self {
        Self {
            home: ClientRuntime::new(RuntimeOptions::default()).ok(),
            ..Self::anywhere()
        }
    }

    /// Tasks on the runtime that is current when they start. For backends without a connection.
    #[must_use]
    pub fn anywhere() -> Self {
        let tracker = TaskTracker::new();
        tracker.close();
        Self {
            home: None,
            tracker,
        }
    }

    /// Tasks at the same place that are counted apart.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            home: self.home.clone(),
            ..Self::anywhere()
        }
    }

    /// Starts a task. Never panics: without a runtime the future is dropped, and `None` returned.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
        match &self.home {
            Some(home) => Some(self.tracker.spawn_on(task, home.runtime())),
            None => Some(self.tracker.spawn_on(task, &Handle::try_current().ok()?)),
        }
    }

    /// Removes something in a task; see [`Removal`] for what becomes of it when the runtime ends.
    /// Never panics. Blocks only then, and for no more than
    /// [`EXIT_LIMIT`](crate::backend::EXIT_LIMIT) in the life of the client.
    pub fn remove(&self, removal: Arc<dyn Removal>) {
        match &self.home {
            Some(home) => home.remove(removal, &self.tracker),
            None => drop(self.spawn(async move { removal.remove().await })),
        }
    }

    /// Checks that an operation may begin. Every operation calls this first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the caller is not on a runtime, or that of the tasks has
    /// ended.
    pub fn ensure_running(&self) -> Result<(), LockError> {
        ensure_runtime()?;
        self.home.as_ref().map_or(Ok(()), |home| home.ensure_runs())
    }

    /// Checks the same for releases and clean-ups: they go on after the end of the runtime, unless
    /// they must not.
    ///
    /// # Errors
    ///
    /// As [`ensure_running`](Self::ensure_running).
    pub fn ensure_removing(&self) -> Result<(), LockError> {
        ensure_runtime()?;
        self.home
            .as_ref()
            .map_or(Ok(()), |home| home.ensure_removes())
    }

    /// Returns true if the tasks' runtime has ended, and with it every connection that was made
    /// there.
    #[must_use]
    pub fn have_moved(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.has_ended())
    }

    /// Returns the error or, if the tasks' runtime is behind it, one that says that this has ended
    /// or does not run, with the error as its cause.
    pub async fn explain(&self, error: LockError) -> LockError {
        match &self.home {
            Some(home) if error.kind() == ErrorKind::Unavailable => home.explain(error).await,
            _ => error,
        }
    }

    /// Waits until the tasks' runtime ends, or turns out not to run: anything that waits for its
    /// tasks would wait for ever. Never completes on that runtime itself, nor if it has ended
    /// before.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn stopped(&self) -> LockError {
        match &self.home {
            Some(home) => home.stopped().await,
            None => std::future::pending().await,
        }
    }

    /// Runs a future here, and to its end even if the caller drops it on the way: it then goes on
    /// as a task.
    ///
    /// For requests that cannot be taken back once they are sent. An output that the future returns
    /// in a task is dropped there, so let the drop of the output undo it. On another runtime than
    /// the tasks' own it is a task from the beginning, because timers and connections that it made
    /// there would end with that runtime.
    ///
    /// # Errors
    ///
    /// Those of the future; [`ErrorKind::Unavailable`] if the tasks' runtime has ended.
    pub fn finish<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, LockError>> + Send + 'static,
    ) -> Finish<T> {
        Finish {
            run: Run::New(Box::pin(future)),
            tasks: self.clone(),
        }
    }

    /// Runtime on which a task would start now.
    pub(super) fn runtime(&self) -> Option<Id> {
        match &self.home {
            Some(home) => Some(home.runtime().id()),
            None => Handle::try_current().ok().map(|here| here.id()),
        }
    }

    fn is_home(&self) -> bool {
        self.home.as_ref().is_none_or(|home| home.is_current())
    }

    /// Number of tasks that have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Waits until no task runs.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn idle(&self) {
        self.tracker.wait().await;
    }
}

/// A future that ends even if it is dropped; see [`Tasks::finish`].
#[must_use = "futures do nothing unless polled"]
pub struct Finish<T: Send + 'static> {
    run: Run<T>,
    tasks: Tasks,
}

type Running<T> = Pin<Box<dyn Future<Output = Result<T, LockError>> + Send>>;

enum Run<T> {
    New(Running<T>),
    Here(Running<T>),
    Task(JoinHandle<Result<T, LockError>>),
    Ended,
}

impl<T: Send> Future for Finish<T> {
    type Output = Result<T, LockError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.run = match (
            std::mem::replace(&mut this.run, Run::Ended),
            &this.tasks.home,
        ) {
            (Run::New(future), Some(home)) if !this.tasks.is_home() => {
                Run::Task(this.tasks.tracker.spawn_on(future, home.runtime()))
            }
            (Run::New(future), _) => Run::Here(future),
            (run, _) => run,
        };
        let output = match &mut this.run {
            Run::Here(future) => std::task::ready!(future.as_mut().poll(cx)),
            Run::Task(task) => std::task::ready!(Pin::new(task).poll(cx))
                .unwrap_or_else(|_| Err(ended().indeterminate())),
            Run::New(_) | Run::Ended => return Poll::Pending,
        };
        this.run = Run::Ended;
        Poll::Ready(output)
    }
}

impl<T: Send> Drop for Finish<T> {
    fn drop(&mut self) {
        // A future that is a task already goes on by itself.
        if let Run::Here(future) = std::mem::replace(&mut self.run, Run::Ended) {
            self.tasks.spawn(async move { drop(future.await) });
        }
    }
}

impl<T: Send> fmt::Debug for Finish<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finish")
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    /// Tells by its count when the future that holds a clone is gone.
    fn slow(held: &Arc<()>) -> impl Future<Output = Result<Arc<()>, LockError>> + Send + 'static {
        let held = Arc::clone(held);
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(held)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_future_goes_on_as_a_task() {
        let tasks = Tasks::current();
        let held = Arc::new(());
        let finish = tasks.finish(slow(&held));
        tokio::time::timeout(Duration::from_millis(10), finish)
            .await
            .unwrap_err();
        assert_eq!((tasks.running(), Arc::strong_count(&held)), (1, 2));
        tasks.idle().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_not_begun_or_has_ended_needs_no_task() {
        let tasks = Tasks::current();
        let held = Arc::new(());
        drop(tasks.finish(slow(&held)));
        tasks.finish(slow(&held)).await.unwrap();
        assert_eq!((tasks.running(), Arc::strong_count(&held)), (0, 1));
    }

    #[test]
    fn on_a_runtime_that_ends_it_goes_on_where_it_belongs() {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let home = runtime();
        let short = runtime();
        let tasks = home.block_on(async { Tasks::current() });
        let held = Arc::new(());
        let pause = |held: Arc<()>| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(held)
        };
        let finish = tasks.finish(pause(Arc::clone(&held)));
        short
            .block_on(async { tokio::time::timeout(Duration::from_millis(10), finish).await })
            .unwrap_err();
        drop(short);
        // An output that a task returns to nobody is dropped just after the task is counted as
        // ended.
        let dropped = async {
            while Arc::strong_count(&held) > 1 {
                tokio::task::yield_now().await;
            }
        };
        home.block_on(async { tokio::time::timeout(Duration::from_secs(30), dropped).await })
            .unwrap();

        let other = runtime();
        assert!(
            other
                .block_on(tasks.finish(pause(Arc::clone(&held))))
                .is_ok()
        );
        drop(home);
        assert!(
            other
                .block_on(tasks.finish(pause(Arc::clone(&held))))
                .is_err(),
            "its runtime has ended"
        );
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
