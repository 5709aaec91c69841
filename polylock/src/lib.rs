//! Distributed locks behind one trait, on the store of your choice.
//!
//! A URL and a Cargo feature decide which store keeps the locks; the code that locks does not
//! change. Unit tests run in memory, production on Redis where that is good enough, on etcd where
//! it must be right.
//!
#![cfg_attr(feature = "mem", doc = "```")]
#![cfg_attr(not(feature = "mem"), doc = "```no_run")]
//! use polylock::{DistributedLockExt, LockError};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), LockError> {
//! let locks = polylock::connect("mem://").await?;
//!
//! let guard = locks.acquire("orders/42").await?;
//! // Exclusive until the release, or until the guard is lost. Send the token along with every write.
//! println!("holding with token {:?}", guard.token());
//! guard.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Acquisitions take options: a bound on the wait, the TTL, a maximum hold, a note for whoever
//! inspects the lock. [`with_lock`](DistributedLockExt::with_lock) runs a future while holding, and
//! stops it when the lock is lost:
//!
#![cfg_attr(feature = "mem", doc = "```")]
#![cfg_attr(not(feature = "mem"), doc = "```no_run")]
//! use polylock::{AcquireOptions, DistributedLockExt, ErrorKind};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), polylock::LockError> {
//! # let locks = polylock::connect("mem://").await?;
//! let options = AcquireOptions::new()
//!     .with_timeout(Duration::from_secs(2))
//!     .with_metadata("report on host-7");
//! match locks.with_lock("reports/nightly", options, |guard| async move { guard.token() }).await {
//!     Ok(token) => println!("done, with token {token:?}"),
//!     Err(error) if error.kind() == ErrorKind::TimedOut => println!("somebody else is at it"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Choosing a backend
//!
//! | | feature | URL | exclusion holds | grants | use it |
//! | --- | --- | --- | --- | --- | --- |
//! | memory | `mem` (default) | `mem://` | within one process | in order | in unit tests; as a keyed lock in one process |
//! | Redis, Valkey | `redis` | `redis://`, `rediss://` | while the server keeps its data; a failover may grant a lock twice | in order among clients | to save work: a job that runs twice is a nuisance |
//! | etcd | `etcd` | `etcd://` | through any failure that a majority of its members survives | in order | to be right: a job that runs twice is damage |
//!
//! [`DistributedLock::capabilities`] tells the same as data. The feature `etcd` needs `protoc` at
//! build time; nothing else does.
//!
//! # What is guaranteed
//!
//! - **Exclusion.** Two guards of one name are never valid at the same time, within what the
//!   backend declares, as long as clocks advance at nearly the same rate.
//! - **Deadline.** A guard is valid until one TTL, less a margin, after its last acknowledged
//!   request was *sent*. Past that it says [`Lost`](GuardState::Lost), whether or not the network
//!   says anything. Renewal runs in the background.
//! - **Loss is reported.** As a [state](LockGuard::state), as a [future](LockGuard::lost), and as
//!   an error from [`release`](LockGuard::release).
//! - **Only your own entry is released**, never a successor's. Dropping a guard releases in the
//!   background; one that is alive at the end of `main` is released as the runtime ends, if that
//!   takes no more than half a second.
//! - **Cancellation leaves nothing behind**: every future may be dropped at any point.
//! - **Fencing.** Each acquisition has a token larger than all before.
//!
//! No lock can stop a process that is paused between looking at its guard and writing. If that must
//! not do damage, the protected resource has to refuse a [`FencingToken`] smaller than the largest
//! that it has seen.
//!
//! # Runtimes
//!
//! Every operation needs a Tokio runtime, and says so where there is none. It must have time and
//! I/O enabled (`enable_all` of its builder), which no client can check beforehand: without them
//! Tokio panics when a client connects, with a message that names what is missing. In memory
//! nothing connects: there the task that renews panics, and guards are lost after a TTL. The
//! client's connections and renewals are tasks of the runtime on which it was made. If that has
//! ended, every operation says so at once; if it is not polled, within the time of a request. A
//! current-thread runtime that does nothing outside `block_on` renews nothing there, and **loses
//! its guards** after a TTL. With `background_thread=true` the client has a thread of its own, and
//! neither happens. See [`LockGuard`], also for a guard that is alive at the end of `main`.
//!
//! # URLs
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?key=value&...]`, with special
//! characters of user, password and path percent-encoded. Unknown parameters are refused.
//!
//! | URL | meaning |
//! | --- | --- |
//! | `mem://` | a new store for each connect |
//! | `mem://name` | the store of that name in this process |
//! | `etcd://h1:2379,h2:2379,h3:2379/namespace` | a cluster; start of every key |
//! | `etcds://h1:2379` | the same over TLS |
//! | `redis://host:6379/0` | a server, and which of its databases |
//! | `redis+sentinel://s1:26379,s2:26379,s3:26379/service/0` | the server that sentinels name as the master of a service |
//! | `redis+cluster://h1:6379,h2:6379,h3:6379` | a cluster, by some of its servers |
//! | `redis+quorum://h1:6379,h2:6379,h3:6379/0` | a majority of independent servers (Redlock) |
//! | `rediss://`, `rediss+sentinel://`, `rediss+cluster://`, `rediss+quorum://` | the same over TLS |
//! | `migrate+redis://host:6379/0?phase=coordinated&target=etcd://h1:2379` | on the way from one to the other: feature `migrate`, module `migrate` |
//!
//! | parameter | backends | meaning | default |
//! | --- | --- | --- | --- |
//! | `ttl=30s` | all | time that the store keeps a lock without hearing from its holder, for acquisitions that ask for none | `30s` |
//! | `connect_timeout=5s` | etcd, redis | time until a connection can be used | `5s` |
//! | `request_timeout=1s` | etcd, redis | time until a request is answered | `6s`, `1s` |
//! | `poll_interval=2s` | redis | interval at which a waiter looks although nothing was reported | `2s` |
//! | `namespace=prod` | etcd, redis | start of every key, so that applications share a store (on etcd also as the path) | none |
//! | `replicas=1`, `replica_timeout=1s` | redis, redis+sentinel | number of replicas that must confirm a lock, and the time they have | none, `1s` |
//! | `sentinel_username=NAME`, `sentinel_password=SECRET` | redis+sentinel | the sentinels' own credentials | none |
//! | `max_clock_offset=500ms` | redis | greatest difference of the clocks of servers that take over from each other; guards end earlier by it | `500ms` with sentinels, a cluster or `replicas`, else `0s` |
//! | `background_thread=true` | all | a thread of the client's own for connections, renewals and clean-ups | `false`: the runtime that connects |
//! | `release_at_exit=false` | etcd, redis | the end of the runtime does not wait for releases, otherwise for at most half a second | `true` |
//! | `ca=FILE` | etcds, rediss | PEM file of the authority that signs the server's certificate | the system's |
//! | `cert=FILE`, `key=FILE` | etcds, rediss | PEM files of the client's certificate and private key | none |
//!
//! Settings that a URL leaves out are taken from the environment: `LOCK_ETCD_USERNAME`,
//! `LOCK_ETCD_PASSWORD`, `LOCK_ETCD_CA`, `LOCK_ETCD_CERT` and `LOCK_ETCD_KEY`, and the same with
//! `LOCK_REDIS_`. Secrets are never printed, neither in messages nor by `Debug`.
//!
//! # Configuration
//!
//! With the feature `serde`, `LockConfig` is a part of an application's configuration: a URL or its
//! parts, the password from a file or a variable, TLS, defaults, layers. It is read from TOML,
//! YAML, JSON or the environment by whatever reads the rest.
//!
//! # Without a runtime
//!
//! With the feature `blocking`, the module `blocking` has the same for programs that have no
//! runtime.
//!
//! # Beyond the URL
//!
//! The backends are the modules `mem`, `etcd` and `redis`, each behind its feature, with typed
//! builders and constructors that take a client that you have made yourself (features
//! `etcd-client-0_21` and `redis-1` of `lock-etcd` and `lock-redis`). An application's own backend
//! joins by [`registry()`]`.with(connector)`. The module `layers`, behind its feature, has what goes
//! on top of any of them, such as traces and metrics. [`lock_core`] and the crate `lock-conformance`
//! explain how to write one, and how to prove it.

