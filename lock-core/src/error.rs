use std::{borrow::Cow, convert::Infallible, error::Error, fmt, ops::Deref, sync::Arc};

use crate::LockName;

/// Category of an error, for callers to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The lock name is empty, too long, or holds a control character.
    InvalidName,
    /// An option is out of range; the message says which and what the range is.
    InvalidOptions,
    /// The connection URL cannot be used.
    InvalidUrl,
    /// A setting of a client, given otherwise than by a URL, cannot be used.
    InvalidConfig,
    /// No connector is registered for the URL's scheme, or its Cargo feature is off.
    UnknownScheme,
    /// The backend does not offer what was asked for; see [`Capabilities`](crate::Capabilities).
    Unsupported,
    /// The wait ended before the lock was free, although the store answered, except for at most a
    /// [short silence](crate::AcquireOptions::with_timeout) at the end. Nothing is held, and the
    /// queued entry is being removed.
    TimedOut,
    /// The guard's acquisition had ended before: expired, removed, or past its maximum hold.
    Lost,
    /// The store cannot be reached, or cannot serve requests at the moment. For a wait whose time
    /// is up: the store did not answer [for a real share](crate::AcquireOptions::with_timeout) of
    /// it.
    Unavailable,
    /// The store refused the credentials, or they do not allow this operation.
    PermissionDenied,
    /// The store is out of space or quota, or asks to slow down.
    Exhausted,
    /// This client has been shut down.
    Shutdown,
    /// The store answered something that this backend does not understand.
    Protocol,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidName => "invalid name",
            Self::InvalidOptions => "invalid options",
            Self::InvalidUrl => "invalid URL",
            Self::InvalidConfig => "invalid configuration",
            Self::UnknownScheme => "unknown scheme",
            Self::Unsupported => "unsupported",
            Self::TimedOut => "timed out",
            Self::Lost => "lock lost",
            Self::Unavailable => "unavailable",
            Self::PermissionDenied => "permission denied",
            Self::Exhausted => "resource exhausted",
            Self::Shutdown => "shut down",
            Self::Protocol => "unexpected answer",
        })
    }
}

/// Advice on whether the same call may succeed if it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Not without changing the call, the configuration or the store.
    Never,
    /// At once: somebody else held the lock.
    Now,
    /// After a pause, with backoff: the store has a problem, or the lock was lost and its new
    /// holder is at work.
    Later,
}

/// Operation during which an error arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening the connection.
    Connect,
    /// [`DistributedLock::acquire_named`](crate::DistributedLock::acquire_named).
    Acquire,
    /// [`DistributedLock::try_acquire_named`](crate::DistributedLock::try_acquire_named).
    TryAcquire,
    /// Extending the lease.
    Renew,
    /// [`LockGuard::raise_token`](crate::LockGuard::raise_token).
    RaiseToken,
    /// [`LockGuard::release`](crate::LockGuard::release).
    Release,
    /// [`DistributedLock::inspect_named`](crate::DistributedLock::inspect_named).
    Inspect,
    /// [`DistributedLock::watch_named`](crate::DistributedLock::watch_named).
    Watch,
    /// [`DistributedLock::list`](crate::DistributedLock::list).
    List,
    /// [`DistributedLock::force_release_named`](crate::DistributedLock::force_release_named).
    ForceRelease,
    /// [`DistributedLock::shutdown`](crate::DistributedLock::shutdown).
    Shutdown,
}

impl fmt::Display for RetryAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::Now => "now",
            Self::Later => "later",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Acquire => "acquire",
            Self::TryAcquire => "try-acquire",
            Self::Renew => "renew",
            Self::RaiseToken => "raise-token",
            Self::Release => "release",
            Self::Inspect => "inspect",
            Self::Watch => "watch",
            Self::List => "list",
            Self::ForceRelease => "force-release",
            Self::Shutdown => "shutdown",
        })
    }
}

/// The error of every operation: a [kind](LockError::kind), where it arose, what to do, and the
/// cause.
///
/// `Display` is one line that ends with the causes, so that a log needs nothing else; they are also
/// in [`Error::source`]. A reporter that prints the chain of sources as well shows them twice. No
/// message and no `Debug` output holds a password, a token or a private key.
///
/// ```
/// use lock_core::{ErrorKind, LockError, Operation, RetryAdvice};
///
/// let error = LockError::new(ErrorKind::Unavailable, "no endpoint answered within 5s")
///     .during(Operation::Acquire)
///     .on("etcd")
///     .of(&"orders".try_into()?);
/// assert_eq!(error.to_string(), "acquire `orders` on etcd: unavailable: no endpoint answered within 5s");
/// assert_eq!(error.retry(), RetryAdvice::Later);
/// assert!(!error.is_indeterminate());
///
/// let error = LockError::new(ErrorKind::Unavailable, "cannot reach 10.0.0.7:2379").caused_by("connection refused");
/// assert_eq!(error.to_string(), "unavailable: cannot reach 10.0.0.7:2379: connection refused");
/// # Ok::<(), LockError>(())
/// ```
#[derive(Clone, thiserror::Error)]
#[error(transparent)]
pub struct LockError(Box<Details>);

#[derive(Clone, Debug, thiserror::Error)]
struct Details {
    kind: ErrorKind,
    message: Cow<'static, str>,
    operation: Option<Operation>,
    backend: Option<Cow<'static, str>>,
    name: Option<LockName>,
    indeterminate: bool,
    source: Option<Cause>,
}

