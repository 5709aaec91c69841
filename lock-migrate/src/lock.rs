use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join;
use lock_core::{
    AcquireOptions, Capabilities, DistributedLock, ErrorKind, LockError, LockGuard, LockHolder,
    LockInfo, LockList, LockName, LockWatch, Operation, OwnerId,
};
use tokio::time::Instant;

use crate::{
    FloorStore, Phase, RecordStore,
    capabilities::{BACKEND, capabilities},
    client::{Client, Phases},
    coordination::{Both, Membership},
    observe,
    stores::Stores,
};

/// How far the floor is raised beyond what is needed: five seconds' worth of Redis's tokens, which
/// grow by a million a second.
pub(crate) const HEAD_ROOM: u64 = 5_000_000;

/// Locks on their way from one store to another.
///
/// Which store they are in is a matter of the [`Phase`]. A client in [`Phase::Dual`] has them in
/// both: a guard is valid while both are, and takes the name's source lock first and gives it up
/// last. Dropping the last clone leaves live guards valid.
///
/// ```
/// use lock_core::DistributedLockExt;
/// use lock_mem::MemLock;
/// use lock_migrate::{MemFloor, MigratingLock, Phase};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let (old, new) = (Arc::new(MemLock::new()), Arc::new(MemLock::new()));
/// let floor = Arc::new(MemFloor::new());
/// let in_phase = |phase| {
///     MigratingLock::builder(phase)
///         .with_source(old.clone())
///         .with_target(new.clone(), floor.clone())
///         .build()
/// };
///
/// let (before, during, after) = (in_phase(Phase::SourceOnly)?, in_phase(Phase::Dual)?, in_phase(Phase::TargetOnly)?);
/// let first = before.acquire("orders").await?;
/// assert!(during.try_acquire("orders").await?.is_none());
/// let first = { let token = first.token(); first.release().await?; token };
/// let second = during.acquire("orders").await?;
/// assert!(after.try_acquire("orders").await?.is_none());
/// let second = { let token = second.token(); second.release().await?; token };
/// let third = after.acquire("orders").await?;
/// assert!(first < second && second < third.token());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MigratingLock(Arc<Client>);

/// Settings of a [`MigratingLock`].
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct MigratingLockBuilder {
    phases: PhaseSource,
    source: Option<Arc<dyn DistributedLock>>,
    target: Option<Arc<dyn DistributedLock>>,
    head_room: u64,
}

#[derive(Clone, Debug)]
enum PhaseSource {
    Fixed(Phase, Option<Arc<dyn FloorStore>>),
    Coordinated(Arc<dyn RecordStore>, String),
}

impl MigratingLockBuilder {
    /// Where the locks are now: needed in [`Phase::SourceOnly`] and [`Phase::Dual`], and with a
    /// coordinator.
    pub fn with_source(mut self, source: Arc<dyn DistributedLock>) -> Self {
        self.source = Some(source);
        self
    }

    /// Where they are to be, and the floor of the target's tokens, which all clients of the
    /// migration share: needed in every phase but [`Phase::SourceOnly`]. Given there, on the way
    /// back, the first acquisition waits until the source's tokens are beyond the target's, which
    /// may be ahead by the head-room. A coordinator has floors of its own, and takes no other.
    pub fn with_target(
        mut self,
        target: Arc<dyn DistributedLock>,
        floor: Arc<dyn FloorStore>,
    ) -> Self {
        self.target = Some(target);
        if let PhaseSource::Fixed(_, given) = &mut self.phases {
            *given = Some(floor);
        }
        self
    }

    /// How far the floor is raised beyond what is needed, so that it is written rarely; default:
    /// 5,000,000, which is five seconds' worth of Redis's tokens.
    pub fn with_head_room(mut self, tokens: u64) -> Self {
        self.head_room = tokens;
        self
    }

    /// The name of this process for the operators of a coordinator; default: host and process id.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        if let PhaseSource::Coordinated(_, given) = &mut self.phases {
            *given = label.into();
        }
        self
    }

    /// Makes the client, which belongs to the current runtime. What it is given is its own:
    /// [`shutdown`](DistributedLock::shutdown) ends both stores' clients.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if a store that is needed is missing, or the stores cannot take
    /// part; [`ErrorKind::Unavailable`] without a runtime.
    pub fn build(self) -> Result<MigratingLock, LockError> {
        self.built()
            .map_err(|error| error.during(Operation::Connect).on(BACKEND))
    }

    fn built(self) -> Result<MigratingLock, LockError> {
        let same = match (&self.source, &self.target) {
            (Some(source), Some(target)) => Arc::ptr_eq(source, target),
            _ => false,
        };
        if same {
            let message = "source and target are the same; give two stores";
            return Err(LockError::new(ErrorKind::InvalidConfig, message));
        }
        let of = |store: &Option<Arc<dyn DistributedLock>>| {
            store.as_ref().map(DistributedLock::capabilities)
        };
        let of_target = of(&self.target);
        let phase = match &self.phases {
            PhaseSource::Fixed(phase, _) => *phase,
            // It can do what all phases can.
            PhaseSource::Coordinated(..) => Phase::Dual,
        };
        let capabilities = capabilities(phase, of(&self.source).as_ref(), of_target.as_ref())?;
        let tasks = Client::tasks()?;
        let links = of_target.is_some_and(|target| target.metadata);
        let phases = match (self.phases, &self.source, &self.target) {
            (PhaseSource::Coordinated(records, label), Some(source), Some(target)) => {
                let both = Both {
                    source: Arc::clone(source),
                    target: Arc::clone(target),
                    head_room: self.head_room,
                    links,
                    member: source.capabilities().metadata.then(OwnerId::random),
                };
                let (membership, service) = Membership::new(records, both, label);
                // It has an end of its own: guards outlive the client.
                tasks.apart().spawn(service);
                Phases::Coordinated(membership)
            }
            (PhaseSource::Fixed(_, floor), source, target) => Phases::Fixed {
                phase,
                stores: Arc::new(Stores {
                    source: source.clone(),
                    target: target.clone(),
                    floor: floor.unwrap_or_else(|| Arc::new(crate::MemFloor::new())),
                    head_room: self.head_room,
                    links,
                    member: None,
                    final_floor: OnceLock::new(),
                    last_floor: AtomicU64::new(0),
                    is_prepared: AtomicBool::new(false),
                }),
            },
            (PhaseSource::Coordinated(..), ..) => {
                let message = "a coordinator needs a source and a target; give both";
                return Err(LockError::new(ErrorKind::InvalidConfig, message));
            }
        };
        let stores = [self.source, self.target];
        Ok(MigratingLock(Client::new(
            stores,
            phases,
            capabilities,
            tasks,
        )))
    }
}

