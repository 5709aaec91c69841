use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use lock_core::{
    LockError, LockName, LossReason, Operation, Terms,
    backend::{Attended, Holds, SHUTDOWN_LIMIT, Tasks, ensure_runtime},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    BACKEND,
    batch::{self, Batches},
    cluster::{Answered, Cluster, kv},
    error::{Failure, is_refusal},
    keys::Prefix,
    monitor::Monitor,
    session::Sessions,
    view::Views,
    watch::Watches,
};

/// What one client consists of; its guards keep it alive.
pub(crate) struct Core {
    pub(crate) namespace: String,
    pub(crate) default_ttl: Duration,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) sessions: Sessions,
    pub(crate) views: Views,
    pub(crate) monitor: Monitor,
    pub(crate) attended: Attended,
    batches: Arc<Batches>,
    /// Tasks that serve as long as the client lives, unlike those of `holds`, which end by themselves.
    services: Tasks,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Core {
    pub(crate) fn new(cluster: Cluster, namespace: String, default_ttl: Duration, home: &Tasks) -> Arc<Self> {
        let (cluster, services, stop) = (Arc::new(cluster), home.apart(), CancellationToken::new());
        let holds = Holds::new(BACKEND, home.apart());
        let (watches, serve_watches) = Watches::new(Arc::clone(&cluster));
        let (monitor, serve_monitor) = Monitor::new(Arc::clone(&cluster), watches.clone());
        let sessions = Sessions::new(Arc::clone(&cluster), holds.tasks().clone(), holds.closing().clone(), default_ttl);
        let look_for_strays = sessions.look_for_strays(namespace.clone());
        let attended = Attended::new();
        let serve_attended = attended.clone().serve();
        let served: [BoxFuture<'static, ()>; 4] =
            [Box::pin(serve_watches), Box::pin(serve_monitor), Box::pin(look_for_strays), Box::pin(serve_attended)];
        for service in served {
            let stop = stop.clone();
            services.spawn(async move {
                tokio::select! {
                    () = service => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        let core = Arc::new(Self {
            sessions,
            views: Views::new(Arc::clone(&cluster), watches, services.clone(), stop.clone()),
            batches: Batches::new(home.apart()),
            namespace,
            default_ttl,
            cluster,
            holds,
            monitor,
            attended,
            services,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        });
        let weak = Arc::downgrade(&core);
        core.cluster.history().on_rollback(move |error| {
            if let Some(core) = weak.upgrade() {
                core.start_over(error);
            }
        });
        core
    }

    /// Ends what relies on what the store has lost: calls under way fail with this error.
    fn start_over(&self, error: &LockError) {
        tracing::warn!(backend = BACKEND, %error, guards = self.holds.live(), "starting over");
        // Whoever waits learns the reason before the end of the session tells to queue again.
        self.views.refuse(error);
        self.holds.lose_all(LossReason::Removed);
        self.sessions.abandon();
        self.cluster.reopen_streams();
    }

    pub(crate) fn prefix(&self, name: &LockName) -> Prefix {
        Prefix::of(&self.namespace, name)
    }

    /// Runs a transaction that is safe to repeat, and tells whether an earlier attempt may have taken effect.
    pub(crate) async fn txn(&self, request: &batch::Request) -> Result<Answered<batch::Answer>, Failure> {
        let answered = self.cluster.call_repeatedly(|etcd| {
            let (batches, kv, request) = (Arc::clone(&self.batches), kv(etcd), request.clone());
            let have_moved = self.holds.tasks().have_moved();
            // The senders have ended with their runtime.
            async move { if have_moved { batch::alone(kv, request).await } else { batches.txn(kv, request).await } }
        });
        let mut answered = answered.await?;
        self.cluster.answered_in(answered.answer.term);
        answered.doubtful |= answered.answer.doubtful;
        Ok(answered)
    }

    /// Makes sure that the server answers, and that there is a session for acquisitions with default options.
    pub(crate) async fn connect(&self, terms: &Terms, limit: Duration) -> Result<(), LockError> {
        let prefix = self.namespace.as_str();
        self.cluster
            .first_contact(limit, |etcd| {
                let mut kv = kv(etcd);
                // Any key below the namespace: whoever may lock there may read it. Without one, a user may be limited to
                // some names: then the refusal of another is an answer, too.
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

    /// Goes on to its end if the caller goes away: a session left behind would keep its entries for ever.
    pub(crate) async fn shutdown(self: &Arc<Self>) -> Result<(), LockError> {
        let core = Arc::clone(self);
        // Not one of the tasks that it waits for.
        Tasks::anywhere().finish(async move { core.close().await }).await
    }

    async fn close(&self) -> Result<(), LockError> {
        ensure_runtime().map_err(|error| error.during(Operation::Shutdown).on(BACKEND))?;
        self.holds.close();
        if self.holds.tasks().ensure_removing().is_err() {
            // Says so, and loses the guards.
            return self.holds.shutdown().await;
        }
        tokio::select! {
            closed = self.revoke_and_release() => closed,
            stopped = self.holds.tasks().stopped() => Err(stopped.during(Operation::Shutdown).on(BACKEND)),
        }
    }

    async fn revoke_and_release(&self) -> Result<(), LockError> {
        let give_up = Instant::now() + SHUTDOWN_LIMIT;
        // Revoking a lease removes every entry that it keeps: one request for any number of guards.
        let _ = timeout_at(give_up, self.sessions.close()).await;
        let released = self.holds.shutdown_by(give_up).await;
        self.stop.cancel();
        self.services.idle().await;
        released
    }

    /// Guards, views, leases and tasks that are there, as one number for leak checks.
    pub(crate) fn residue(&self) -> usize {
        self.holds.live() + self.views.count() + self.sessions.kept() + self.holds.tasks().running() + self.services.running()
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLock")
            .field("namespace", &self.namespace)
            .field("default_ttl", &self.default_ttl)
            .field("cluster", &self.cluster)
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}
