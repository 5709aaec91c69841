use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use lock_core::{
    LockError, LockName, LossReason, Operation, Terms,
    backend::{GuardSet, SHUTDOWN_LIMIT, Tasks, Watchdog, ensure_runtime},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    BACKEND,
    error::is_refusal,
    key::Prefix,
    loss_monitor::LossMonitor,
    queue::QueueWatchers,
    session::Sessions,
    transport::{Cluster, Watches, kv},
};

/// The parts of one client. Its guards keep it alive.
pub(crate) struct Core {
    pub(crate) namespace: String,
    pub(crate) default_ttl: Duration,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) guards: Arc<GuardSet>,
    pub(crate) sessions: Sessions,
    pub(crate) watchers: QueueWatchers,
    pub(crate) loss_monitor: LossMonitor,
    pub(crate) watchdog: Watchdog,
    /// Tasks that run as long as the client lives, unlike those of `guards`.
    services: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Core {
    pub(crate) fn new(
        cluster: Cluster,
        namespace: String,
        default_ttl: Duration,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let cluster = Arc::new(cluster);
        let services = tasks.apart();
        let stop = CancellationToken::new();
        let guards = GuardSet::new(BACKEND, tasks.apart());
        let (watches, serve_watches) = Watches::new(Arc::clone(&cluster));
        let (loss_monitor, serve_monitor) = LossMonitor::new(Arc::clone(&cluster), watches.clone());
        let sessions = Sessions::new(
            Arc::clone(&cluster),
            guards.tasks().clone(),
            guards.closing().clone(),
            default_ttl,
        );
        let check_restored = sessions.check_for_restored_entries(namespace.clone());
        let watchdog = Watchdog::new();
        let serve_watchdog = watchdog.clone().serve();
        let served: Vec<BoxFuture<'static, ()>> = vec![
            Box::pin(serve_watches),
            Box::pin(serve_monitor),
            Box::pin(check_restored),
            Box::pin(serve_watchdog),
        ];
        serve(&services, &stop, served);
        let watched = Arc::clone(&cluster);
        let watchers = QueueWatchers::new(watched, watches, services.clone(), stop.clone());
        let core = Arc::new(Self {
            sessions,
            watchers,
            namespace,
            default_ttl,
            cluster,
            guards,
            loss_monitor,
            watchdog,
            services,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        });
        core.start_over_on_rollback();
        core
    }

    fn start_over_on_rollback(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.cluster.history().on_rollback(move |error| {
            if let Some(core) = weak.upgrade() {
                core.start_over(error);
            }
        });
    }

    /// Ends all that relies on the lost state of the store. Calls under way fail with this error.
    fn start_over(&self, error: &LockError) {
        tracing::warn!(backend = BACKEND, %error, guards = self.guards.live(), "starting over");
        // Before the sessions end: waiters learn the reason, and do not queue again.
        self.watchers.refuse(error);
        self.guards.lose_all(LossReason::Removed);
        self.sessions.abandon();
        self.cluster.reopen_streams();
    }

    pub(crate) fn prefix(&self, name: &LockName) -> Prefix {
        Prefix::of(&self.namespace, name)
    }

    /// Connects to a server, and grants the session for acquisitions with default options.
    pub(crate) async fn connect(&self, terms: &Terms, limit: Duration) -> Result<(), LockError> {
        let prefix = self.namespace.as_str();
        self.cluster
            .first_contact(limit, |etcd| {
                let mut kv = kv(etcd);
                // Any key below the namespace: a user who may lock there may read it. Without a
                // namespace a user may be limited to some names: then a refusal is an answer, too.
                async move {
                    match kv.get(format!("{prefix}\0"), None).await {
                        Err(error) if prefix.is_empty() && is_refusal(&error) => Ok(()),
                        answer => answer.map(drop),
                    }
                }
            })
            .await?;
        self.sessions.session(terms).await.map(drop)
    }

    /// Shuts down even if the caller goes away: a session left behind would keep its entries for
    /// ever.
    pub(crate) async fn shutdown(self: &Arc<Self>) -> Result<(), LockError> {
        let core = Arc::clone(self);
        // It waits for the client's tasks, so it must not be one of them.
        Tasks::anywhere()
            .finish(async move { core.close().await })
            .await
    }

    async fn close(&self) -> Result<(), LockError> {
        ensure_runtime().map_err(|error| error.during(Operation::Shutdown).on(BACKEND))?;
        self.guards.close();
        if self.guards.tasks().ensure_removing().is_err() {
            // Fails, and loses the guards.
            return self.guards.shutdown().await;
        }
        tokio::select! {
            closed = self.revoke_and_release() => closed,
            stopped = self.guards.tasks().stopped() => Err(stopped.during(Operation::Shutdown).on(BACKEND)),
        }
    }

    async fn revoke_and_release(&self) -> Result<(), LockError> {
        let give_up = Instant::now() + SHUTDOWN_LIMIT;
        // Revoking a lease removes every entry that it keeps: one request for any number of guards.
        let _ = timeout_at(give_up, self.sessions.close()).await;
        let released = self.guards.shutdown_by(give_up).await;
        self.stop.cancel();
        self.services.idle().await;
        released
    }

    /// The number of guards, watchers, leases and tasks, for leak checks.
    pub(crate) fn residue(&self) -> usize {
        self.guards.live()
            + self.watchers.count()
            + self.sessions.registered()
            + self.guards.tasks().running()
            + self.services.running()
    }
}

/// Runs the services of a client until it stops.
fn serve(tasks: &Tasks, stop: &CancellationToken, services: Vec<BoxFuture<'static, ()>>) {
    for service in services {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = service => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLock")
            .field("namespace", &self.namespace)
            .field("default_ttl", &self.default_ttl)
            .field("cluster", &self.cluster)
            .field("guards", &self.guards)
            .finish_non_exhaustive()
    }
}
