//! Helpers that the tests against real servers share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]
#![allow(dead_code, reason = "every test target uses a part of it")]

use std::{
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions, SortOrder, SortTarget};
use lock_conformance::servers::{self, EtcdOptions, Server, Skip, TcpProxy};
use lock_core::{AcquireOptions, DistributedLockExt, LockError, LockGuard, LockName};
use lock_etcd::{EtcdLock, EtcdLockBuilder};
use tokio::task::JoinHandle;

pub(crate) mod backup;
pub(crate) mod dead;
pub(crate) mod members;
pub(crate) mod metrics;
pub(crate) mod peers;

/// Far beyond what a loaded machine needs, and far below any TTL that must not be what helped.
pub(crate) const PROMPT: Duration = Duration::from_secs(20);

/// A TTL that no test waits for.
pub(crate) const NEVER: Duration = Duration::from_secs(600);

/// The value, or the end of the test where there is none to be had.
#[macro_export]
macro_rules! or_skip {
    ($attempt:expr) => {
        match $attempt {
            Ok(value) => value,
            Err(skip) => {
                eprintln!("{skip}");
                return;
            }
        }
    };
}

/// A server that no other test disturbs.
pub(crate) fn own() -> Result<Server, Skip> {
    servers::etcd(EtcdOptions::new().own())
}

pub(crate) fn address(server: &Server) -> SocketAddr {
    server.address().unwrap()
}

/// A client whose locks do not expire while a test runs.
pub(crate) fn builder(endpoint: impl ToString) -> EtcdLockBuilder {
    EtcdLock::builder([endpoint.to_string()]).with_ttl(NEVER)
}

pub(crate) async fn client(server: &Server) -> EtcdLock {
    builder(server.endpoint()).connect().await.unwrap()
}

/// A client whose connections the test can put into trouble.
pub(crate) async fn behind(server: &Server) -> (TcpProxy, EtcdLock) {
    let proxy = TcpProxy::start(address(server)).await.unwrap();
    let locks = builder(proxy.address()).connect().await.unwrap();
    (proxy, locks)
}

pub(crate) fn name(name: &str) -> LockName {
    name.parse().unwrap()
}

/// An acquire in a task of its own; given up when dropped.
pub(crate) struct Waiter(JoinHandle<Result<LockGuard, LockError>>);

impl Waiter {
    pub(crate) fn start(locks: &EtcdLock, name: &str) -> Self {
        Self::start_with(locks, name, AcquireOptions::new())
    }

    pub(crate) fn start_with(locks: &EtcdLock, name: &str, options: AcquireOptions) -> Self {
        let locks = locks.clone();
        let name = self::name(name);
        Self(tokio::spawn(async move {
            locks.acquire_with(&name, options).await
        }))
    }

    pub(crate) fn is_pending(&self) -> bool {
        !self.0.is_finished()
    }

    pub(crate) async fn outcome(mut self) -> Result<LockGuard, LockError> {
        promptly("the acquire's end", &mut self.0).await.unwrap()
    }

    pub(crate) async fn granted(self) -> LockGuard {
        self.outcome().await.unwrap()
    }

    /// Drops the acquire, and waits until it is dropped.
    pub(crate) async fn give_up(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An entry of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: String,
    pub(crate) lease: i64,
    pub(crate) created: i64,
}

/// Somebody with access to the store, behind the locks' back.
#[derive(Clone)]
pub(crate) struct Operator(pub(crate) Client);

impl Operator {
    pub(crate) async fn of(server: &Server) -> Self {
        Self(Client::connect([server.endpoint()], None).await.unwrap())
    }

    /// The entries of a lock, in the order of their creation.
    pub(crate) async fn entries(&self, name: &str) -> Vec<Found> {
        self.below(&format!("{name}/")).await
    }

    /// All keys below a prefix, in the order of their creation.
    pub(crate) async fn below(&self, prefix: &str) -> Vec<Found> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Ascend);
        let found = self.0.kv_client().get(prefix, Some(options)).await.unwrap();
        let entry = |kv: &etcd_client::KeyValue| Found {
            key: kv.key_str().unwrap().to_owned(),
            lease: kv.lease(),
            created: kv.create_revision(),
        };
        found.kvs().iter().map(entry).collect()
    }

    pub(crate) async fn leases(&self) -> usize {
        self.0.lease_client().leases().await.unwrap().leases().len()
    }

    pub(crate) async fn has_lease(&self, id: i64) -> bool {
        self.0
            .lease_client()
            .leases()
            .await
            .unwrap()
            .leases()
            .iter()
            .any(|lease| lease.id() == id)
    }

    pub(crate) async fn revoke(&self, lease: i64) {
        self.0.lease_client().revoke(lease).await.unwrap();
    }

    pub(crate) async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), etcd_client::Error> {
        self.0.kv_client().put(key, value, None).await.map(drop)
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.0.kv_client().delete(key, None).await.unwrap();
    }

    /// Waits until a lock has so many entries, its holder included.
    pub(crate) async fn until_entries(&self, name: &str, count: usize) {
        until(&format!("{count} entries of {name}"), || async {
            self.entries(name).await.len() == count
        })
        .await;
    }

    /// Waits until nothing is left of a client's locks: neither entries, nor anything in the client
    /// beyond its session, which goes as well when a request got no answer.
    pub(crate) async fn until_clean(&self, name: &str, locks: &EtcdLock, baseline: usize) {
        self.until_entries(name, 0).await;
        until("the client's baseline", || async {
            locks.residue() <= baseline
        })
        .await;
    }
}

/// Waits for a condition, and fails the test if it does not come true.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PROMPT, "{what}: not within {PROMPT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the output of a future that is ready promptly.
pub(crate) async fn promptly<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PROMPT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PROMPT:?}"),
    }
}

/// Shows that a client still works: a cycle on a name of its own.
pub(crate) async fn works(locks: &EtcdLock) {
    promptly("an unrelated lock", locks.acquire("unrelated"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}
