use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{Capabilities, DistributedLock, ErrorKind, LockError, LockUrl, Operation};

/// Opens the locks behind a URL. A backend registers one under its schemes.
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// The URL schemes that this connector opens, the main one first.
    fn schemes(&self) -> &'static [&'static str];

    /// Capabilities of the locks behind a URL. Does not connect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] for a URL that cannot be used.
    fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError>;

    /// Connects, or fails within the backend's connect timeout.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] for a URL that cannot be used,
    /// [`ErrorKind::Unavailable`] and [`ErrorKind::PermissionDenied`] from the store.
    async fn connect(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError>;
}

/// Connectors by URL scheme: a value, so that an application can add its own backends.
///
/// ```
/// use lock_core::{ErrorKind, Registry};
///
/// # async fn example() {
/// let registry = Registry::new().with_hint("etcd", "enable the Cargo feature `etcd`");
/// let error = registry.connect("etcd://127.0.0.1:2379").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::UnknownScheme);
/// assert!(error.to_string().contains("feature `etcd`"));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Registry {
    connectors: BTreeMap<&'static str, Arc<dyn Connector>>,
    hints: BTreeMap<&'static str, &'static str>,
}

impl Registry {
    /// A registry without connectors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a connector under all its schemes, replacing earlier ones.
    #[must_use]
    pub fn with(mut self, connector: impl Connector) -> Self {
        let connector: Arc<dyn Connector> = Arc::new(connector);
        for scheme in connector.schemes() {
            self.connectors.insert(scheme, Arc::clone(&connector));
        }
        self
    }

    /// Sets the advice that an error gives for a scheme that is not there.
    #[must_use]
    pub fn with_hint(mut self, scheme: &'static str, hint: &'static str) -> Self {
        self.hints.insert(scheme, hint);
        self
    }

    /// The schemes that can be opened.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.connectors.keys().copied()
    }

    /// Capabilities of the locks behind a URL. Does not connect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`] and [`ErrorKind::UnknownScheme`].
    pub fn capabilities(&self, url: &LockUrl) -> Result<Capabilities, LockError> {
        let connector = self.connector(url)?;
        connector
            .capabilities(url)
            .map_err(|error| error.during(Operation::Connect).on(connector.schemes()[0]))
    }

    /// Opens the locks behind a URL: [parses](LockUrl) and [opens](Self::open) it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], [`ErrorKind::UnknownScheme`], and those of
    /// [`Connector::connect`].
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn DistributedLock>, LockError> {
        self.open(
            &url.parse()
                .map_err(|error: LockError| error.during(Operation::Connect))?,
        )
        .await
    }

    /// Opens the locks behind a URL that was parsed before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], [`ErrorKind::UnknownScheme`], and those of
    /// [`Connector::connect`].
    pub async fn open(&self, url: &LockUrl) -> Result<Arc<dyn DistributedLock>, LockError> {
        let connector = self.connector(url)?;
        connector
            .connect(url)
            .await
            .map_err(|error| error.during(Operation::Connect).on(connector.schemes()[0]))
    }

    fn connector(&self, url: &LockUrl) -> Result<&dyn Connector, LockError> {
        self.connectors
            .get(url.scheme())
            .map(|connector| &**connector)
            .ok_or_else(|| self.unknown(url.scheme()))
    }

    fn unknown(&self, scheme: &str) -> LockError {
        let message = match self.hints.get(scheme) {
            Some(hint) => format!("the scheme `{scheme}` is not compiled in; {hint}"),
            None => {
                let known: Vec<_> = self
                    .schemes()
                    .chain(self.hints.keys().copied())
                    .map(|scheme| format!("{scheme}://"))
                    .collect();
                format!(
                    "no backend is registered for `{scheme}`; use one of {}",
                    known.join(", ")
                )
            }
        };
        LockError::new(ErrorKind::UnknownScheme, message).during(Operation::Connect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_scheme_lists_the_known_ones() {
        let registry = Registry::new().with_hint("etcd", "enable the Cargo feature `etcd`");
        let error = registry.connect("zookeeper://h:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownScheme);
        assert!(error.to_string().contains("etcd://"), "{error}");
        let error = registry.connect("etcd://h:1").await.unwrap_err();
        assert!(
            error.to_string().contains("enable the Cargo feature"),
            "{error}"
        );
    }
}
