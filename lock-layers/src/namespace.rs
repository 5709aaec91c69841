use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use lock_core::{
    AcquireOptions, DistributedLock, ErrorKind, LockError, LockGuard, LockHolder, LockInfo,
    LockList, LockName, LockWatch, OwnerId, forward_lock,
};

use crate::Layer;

/// Puts a prefix before every name, so that applications share a store, or one application keeps
/// parts of it apart.
///
/// Guards, errors, [`inspect`](DistributedLock::inspect_named), watches and lists show the names
/// that the caller knows; a list shows locks of this namespace only. In the message of an error the
/// store's own key may appear.
///
/// ```
/// use lock_core::DistributedLockExt;
/// use lock_layers::{Namespace, Stack};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lock_core::LockError> {
/// let store = Arc::new(lock_mem::MemLock::new());
/// let billing = Stack::new().with(Namespace::new("billing")?).over(store.clone());
///
/// let guard = billing.acquire("orders/42").await?;
/// assert_eq!(guard.name().as_str(), "orders/42");
/// assert!(store.inspect("billing/orders/42").await?.is_some());
/// # guard.release().await
/// # }
/// ```
///
/// The backends have a namespace of their own, as a setting and in the URL. It costs less, and all
/// layers see it the same; this one also works over a lock that somebody else has connected.
#[derive(Clone, Debug)]
pub struct Namespace {
    prefix: LockName,
}

impl Namespace {
    /// Longest namespace, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// A namespace; `prod` puts `prod/` before every name. Slashes at its ends make no difference.
    ///
    /// Namespaces nest: the lock `b/c` in the namespace `a` is the lock `c` in the namespace `a/b`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if it is empty, longer than [`MAX_LEN`](Self::MAX_LEN) bytes, or
    /// holds a control character.
    pub fn new(namespace: &str) -> Result<Self, LockError> {
        let invalid = |message| LockError::new(ErrorKind::InvalidConfig, message);
        let trimmed = namespace.trim_matches('/');
        if trimmed.is_empty() {
            return Err(invalid("the namespace is empty; leave the layer out"));
        }
        if trimmed.len() > Self::MAX_LEN {
            return Err(invalid("the namespace is over 1,024 bytes; shorten it"));
        }
        let prefix = LockName::new(format!("{trimmed}/"));
        let prefix = prefix
            .map_err(|error| invalid("the namespace cannot be part of a name").caused_by(error))?;
        Ok(Self { prefix })
    }
}

impl Layer for Namespace {
    fn layer(&self, inner: Arc<dyn DistributedLock>) -> Arc<dyn DistributedLock> {
        Arc::new(NamespaceLock {
            inner,
            prefix: self.prefix.clone(),
        })
    }
}

