//! Locks as an application's configuration describes them.

mod address;
mod changes;
mod keys;
mod layers;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use lock_core::{DistributedLock, ErrorKind, LockError, LockUrl, Operation, Secret};
use serde::{Deserialize, Serialize};

pub use changes::ConfigChanges;
pub use layers::LayersConfig;

/// Locks as an application's configuration describes them: in TOML, YAML, JSON or the environment,
/// by whatever crate the application reads these with.
///
#[cfg_attr(feature = "mem", doc = "```")]
#[cfg_attr(not(feature = "mem"), doc = "```no_run")]
/// use polylock::LockConfig;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // From a file: url = "redis://cache:6379", password_file = "/run/secrets/locks", ...
/// let config: LockConfig = serde_json::from_str(r#"{ "url": "mem://", "ttl": "15s" }"#)?;
/// let locks = config.connect().await?;
/// # locks.shutdown().await?;
///
/// let error = serde_json::from_str::<LockConfig>(r#"{ "urll": "mem://" }"#).unwrap_err();
/// assert!(error.to_string().contains("did you mean `url`?"));
/// # Ok(())
/// # }
/// ```
///
/// The address is the [`url`](Self::url), or its parts: [`scheme`](Self::scheme),
/// [`hosts`](Self::hosts) and [`path`](Self::path). Everything else goes with either; what a URL
/// has already may not be given again. Keys that are left out have the defaults of the URL's
/// parameters. Unknown keys are refused, with the nearest known one.
///
/// Secrets are never written: neither [`password`](Self::password), nor the password of a URL, nor
/// parameters that may be one.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default)]
#[non_exhaustive]
pub struct LockConfig {
    /// URL of the locks, such as `redis://cache:6379/0` or `mem://`.
    #[serde(serialize_with = "address::url_without_secrets")]
    pub url: Option<String>,
    /// Scheme, instead of a URL: `mem`, `redis`, `rediss+sentinel`, `etcds`, ...
    pub scheme: Option<String>,
    /// Servers, instead of a URL: `host:port[,host:port...]`.
    pub hosts: Option<String>,
    /// Path, instead of a URL's: a database's number, a namespace, a sentinel's service.
    pub path: Option<String>,
    /// User.
    pub username: Option<String>,
    /// The user's password. Better in a file or the environment.
    #[serde(skip_serializing, deserialize_with = "keys::secret")]
    pub password: Option<Secret>,
    /// File with the password; line ends at its end do not count. Read when connecting.
    pub password_file: Option<PathBuf>,
    /// Environment variable with the password. Read when connecting.
    pub password_env: Option<String>,
    /// PEM file of the authority that signs the servers' certificates.
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// Start of every key, so that applications share a store.
    pub namespace: Option<String>,
    /// TTL of acquisitions that ask for none.
    #[serde(with = "humantime_serde")]
    pub ttl: Option<Duration>,
    /// Time until a connection can be used.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Option<Duration>,
    /// Time until a request is answered.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Option<Duration>,
    /// Runs connections and renewals on a thread of the client's own.
    pub background_thread: Option<bool>,
    /// Further parameters of the URL, as one has them: `replicas=1&replica_timeout=1s`.
    #[serde(serialize_with = "address::parameters_without_secrets")]
    pub parameters: Option<String>,
    /// Layers over the store; needs the feature `layers`.
    pub layers: LayersConfig,
}

impl LockConfig {
    /// An empty configuration, to be filled in; it cannot connect before it has an address.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Locks behind a URL.
    #[must_use]
    pub fn of_url(url: impl Into<String>) -> Self {
        Self {
            url: Some(url.into()),
            ..Self::default()
        }
    }

    /// Connects with the backends that are compiled in, and applies the layers.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for settings that cannot be used, or do not go
    /// together; as [`connect`](crate::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](crate::connect).
    pub async fn connect(&self) -> Result<Arc<dyn DistributedLock>, LockError> {
        // What is wrong with the layers is told before any server is asked.
        let stack = self.layers.stack()?;
        let store = crate::registry().open(&self.to_url()?).await?;
        Ok(stack.over(store))
    }

    /// Applies the layers to locks that are connected: after a change of
    /// [`layers`](Self::layers) alone.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for layers that cannot be had.
    pub fn layered(
        &self,
        store: Arc<dyn DistributedLock>,
    ) -> Result<Arc<dyn DistributedLock>, LockError> {
        Ok(self.layers.stack()?.over(store))
    }

    /// The URL of all of this but the layers; reads the password from its file or variable.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) if there is no address or more than one, if
    /// something is given twice, or if the password cannot be read.
    pub fn to_url(&self) -> Result<LockUrl, LockError> {
        address::url(self).map_err(|error| error.during(Operation::Connect))
    }

    /// Names what differs in another configuration.
    ///
    /// ```
    /// use polylock::LockConfig;
    ///
    /// let old = LockConfig::of_url("redis://cache");
    /// let mut new = old.clone();
    /// new.layers.trace = true;
    /// assert!(!old.changes(&new).need_reconnect());
    /// new.namespace = Some("prod".into());
    /// assert_eq!(old.changes(&new).reconnect, ["namespace"]);
    /// ```
    #[must_use]
    pub fn changes(&self, new: &Self) -> ConfigChanges {
        ConfigChanges::between(self, new)
    }
}

impl Serialize for LockConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for LockConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(keys::KnownKeys(deserializer))
    }
}

/// Without secrets.
impl fmt::Debug for LockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(address::without_password);
        let parameters = self.parameters.as_deref().map(address::without_secrets);
        f.debug_struct("LockConfig")
            .field("url", &url)
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .field("path", &self.path)
            .field("namespace", &self.namespace)
            .field("parameters", &parameters)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> LockError {
    LockError::new(ErrorKind::InvalidConfig, message)
}

#[cfg(test)]
mod tests;