/// Shared, so that one failure can be reported to several callers.
#[derive(Clone, Debug)]
struct Cause(Arc<dyn Error + Send + Sync>);

impl Deref for Cause {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl LockError {
    /// Creates an error with a message that says what is wrong and, where the caller can fix it,
    /// what to do.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            operation: None,
            backend: None,
            name: None,
            indeterminate: false,
            source: None,
        }))
    }

    /// Sets the operation, unless an inner layer did.
    #[must_use]
    pub fn during(mut self, operation: Operation) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Sets the backend, unless an inner layer did.
    #[must_use]
    pub fn on(mut self, backend: impl Into<Cow<'static, str>>) -> Self {
        self.0.backend.get_or_insert_with(|| backend.into());
        self
    }

    /// Sets the lock name, unless an inner layer did.
    #[must_use]
    pub fn of(mut self, name: &LockName) -> Self {
        self.0.name.get_or_insert_with(|| name.clone());
        self
    }

    /// Replaces one lock's name by another, here and in the causes, where they are about that lock:
    /// for a layer that maps names.
    #[must_use]
    pub fn renamed(mut self, from: &LockName, to: &LockName) -> Self {
        if self.0.name.as_ref() == Some(from) {
            self.0.name = Some(to.clone());
        }
        let cause = self.0.source.as_deref();
        if let Some(cause) = cause.and_then(|cause| cause.downcast_ref::<Self>()) {
            self.0.source = Some(Cause(Arc::new(cause.clone().renamed(from, to))));
        }
        self
    }

    /// Adds to the message.
    pub(crate) fn noting(mut self, more: &str) -> Self {
        self.0.message = format!("{}; {more}", self.0.message).into();
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(Cause(Arc::from(source.into())));
        self
    }

    /// Marks the outcome as unknown: the request may or may not have taken effect.
    #[must_use]
    pub fn indeterminate(mut self) -> Self {
        self.0.indeterminate = true;
        self
    }

    /// Calls a bad setting a bad URL, for a connector: all its settings come from the URL, or from
    /// the environment that completes it.
    #[must_use]
    pub fn in_url(mut self) -> Self {
        if self.0.kind == ErrorKind::InvalidConfig {
            self.0.kind = ErrorKind::InvalidUrl;
        }
        self
    }

    /// Category of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Message that says what is wrong and, where the caller can fix it, what to do; without the
    /// context and the causes that `Display` adds.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Operation that failed.
    #[must_use]
    pub fn operation(&self) -> Option<Operation> {
        self.0.operation
    }

    /// Backend that reported the error.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }

    /// Name of the lock that the error is about.
    #[must_use]
    pub fn name(&self) -> Option<&LockName> {
        self.0.name.as_ref()
    }

    /// Returns true if the request may have taken effect although it failed.
    ///
    /// An indeterminate *acquire* is never held silently: its entry is removed in the background,
    /// or ends with its lease.
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        self.0.indeterminate
    }

    /// Advice on whether the same call may succeed if it is made again.
    #[must_use]
    pub fn retry(&self) -> RetryAdvice {
        match self.0.kind {
            ErrorKind::TimedOut => RetryAdvice::Now,
            ErrorKind::Lost | ErrorKind::Unavailable | ErrorKind::Exhausted => RetryAdvice::Later,
            ErrorKind::InvalidName
            | ErrorKind::InvalidOptions
            | ErrorKind::InvalidUrl
            | ErrorKind::InvalidConfig
            | ErrorKind::UnknownScheme
            | ErrorKind::Unsupported
            | ErrorKind::PermissionDenied
            | ErrorKind::Shutdown
            | ErrorKind::Protocol => RetryAdvice::Never,
        }
    }
}

/// A [`LockName`] is a name already: lets it be passed where a name is parsed.
impl From<Infallible> for LockError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            backend,
            name,
            kind,
            message,
            ..
        } = self;
        let operation = operation.map(|operation| operation.to_string());
        let name = name.as_ref().map(|name| format!("`{name}`"));
        let backend = backend.as_ref().map(|backend| format!("on {backend}"));
        let context: Vec<_> = [operation, name, backend].into_iter().flatten().collect();
        let mut text = if context.is_empty() {
            String::new()
        } else {
            format!("{}: ", context.join(" "))
        };
        text += &format!("{kind}: {message}");
        let mut next = self.source();
        let mut outer = *kind;
        while let Some(cause) = next {
            // A cause often repeats its own cause, and one of our errors the kind of the error
            // around it.
            let added = match cause.downcast_ref::<LockError>() {
                Some(inner) if std::mem::replace(&mut outer, inner.kind()) == inner.kind() => {
                    inner.0.message.to_string()
                }
                Some(inner) => format!("{}: {}", inner.0.kind, inner.0.message),
                None => one_line(&cause.to_string()),
            };
            if !text.contains(&added) {
                text = format!("{text}: {added}");
            }
            next = cause.source();
        }
        f.write_str(&text)
    }
}

fn one_line(text: &str) -> String {
    text.split(char::is_control)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details {
            kind,
            message,
            operation,
            backend,
            name,
            indeterminate,
            source,
        } = &*self.0;
        f.debug_struct("LockError")
            .field("kind", kind)
            .field("message", message)
            .field("operation", operation)
            .field("backend", backend)
            .field("name", name)
            .field("indeterminate", indeterminate)
            .field("source", source)
            .finish()
    }
}

#[cfg(test)]
mod tests;
