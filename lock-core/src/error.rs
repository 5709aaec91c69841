use std::{borrow::Cow, convert::Infallible, error::Error, fmt, ops::Deref, sync::Arc};

use crate::LockName;

/// What went wrong, in terms that callers can match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The lock name is empty, too long, or holds a control character.
    InvalidName,
    /// An option is out of range; the message says which and what the range is.
    InvalidOptions,
    /// The connection URL, or a setting that it stands for, cannot be used.
    InvalidUrl,
    /// No connector is registered for the URL's scheme, or its Cargo feature is off.
    UnknownScheme,
    /// The backend does not offer what was asked for; see [`Capabilities`](crate::Capabilities).
    Unsupported,
    /// The wait ended before the lock was free, while the store answered. Nothing is held, and what was queued is being removed.
    TimedOut,
    /// The guard's acquisition had ended before: expired, removed, or past its maximum hold.
    Lost,
    /// The store cannot be reached, or cannot serve requests at the moment.
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

/// Whether the same call may succeed if it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Not without changing the call, the configuration or the store.
    Never,
    /// At once: the cause was somebody else's hold, or has passed.
    Now,
    /// After a pause, with backoff: the store is in trouble.
    Later,
}

/// What was being done when an error arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening the connection.
    Connect,
    /// [`DistributedLock::acquire_with`](crate::DistributedLock::acquire_with).
    Acquire,
    /// [`DistributedLock::try_acquire_with`](crate::DistributedLock::try_acquire_with).
    TryAcquire,
    /// Extending the lease.
    Renew,
    /// [`LockGuard::release`](crate::LockGuard::release).
    Release,
    /// [`DistributedLock::inspect`](crate::DistributedLock::inspect).
    Inspect,
    /// [`DistributedLock::force_release`](crate::DistributedLock::force_release).
    ForceRelease,
    /// [`DistributedLock::shutdown`](crate::DistributedLock::shutdown).
    Shutdown,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Acquire => "acquire",
            Self::TryAcquire => "try-acquire",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Inspect => "inspect",
            Self::ForceRelease => "force-release",
            Self::Shutdown => "shutdown",
        })
    }
}

/// The error of every operation: a [kind](LockError::kind), where it arose, what to do, and the cause.
///
/// `Display` is one line that ends with the causes, so that a log needs nothing else; they are also in
/// [`Error::source`]. A reporter that prints the chain of sources as well shows them twice. No message and no `Debug`
/// output holds a password, a token or a private key.
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

/// Shared, so that one failure can be told to several callers.
#[derive(Clone, Debug)]
struct Cause(Arc<dyn Error + Send + Sync>);

impl Deref for Cause {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl LockError {
    /// An error with a message that says what is wrong and, where the caller can mend it, what to do.
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

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> Option<Operation> {
        self.0.operation
    }

    /// Which backend reported it.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }

    /// Which lock it was about.
    #[must_use]
    pub fn name(&self) -> Option<&LockName> {
        self.0.name.as_ref()
    }

    /// Whether the request may have taken effect although it failed.
    ///
    /// An indeterminate *acquire* is never held silently: its entry is removed in the background, or ends with its
    /// lease.
    #[must_use]
    pub fn is_indeterminate(&self) -> bool {
        self.0.indeterminate
    }

    /// Whether the same call may succeed if it is made again.
    #[must_use]
    pub fn retry(&self) -> RetryAdvice {
        match self.0.kind {
            ErrorKind::TimedOut | ErrorKind::Lost => RetryAdvice::Now,
            ErrorKind::Unavailable | ErrorKind::Exhausted => RetryAdvice::Later,
            ErrorKind::InvalidName
            | ErrorKind::InvalidOptions
            | ErrorKind::InvalidUrl
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
        let Self { operation, backend, name, kind, message, .. } = self;
        let operation = operation.map(|operation| operation.to_string());
        let name = name.as_ref().map(|name| format!("`{name}`"));
        let backend = backend.as_ref().map(|backend| format!("on {backend}"));
        let context: Vec<_> = [operation, name, backend].into_iter().flatten().collect();
        let mut text = if context.is_empty() { String::new() } else { format!("{}: ", context.join(" ")) };
        text += &format!("{kind}: {message}");
        let (mut next, mut outer) = (self.source(), *kind);
        while let Some(cause) = next {
            // A cause often repeats its own cause, and an error of ours the kind of the one around it.
            let added = match cause.downcast_ref::<LockError>() {
                Some(inner) if std::mem::replace(&mut outer, inner.kind()) == inner.kind() => inner.0.message.to_string(),
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
    text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { kind, message, operation, backend, name, indeterminate, source } = &*self.0;
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
mod tests {
    use super::*;

    #[test]
    fn the_innermost_context_wins() {
        let inner: LockName = "inner".parse().unwrap();
        let outer: LockName = "outer".parse().unwrap();
        let error = LockError::new(ErrorKind::Lost, "gone").of(&inner).during(Operation::Renew).of(&outer).during(Operation::Acquire);
        assert_eq!((error.name(), error.operation()), (Some(&inner), Some(Operation::Renew)));
    }

    #[test]
    fn display_is_one_line_with_the_cause_which_is_the_source_too() {
        let error = LockError::new(ErrorKind::Unavailable, "cannot reach 127.0.0.1:1").on("etcd").caused_by("connection\n refused");
        assert_eq!(error.to_string(), "on etcd: unavailable: cannot reach 127.0.0.1:1: connection refused");
        assert_eq!(error.source().unwrap().to_string(), "connection\n refused");
        let error = LockError::new(ErrorKind::UnknownScheme, "use mem://").during(Operation::Connect);
        assert_eq!(error.to_string(), "connect: unknown scheme: use mem://");
    }

    #[test]
    fn no_cause_is_shown_twice() {
        let refused = LockError::new(ErrorKind::Unavailable, "no connection").on("etcd").caused_by("refused");
        let error = LockError::new(ErrorKind::Unavailable, "no answer within 2s").caused_by(refused);
        assert_eq!(error.to_string(), "unavailable: no answer within 2s: no connection: refused");
        let full = LockError::new(ErrorKind::Exhausted, "no space").caused_by("quota");
        let error = LockError::new(ErrorKind::Unavailable, "no answer: quota").caused_by(full);
        assert_eq!(error.to_string(), "unavailable: no answer: quota: resource exhausted: no space");
    }
}
