use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lock_core::{
    AcquireOptions, Capabilities, Consistency, DistributedLock, ErrorKind, LockError, LockGuard,
    LockHolder, LockInfo, LockList, LockName, LockWatch, OwnerId, backend::locked,
};

/// Checks that a layer forwards every method of [`DistributedLock`] to the lock below it, and
/// leaves none to its default body. `layer` wraps the lock that it is given.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // An `Arc` forwards everything.
/// lock_conformance::check_forwarding(|lock| std::sync::Arc::new(lock)).await.unwrap();
/// # }
/// ```
///
/// # Errors
///
/// The names of the methods that did not reach the lock below, with their arguments. A layer that
/// answers some methods itself, or calls others instead, gets an error that names these.
pub async fn check_forwarding(
    layer: impl FnOnce(Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock>,
) -> Result<(), String> {
    let reached = Arc::new(Mutex::new(BTreeSet::new()));
    let layered = layer(Arc::new(Probe(Arc::clone(&reached))));
    let name = LockName::new("forwarding").map_err(|error| error.to_string())?;
    let calls = async {
        let _ = layered.capabilities();
        let _ = layered.acquire_named(&name, options()).await;
        let _ = layered.try_acquire_named(&name, options()).await;
        let _ = layered.inspect_named(&name).await;
        let _ = layered
            .force_release_named(&name, Some(&OwnerId::new(OWNER)))
            .await;
        let _ = layered.watch_named(&name).await;
        let _ = layered.list("forwarding").await;
        let _ = layered.shutdown().await;
    };
    if tokio::time::timeout(LIMIT, calls).await.is_err() {
        return Err(format!("the layer has not answered within {LIMIT:?}"));
    }
    let reached = locked(&reached);
    let missed: Vec<_> = METHODS
        .into_iter()
        .filter(|method| !reached.contains(method))
        .collect();
    if missed.is_empty() {
        Ok(())
    } else {
        Err(format!("the layer does not forward {}", missed.join(", ")))
    }
}

const METHODS: [&str; 8] = [
    "capabilities",
    "acquire_named",
    "try_acquire_named",
    "inspect_named",
    "force_release_named",
    "watch_named",
    "list",
    "shutdown",
];

/// For all calls together; none of them has anything to wait for.
const LIMIT: Duration = Duration::from_secs(10);

const OWNER: &str = "forwarding";

/// Options that a layer must not drop on the way.
fn options() -> AcquireOptions {
    AcquireOptions::new()
        .without_renewal()
        .with_metadata("forwarding")
}

/// A lock that can do nothing, but records what it was asked for.
#[derive(Debug)]
struct Probe(Arc<Mutex<BTreeSet<&'static str>>>);

impl Probe {
    fn reached<T>(&self, method: &'static str) -> Result<T, LockError> {
        locked(&self.0).insert(method);
        Err(LockError::new(
            ErrorKind::Unsupported,
            "this lock only sees what it is asked for",
        ))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for Probe {
    fn capabilities(&self) -> Capabilities {
        locked(&self.0).insert("capabilities");
        Capabilities::new("probe", Consistency::ProcessLocal)
    }

    async fn acquire_named(
        &self,
        _: &LockName,
        asked: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let whole = asked.metadata() == options().metadata() && !asked.renews();
        self.reached(if whole { "acquire_named" } else { "" })
    }

    async fn try_acquire_named(
        &self,
        _: &LockName,
        asked: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let whole = asked.metadata() == options().metadata() && !asked.renews();
        self.reached(if whole { "try_acquire_named" } else { "" })
    }

    async fn inspect_named(&self, _: &LockName) -> Result<Option<LockInfo>, LockError> {
        self.reached("inspect_named")
    }

    async fn force_release_named(
        &self,
        _: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        self.reached(if only.is_some_and(|only| only.as_str() == OWNER) {
            "force_release_named"
        } else {
            ""
        })
    }

    async fn watch_named(&self, _: &LockName) -> Result<LockWatch, LockError> {
        self.reached("watch_named")
    }

    async fn list(&self, _: &str) -> Result<LockList, LockError> {
        self.reached("list")
    }

    async fn shutdown(&self) -> Result<(), LockError> {
        self.reached("shutdown")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lock_core::forward_lock;

    #[derive(Debug)]
    struct Forgetful(Arc<dyn DistributedLock>);

    #[async_trait]
    impl DistributedLock for Forgetful {
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        async fn acquire_named(
            &self,
            name: &LockName,
            options: AcquireOptions,
        ) -> Result<LockGuard, LockError> {
            self.0.acquire_named(name, options).await
        }

        async fn try_acquire_named(
            &self,
            name: &LockName,
            options: AcquireOptions,
        ) -> Result<Option<LockGuard>, LockError> {
            self.0.try_acquire_named(name, options).await
        }

        async fn shutdown(&self) -> Result<(), LockError> {
            self.0.shutdown().await
        }
    }

    #[derive(Debug)]
    struct Complete {
        inner: Arc<dyn DistributedLock>,
    }

    #[async_trait]
    #[deny(clippy::missing_trait_methods)]
    impl DistributedLock for Complete {
        forward_lock!(inner: capabilities, acquire_named, try_acquire_named, inspect_named, force_release_named, watch_named, list, shutdown);
    }

    #[tokio::test]
    async fn a_layer_that_leaves_methods_to_their_default_is_told_which() {
        let missed = check_forwarding(|lock| Arc::new(Forgetful(lock)))
            .await
            .unwrap_err();
        assert_eq!(
            missed,
            "the layer does not forward inspect_named, force_release_named, watch_named, list"
        );
        check_forwarding(|inner| Arc::new(Complete { inner }))
            .await
            .unwrap();
        check_forwarding(|lock| Arc::new(lock)).await.unwrap();
    }
}
