//! Subjects of the measurements.

#[cfg(feature = "etcd")]
pub(crate) mod etcd_raw;
#[cfg(feature = "etcd")]
pub(crate) mod etcd_writers;
#[cfg(feature = "etcd")]
pub(crate) mod go_mutex;
#[cfg(feature = "layers")]
pub(crate) mod layered;
#[cfg(feature = "mem")]
pub(crate) mod lockable;
#[cfg(feature = "migrate")]
pub(crate) mod migrating;
pub(crate) mod ours;
#[cfg(feature = "redis")]
pub(crate) mod redis_raw;
#[cfg(feature = "redis")]
pub(crate) mod rslock;
#[cfg(feature = "mem")]
pub(crate) mod tokio_mutex;

#[cfg(feature = "migrate")]
use crate::subjects::migrating::Migrating;
use crate::{Result, protocol::Job, worker::serve as serve_as};

/// A client of the store, one in each process.
pub(crate) trait Client: Sized + Send + Sync + 'static {
    type Contender: Contender;

    fn connect(job: &Job) -> impl Future<Output = Result<Self>> + Send;

    /// Makes a contender for this lock.
    fn contender(&self, name: &str) -> impl Future<Output = Result<Self::Contender>> + Send;

    /// Leaves nothing behind in the store.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A contender that wants one lock again and again. Uses static dispatch, because the cost of
/// measuring must not hide the thing that is measured.
pub(crate) trait Contender: Send + Sync + 'static {
    type Held: Send;

    fn acquire(&self) -> impl Future<Output = Result<Self::Held>> + Send;

    fn release(&self, held: Self::Held) -> impl Future<Output = Result<()>> + Send;
}

/// The workers that are built into this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WorkerKind {
    Ours,
    OursApart,
    #[cfg(feature = "layers")]
    Unlayered,
    #[cfg(feature = "layers")]
    Layered,
    #[cfg(feature = "layers")]
    LayeredListened,
    #[cfg(feature = "etcd")]
    EtcdRaw,
    #[cfg(feature = "etcd")]
    EtcdWriters,
    #[cfg(feature = "migrate")]
    OnSource,
    #[cfg(feature = "migrate")]
    OnTarget,
    #[cfg(feature = "migrate")]
    MigratingSource,
    #[cfg(feature = "migrate")]
    MigratingDual,
    #[cfg(feature = "migrate")]
    MigratingFinal,
    #[cfg(feature = "mem")]
    TokioMutex,
    #[cfg(feature = "mem")]
    Lockable,
    #[cfg(feature = "redis")]
    RedisRaw,
    #[cfg(feature = "redis")]
    Rslock,
}

pub(crate) async fn serve(kind: WorkerKind, job: Job) -> Result<()> {
    match kind {
        WorkerKind::Ours => serve_as::<ours::Ours>(job).await,
        WorkerKind::OursApart => serve_as::<ours::OursApart>(job).await,
        #[cfg(feature = "layers")]
        WorkerKind::Unlayered => serve_as::<layered::Unlayered>(job).await,
        #[cfg(feature = "layers")]
        WorkerKind::Layered => serve_as::<layered::Layered<false>>(job).await,
        #[cfg(feature = "layers")]
        WorkerKind::LayeredListened => serve_as::<layered::Layered<true>>(job).await,
        #[cfg(feature = "etcd")]
        WorkerKind::EtcdRaw => serve_as::<etcd_raw::EtcdRaw>(job).await,
        #[cfg(feature = "etcd")]
        WorkerKind::EtcdWriters => serve_as::<etcd_writers::Writers>(job).await,
        #[cfg(feature = "migrate")]
        WorkerKind::OnSource => serve_as::<Migrating<{ migrating::SOURCE }>>(job).await,
        #[cfg(feature = "migrate")]
        WorkerKind::OnTarget => serve_as::<Migrating<{ migrating::TARGET }>>(job).await,
        #[cfg(feature = "migrate")]
        WorkerKind::MigratingSource => serve_as::<Migrating<{ migrating::SOURCE_ONLY }>>(job).await,
        #[cfg(feature = "migrate")]
        WorkerKind::MigratingDual => serve_as::<Migrating<{ migrating::DUAL }>>(job).await,
        #[cfg(feature = "migrate")]
        WorkerKind::MigratingFinal => serve_as::<Migrating<{ migrating::FINAL }>>(job).await,
        #[cfg(feature = "mem")]
        WorkerKind::TokioMutex => serve_as::<tokio_mutex::KeyedMutexes>(job).await,
        #[cfg(feature = "mem")]
        WorkerKind::Lockable => serve_as::<lockable::LockableMap>(job).await,
        #[cfg(feature = "redis")]
        WorkerKind::RedisRaw => serve_as::<redis_raw::RedisRaw>(job).await,
        #[cfg(feature = "redis")]
        WorkerKind::Rslock => serve_as::<rslock::Rslock>(job).await,
    }
}