#[derive(Debug)]
struct NamespaceLock {
    inner: Arc<dyn DistributedLock>,
    prefix: LockName,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DistributedLock for NamespaceLock {
    async fn acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<LockGuard, LockError> {
        let below = name.after(&self.prefix);
        match self.inner.acquire_named(&below, options).await {
            Ok(guard) => Ok(guard.with_name(name.clone())),
            Err(error) => Err(error.renamed(&below, name)),
        }
    }

    async fn try_acquire_named(
        &self,
        name: &LockName,
        options: AcquireOptions,
    ) -> Result<Option<LockGuard>, LockError> {
        let below = name.after(&self.prefix);
        match self.inner.try_acquire_named(&below, options).await {
            Ok(guard) => Ok(guard.map(|guard| guard.with_name(name.clone()))),
            Err(error) => Err(error.renamed(&below, name)),
        }
    }

    async fn inspect_named(&self, name: &LockName) -> Result<Option<LockInfo>, LockError> {
        let below = name.after(&self.prefix);
        let info = self.inner.inspect_named(&below).await;
        renamed(info, &below, name)
    }

    async fn force_release_named(
        &self,
        name: &LockName,
        only: Option<&OwnerId>,
    ) -> Result<Vec<LockHolder>, LockError> {
        let below = name.after(&self.prefix);
        let removed = self.inner.force_release_named(&below, only).await;
        removed.map_err(|error| error.renamed(&below, name))
    }

    async fn watch_named(&self, name: &LockName) -> Result<LockWatch, LockError> {
        let below = name.after(&self.prefix);
        let watch = self.inner.watch_named(&below).await;
        let watch = watch.map_err(|error| error.renamed(&below, name))?;
        let name = name.clone();
        let infos = watch.map(move |info| renamed(info, &below, &name));
        Ok(LockWatch::new(infos))
    }

    async fn list(&self, prefix: &str) -> Result<LockList, LockError> {
        let below = format!("{}{prefix}", self.prefix);
        let own = self.prefix.clone();
        let list = self.inner.list(&below).await?;
        let infos = list.filter_map(move |info| {
            let listed = match info {
                Ok(info) => listed(info, &own),
                Err(error) => Some(Err(error)),
            };
            std::future::ready(listed)
        });
        Ok(LockList::new(infos))
    }

    forward_lock!(inner: capabilities, shutdown);
}

/// What is told of a lock, under the name that the caller knows.
fn renamed(
    info: Result<Option<LockInfo>, LockError>,
    below: &LockName,
    name: &LockName,
) -> Result<Option<LockInfo>, LockError> {
    match info {
        Ok(Some(mut info)) => {
            info.name = name.clone();
            Ok(Some(info))
        }
        Ok(None) => Ok(None),
        Err(error) => Err(error.renamed(below, name)),
    }
}

/// A lock of this namespace; `None` for one that is not.
fn listed(mut info: LockInfo, prefix: &LockName) -> Option<Result<LockInfo, LockError>> {
    let name = info.name.as_str().strip_prefix(prefix.as_str())?;
    info.name = LockName::new(name).ok()?;
    Some(Ok(info))
}

#[cfg(test)]
mod tests {
    use lock_core::DistributedLockExt;
    use lock_mem::MemLock;

    use super::*;

    fn locks() -> (Arc<MemLock>, Arc<dyn DistributedLock>) {
        let store = Arc::new(MemLock::new());
        let namespace = Namespace::new("/prod/").unwrap();
        let locks = namespace.layer(Arc::clone(&store) as _);
        (store, locks)
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_those_of_the_caller() {
        let (store, locks) = locks();
        let guard = locks.acquire("a").await.unwrap();
        assert_eq!(guard.name().as_str(), "a");
        assert_eq!(guard.view().name().as_str(), "a");
        let info = locks.inspect("a").await.unwrap().unwrap();
        assert_eq!(info.name.as_str(), "a");
        let mut watch = locks.watch("a").await.unwrap();
        let info = watch.next().await.unwrap().unwrap().unwrap();
        assert_eq!(info.name.as_str(), "a");
        let error = locks
            .acquire_timeout("a", std::time::Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(error.name().unwrap().as_str(), "a");
        assert!(!error.to_string().contains("prod"), "{error}");
        assert!(store.inspect("prod/a").await.unwrap().is_some());
        assert!(store.inspect("a").await.unwrap().is_none());
        locks.force_release("a").await.unwrap();
        let error = guard.release().await.unwrap_err();
        assert_eq!(error.name().unwrap().as_str(), "a");
    }

    #[tokio::test]
    async fn a_list_shows_no_other_namespace() {
        let (store, locks) = locks();
        let mut guards = Vec::new();
        for name in [
            "prod/a/1",
            "prod/a/2",
            "prod/b",
            "production/a/3",
            "a/4",
            "prod",
        ] {
            guards.push(store.acquire(name).await.unwrap());
        }
        let mut names = Vec::new();
        let mut list = locks.list("a").await.unwrap();
        while let Some(info) = list.next().await {
            names.push(info.unwrap().name.to_string());
        }
        names.sort();
        assert_eq!(names, ["a/1", "a/2"]);
    }

    #[test]
    fn a_bad_namespace_is_refused() {
        for bad in ["", "/", "a\nb", &"x".repeat(1025)] {
            let error = Namespace::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_name_may_be_as_long_as_without_it() {
        let (_, locks) = locks();
        let name = "x".repeat(LockName::MAX_LEN);
        let guard = locks.acquire(name.as_str()).await.unwrap();
        assert_eq!(guard.name().as_str(), name);
    }
}
