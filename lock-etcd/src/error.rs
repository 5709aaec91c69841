use etcd_client::Error as EtcdError;
use lock_core::{ErrorKind, LockError};

/// What an error of the client says about the request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: LockError,
    /// Another attempt, perhaps on another member, may succeed.
    pub(crate) transient: bool,
    /// That attempt may as well be made where this one was: another member would not be better off.
    pub(crate) stays: bool,
    /// The lease named in the request does not exist.
    pub(crate) lease_gone: bool,
}

// The gRPC codes that etcd uses; tonic's own type is not part of etcd-client's public API.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

impl Failure {
    /// No answer within the time that one attempt has.
    pub(crate) fn timeout() -> Self {
        Self::transient(LockError::new(ErrorKind::Unavailable, "no answer in time").indeterminate())
    }

    /// No answer, for there was an election meanwhile.
    pub(crate) fn election() -> Self {
        let error = LockError::new(ErrorKind::Unavailable, "an election has dropped the request").indeterminate();
        Self { stays: true, ..Self::transient(error) }
    }

    /// Certificates or a key that are none.
    pub(crate) fn unusable_tls(error: EtcdError) -> Self {
        let message = "the TLS certificates or the key cannot be used; they must be PEM, and belong together";
        Self::definite(LockError::new(ErrorKind::InvalidUrl, message)).caused_by(error)
    }

    /// An answer that says nothing of what was asked.
    pub(crate) fn protocol(message: &'static str) -> Self {
        Self::definite(LockError::new(ErrorKind::Protocol, message).indeterminate())
    }

    /// An error after which another attempt may succeed.
    pub(crate) fn transient(error: LockError) -> Self {
        Self { error, transient: true, stays: false, lease_gone: false }
    }

    fn definite(error: LockError) -> Self {
        Self { error, transient: false, stays: false, lease_gone: false }
    }
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::GRpcStatus(status) => {
                let (code, message) = (status.code() as i32, status.message().to_owned());
                let never_sent = is_connect_error(&status);
                from_status(code, &message, never_sent).caused_by(status)
            }
            EtcdError::LeaseKeepAliveError(message) if message.contains("not found") => {
                Self { lease_gone: true, ..Self::definite(LockError::new(ErrorKind::Lost, "the session's lease is gone")) }
            }
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_) => {
                Self::definite(LockError::new(ErrorKind::InvalidUrl, "an endpoint or credential cannot be used")).caused_by(error)
            }
            EtcdError::TransportError(_) if is_connect_error(&error) => {
                Self::transient(LockError::new(ErrorKind::Unavailable, "cannot connect")).caused_by(error)
            }
            error => Self::transient(LockError::new(ErrorKind::Unavailable, "the connection failed").indeterminate()).caused_by(error),
        }
    }
}

impl Failure {
    fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.error = self.error.caused_by(cause);
        self
    }
}

fn from_status(code: i32, message: &str, never_sent: bool) -> Failure {
    let new = |kind| LockError::new(kind, shorten(message));
    match code {
        _ if never_sent => Failure::transient(LockError::new(ErrorKind::Unavailable, "cannot connect")),
        // etcd reports a wrong password as an invalid argument.
        INVALID_ARGUMENT if message.contains("authentication failed") || message.contains("user name") => {
            Failure::definite(LockError::new(ErrorKind::PermissionDenied, "authentication failed; check user and password"))
        }
        // Somebody has changed a user or a role while the request was under way; it was not carried out.
        INVALID_ARGUMENT if message.contains("revision of auth store is old") => Failure::transient(new(ErrorKind::Unavailable)),
        FAILED_PRECONDITION if message.contains("authentication is not enabled") => Failure::definite(LockError::new(
            ErrorKind::PermissionDenied,
            "a user was given, but the server has authentication disabled; leave the user out",
        )),
        NOT_FOUND if message.contains("lease not found") => Failure { lease_gone: true, ..Failure::definite(new(ErrorKind::Lost)) },
        PERMISSION_DENIED | UNAUTHENTICATED => Failure::definite(new(ErrorKind::PermissionDenied)),
        RESOURCE_EXHAUSTED if message.contains("too many requests") => Failure::transient(new(ErrorKind::Exhausted)),
        // A member that finds its space used up only while it applies a request reports so, and keeps what it applied.
        RESOURCE_EXHAUSTED => Failure::definite(new(ErrorKind::Exhausted).indeterminate()),
        // What a dead or leaderless member, a broken stream or a time limit looks like: it may have taken effect.
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE => Failure::transient(new(ErrorKind::Unavailable).indeterminate()),
        INVALID_ARGUMENT => Failure::definite(new(ErrorKind::InvalidOptions)),
        _ => Failure::definite(new(ErrorKind::Protocol)),
    }
}

/// A server, or what poses as one, may send any text: keep one line of it.
fn shorten(message: &str) -> String {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if line.is_empty() { "no further explanation".to_owned() } else { line }
}

/// Whether the request never left this machine: no connection could be made for it.
fn is_connect_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
            || error.to_string().contains("tcp connect error")
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether the server knows the user and refuses the request for want of a permission.
pub(crate) fn is_refusal(error: &EtcdError) -> bool {
    matches!(error, EtcdError::GRpcStatus(status) if status.code() as i32 == PERMISSION_DENIED)
}

/// The message of a watch that the server refused.
pub(crate) fn watch_refused(reason: &str) -> LockError {
    let kind = if reason.contains("permission") || reason.contains("auth") { ErrorKind::PermissionDenied } else { ErrorKind::Unavailable };
    LockError::new(kind, format!("the server refused the watch: {}", shorten(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lock_core::RetryAdvice;

    #[test]
    fn statuses_map_to_what_callers_can_do() {
        for (code, message, kind, transient) in [
            (UNKNOWN, "h2 protocol error", ErrorKind::Unavailable, true),
            (UNAVAILABLE, "etcdserver: no leader", ErrorKind::Unavailable, true),
            (CANCELLED, "Timeout expired", ErrorKind::Unavailable, true),
            (INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", ErrorKind::PermissionDenied, false),
            (INVALID_ARGUMENT, "etcdserver: revision of auth store is old", ErrorKind::Unavailable, true),
            (UNAUTHENTICATED, "etcdserver: invalid auth token", ErrorKind::PermissionDenied, false),
            (RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", ErrorKind::Exhausted, false),
            (RESOURCE_EXHAUSTED, "etcdserver: too many requests", ErrorKind::Exhausted, true),
            (12, "unknown service", ErrorKind::Protocol, false),
        ] {
            let failure = from_status(code, message, false);
            assert_eq!((failure.error.kind(), failure.transient), (kind, transient), "{code} {message}");
        }
        assert!(from_status(NOT_FOUND, "etcdserver: requested lease not found", false).lease_gone);
        assert!(from_status(RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", false).error.is_indeterminate());
        let unsent = from_status(UNAVAILABLE, "tcp connect error", true).error;
        assert!(!unsent.is_indeterminate());
        assert_eq!(unsent.retry(), RetryAdvice::Later);
    }

    #[test]
    fn server_text_stays_on_one_short_line() {
        let text = shorten(&"x\n".repeat(500));
        assert!(!text.contains('\n') && text.len() <= 200);
    }
}
