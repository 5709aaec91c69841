use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, GuardState, LockError, LockGuard,
    LockName, Operation,
    backend::{RuntimeOptions, Tasks, Watchdog},
};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Phase,
    acquire::{Asked, Outcome, attempt},
    coordination::Membership,
    error::in_both,
    observe::Floors,
    prepare::{keep_ahead, prepare},
    stores::Stores,
};

/// The parts of one client. Its guards do not keep it alive.
pub(crate) struct Client {
    pub(crate) source: Option<Arc<dyn DistributedLock>>,
    pub(crate) target: Option<Arc<dyn DistributedLock>>,
    pub(crate) phases: Phases,
    pub(crate) capabilities: Capabilities,
    watchdog: Watchdog,
    pub(crate) tasks: Tasks,
    pub(crate) stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What says which phase an acquisition is in.
pub(crate) enum Phases {
    /// The configuration.
    Fixed { phase: Phase, stores: Arc<Stores> },
    /// The coordinator, for each name.
    Coordinated(Arc<Membership>),
}

impl Client {
    pub(crate) fn new(
        [source, target]: [Option<Arc<dyn DistributedLock>>; 2],
        phases: Phases,
        capabilities: Capabilities,
        tasks: Tasks,
    ) -> Arc<Self> {
        let watchdog = Watchdog::new();
        let stop = CancellationToken::new();
        let mut services: Vec<BoxFuture<'static, ()>> = vec![Box::pin(watchdog.clone().serve())];
        if let Phases::Fixed { phase, stores } = &phases
            && *phase == Phase::Dual
        {
            services.push(Box::pin(keep_ahead(Arc::clone(stores))));
        }
        for service in services {
            let stopped = stop.clone();
            tasks.apart().spawn(async move {
                tokio::select! {
                    () = service => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
        Arc::new(Self {
            source,
            target,
            phases,
            capabilities,
            watchdog,
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    pub(crate) fn tasks() -> Result<Tasks, LockError> {
        Tasks::start(RuntimeOptions::default())
    }

    /// The stores of a name, and the phase that tells where its lock may be.
    pub(crate) fn view_of(&self, name: &LockName) -> (Arc<Stores>, Phase) {
        match &self.phases {
            Phases::Fixed { phase, stores } => (Arc::clone(stores), *phase),
            Phases::Coordinated(membership) => membership.view_of(name),
        }
    }

    /// As [`view_of`](Self::view_of), for as long as somebody watches: the plan may go on.
    pub(crate) fn watched(&self, name: &LockName) -> (Arc<Stores>, Phase) {
        match &self.phases {
            Phases::Fixed { .. } => self.view_of(name),
            Phases::Coordinated(membership) => (membership.view_of(name).0, Phase::Dual),
        }
    }

    /// As [`view_of`](Self::view_of), for all names.
    pub(crate) fn listed(&self) -> (Arc<Stores>, Phase) {
        match &self.phases {
            Phases::Fixed { phase, stores } => (Arc::clone(stores), *phase),
            Phases::Coordinated(membership) => (membership.unplanned(), Phase::Dual),
        }
    }

    /// The floor of the target's tokens, for each name.
    pub(crate) fn floors(&self) -> Floors {
        match &self.phases {
            Phases::Fixed { stores, .. } => {
                let floor = Arc::clone(&stores.floor);
                Arc::new(move |_: &LockName| Arc::clone(&floor))
            }
            Phases::Coordinated(membership) => {
                let membership = Arc::clone(membership);
                Arc::new(move |name: &LockName| Arc::clone(&membership.view_of(name).0.floor))
            }
        }
    }

    /// The source, if it answers for itself.
    pub(crate) fn source_alone(&self) -> Option<&Arc<dyn DistributedLock>> {
        use std::sync::atomic::Ordering;

        let Phases::Fixed { phase, stores } = &self.phases else {
            return None;
        };
        let is_alone = *phase == Phase::SourceOnly
            && (stores.target.is_none() || stores.is_prepared.load(Ordering::Acquire));
        self.source.as_ref().filter(|_| is_alone)
    }

    /// Checks what was asked for against both stores before anything is taken.
    fn asked(
        &self,
        name: &LockName,
        options: AcquireOptions,
        waits: bool,
    ) -> Result<Asked, LockError> {
        let ttl = options.ttl();
        let default_ttl = DEFAULT_TTL.clamp(self.capabilities.ttl.min, self.capabilities.ttl.max);
        let terms = options.clone().resolve(&self.capabilities, default_ttl)?;
        let options = match ttl {
            // Rounded in the same way for both.
            Some(_) => options.with_ttl(terms.ttl),
            None => options,
        };
        Ok(Asked {
            name: name.clone(),
            options,
            ttl: terms.ttl,
            until: terms.timeout.map(|timeout| Instant::now() + timeout),
            waits,
        })
    }

    async fn run(&self, asked: Asked) -> Result<Option<LockGuard>, LockError> {
        self.tasks.ensure_running()?;
        let ttl = asked.ttl;
        let asked = Arc::new(asked);
        let decided = match &self.phases {
            Phases::Fixed { phase, stores } => {
                let phase = *phase;
                let attempts = || {
                    let stores = Arc::clone(stores);
                    let asked = Arc::clone(&asked);
                    async move { decided(&stores, phase, &asked).await }
                };
                self.watchdog.run(ttl, attempts).await?
            }
            Phases::Coordinated(membership) => {
                let attempts = || {
                    let membership = Arc::clone(membership);
                    let asked = Arc::clone(&asked);
                    async move { coordinated(&membership, &asked).await }
                };
                self.watchdog.run(ttl, attempts).await?
            }
        };
        Ok(decided.map(|(guard, phase)| self.tended(guard, phase)))
    }

    /// A guard that gives up all of its locks when it has lost one of them, whatever its holder
    /// does.
    fn tended(&self, guard: LockGuard, phase: Phase) -> LockGuard {
        if phase != Phase::Dual {
            return guard;
        }
        let acquisition = guard.into_acquisition();
        let ended = acquisition.view().ended();
        let tended = Arc::clone(&acquisition);
        self.tasks.spawn(async move {
            if let GuardState::Lost(_) = ended.await {
                tended.release_in_background();
            }
        });
        LockGuard::new(acquisition)
    }

    pub(crate) async fn try_acquire(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let asked = self.asked(name, options, false)?;
        self.run(asked).await
    }

    pub(crate) async fn acquire(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let asked = self.asked(name, options, true)?;
        self.run(asked).await?.ok_or_else(|| {
            let message = "a store that was to wait did not";
            LockError::new(ErrorKind::Protocol, message)
        })
    }

    pub(crate) fn context(&self, error: LockError, operation: Operation) -> LockError {
        match &self.phases {
            Phases::Fixed { phase, .. } if *phase != Phase::Dual => {
                // In one store alone its own error says everything.
                error
                    .during(operation)
                    .on(self.capabilities.backend.clone())
            }
            _ => in_both(error, operation),
        }
    }
}

/// Attempts until one is not lost on the way.
async fn decided(
    stores: &Stores,
    phase: Phase,
    asked: &Asked,
) -> Result<Option<(LockGuard, Phase)>, LockError> {
    prepare(stores, phase, asked).await?;
    loop {
        match attempt(stores, phase, asked).await? {
            Outcome::Granted(guard) => return Ok(Some((guard, phase))),
            Outcome::NotFree => return Ok(None),
            Outcome::Lost => tokio::task::yield_now().await,
        }
    }
}

/// Attempts in the phase that the coordinator says, anew whenever that changes.
async fn coordinated(
    membership: &Arc<Membership>,
    asked: &Asked,
) -> Result<Option<(LockGuard, Phase)>, LockError> {
    loop {
        // As long as an outage of a store is waited for.
        let outage = Instant::now() + asked.ttl;
        let until = asked.until.map_or(outage, |until| until.min(outage));
        let until = asked.waits.then_some(until);
        let ticket = membership.admit(&asked.name, until).await?;
        let phase = ticket.phase();
        let outcome = tokio::select! {
            biased;
            outcome = attempt(ticket.stores(), phase, asked) => outcome,
            () = ticket.superseded() => Ok(Outcome::Lost),
        };
        match outcome? {
            Outcome::Granted(guard) => return Ok(Some((ticket.bind(guard), phase))),
            Outcome::NotFree => return Ok(None),
            Outcome::Lost => {
                drop(ticket);
                tokio::task::yield_now().await;
            }
        }
    }
}

/// What the stores take unless they were configured otherwise; theirs counts.
const DEFAULT_TTL: Duration = Duration::from_secs(30);