impl MigratingLock {
    /// Settings of a client in this phase.
    pub fn builder(phase: Phase) -> MigratingLockBuilder {
        MigratingLockBuilder {
            phases: PhaseSource::Fixed(phase, None),
            source: None,
            target: None,
            head_room: HEAD_ROOM,
        }
    }

    /// Settings of a client whose phases a coordinator says, for each name: the plans in the
    /// `records` of the target, which an [`Operator`](crate::Operator) changes. Without a plan a
    /// name is in [`Phase::SourceOnly`].
    ///
    /// The client is a member under a lease. Its guards are valid no longer than that, and without
    /// it nothing is granted: an acquisition waits for it as for a store that does not answer.
    pub fn coordinated(
        source: Arc<dyn DistributedLock>,
        target: Arc<dyn DistributedLock>,
        records: Arc<dyn RecordStore>,
    ) -> MigratingLockBuilder {
        MigratingLockBuilder {
            phases: PhaseSource::Coordinated(records, process_label()),
            source: Some(source),
            target: Some(target),
            head_room: HEAD_ROOM,
        }
    }

    /// The phase that this client is in; `None` if a coordinator says so for each name.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        match &self.0.phases {
            Phases::Fixed { phase, .. } => Some(*phase),
            Phases::Coordinated(_) => None,
        }
    }

    /// Waits until a coordinated client is a member: a try then finds its phase known. Acquisitions
    /// that may wait do so by themselves.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] with the reason, if it is none after ten seconds.
    pub async fn joined(&self) -> Result<(), LockError> {
        match &self.0.phases {
            Phases::Fixed { .. } => Ok(()),
            Phases::Coordinated(membership) => {
                let joined = membership.joined(Instant::now() + JOIN_LIMIT).await;
                joined.map_err(|error| error.during(Operation::Connect).on(BACKEND))
            }
        }
    }

    /// Tasks that work for guards of this client. For leak checks.
    #[must_use]
    pub fn residue(&self) -> usize {
        let tickets = match &self.0.phases {
            Phases::Fixed { .. } => 0,
            Phases::Coordinated(membership) => membership.tickets(),
        };
        self.0.tasks.running() + tickets
    }
}

/// Time that it may take to become a member in a target that has just answered.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// Host and process id.
pub(crate) fn process_label() -> String {
    let host = std::env::var("HOSTNAME")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    let host = match host.trim() {
        "" => "host",
        host => host,
    };
    format!("{host}/{}", std::process::id())
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for MigratingLock {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities.clone()
    }

    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        if let Some(source) = self.0.source_alone() {
            return source.acquire_named(name, options).await;
        }
        let outcome = self.0.acquire(name, options).await;
        outcome.map_err(|error| self.0.context(error, Operation::Acquire).of(name))
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        if let Some(source) = self.0.source_alone() {
            return source.try_acquire_named(name, options).await;
        }
        let outcome = self.0.try_acquire(name, options).await;
        outcome.map_err(|error| self.0.context(error, Operation::TryAcquire).of(name))
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let (stores, phase) = self.0.view_of(name);
        let told = observe::inspect(&stores, phase, name).await;
        told.map_err(|error| self.0.context(error, Operation::Inspect).of(name))
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let (stores, phase) = self.0.view_of(name);
        let removed = observe::force_release(&stores, phase, name, only).await;
        removed.map_err(|error| self.0.context(error, Operation::ForceRelease).of(name))
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let (stores, phase) = self.0.watched(name);
        let watch = observe::watch(&stores, phase, name, self.0.floors()).await;
        watch.map_err(|error| self.0.context(error, Operation::Watch).of(name))
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let (stores, phase) = self.0.listed();
        let list = observe::list(&stores, phase, prefix, self.0.floors()).await;
        list.map_err(|error| self.0.context(error, Operation::List))
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        if let Phases::Coordinated(membership) = &self.0.phases {
            // Without a runtime there is no waiting.
            let may_wait = self.0.tasks.ensure_removing();
            may_wait.map_err(|error| self.0.context(error, Operation::Shutdown))?;
            membership.leave().await;
        }
        let shut = |store: Option<Arc<dyn DistributedLock>>| async move {
            match store {
                Some(store) => store.shutdown().await,
                None => Ok(()),
            }
        };
        let (source, target) = join(shut(self.0.source.clone()), shut(self.0.target.clone())).await;
        self.0.stop.cancel();
        source
            .and(target)
            .map_err(|error| self.0.context(error, Operation::Shutdown))
    }
}

impl fmt::Debug for MigratingLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigratingLock")
            .field("phase", &self.phase())
            .field("source", &self.0.source)
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}