#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "serde")]
mod config;
mod connect;

#[cfg(feature = "serde")]
pub use config::{ConfigChanges, LayersConfig, LockConfig};
pub use connect::{connect, from_env, registry};
pub use lock_core::{
    AcquireOptions, Acquisition, AcquisitionObserver, AcquisitionStatus, Answer, Capabilities,
    Connector, Consistency, DistributedLock, DistributedLockExt, Ended, Endpoint, ErrorKind,
    FencingToken, GuardState, GuardView, LockError, LockGuard, LockHolder, LockInfo, LockList,
    LockName, LockUrl, LockWatch, LossReason, Mode, Operation, OwnerId, Registry, RetryAdvice,
    Secret, Terms, TlsPem, TokenDurability, TtlRange, backend, forward_lock,
};

/// Imports for code that locks: `use polylock::prelude::*`.
pub mod prelude {
    pub use lock_core::{
        AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, FencingToken, GuardState,
        GuardView, LockError, LockGuard, LockName,
    };
}

#[cfg(feature = "etcd")]
pub use lock_etcd as etcd;
#[cfg(feature = "layers")]
pub use lock_layers as layers;
#[cfg(feature = "mem")]
pub use lock_mem as mem;
#[cfg(feature = "migrate")]
pub use lock_migrate as migrate;
#[cfg(feature = "redis")]
pub use lock_redis as redis;

/// Compiles the code of the README.
#[cfg(all(
    doctest,
    feature = "blocking",
    feature = "layers",
    feature = "mem",
    feature = "serde"
))]
#[doc = include_str!("../../README.md")]
struct Readme;
