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
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

impl Failure {
    /// No answer within the time that one attempt has.
    pub(crate) fn timeout(member: &str) -> Self {
        Self::unavailable(format!("no answer from {member} in time")).after_sending()
    }

    /// No answer, for there was an election meanwhile.
    pub(crate) fn election(member: &str) -> Self {
        Self::unavailable(format!("an election has dropped the request to {member}")).after_sending().in_place()
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

    fn unavailable(message: String) -> Self {
        Self::transient(LockError::new(ErrorKind::Unavailable, message))
    }

    /// It may have taken effect.
    fn after_sending(mut self) -> Self {
        self.error = self.error.indeterminate();
        self
    }

    fn in_place(self) -> Self {
        Self { stays: true, ..self }
    }

    /// An error that another attempt does not change.
    pub(crate) fn definite(error: LockError) -> Self {
        Self { error, transient: false, stays: false, lease_gone: false }
    }
}

impl Failure {
    /// What an error in the talk with a member means.
    pub(crate) fn of(error: EtcdError, member: &str) -> Self {
        match error {
            EtcdError::GRpcStatus(status) if is_connect_error(&status) => {
                Self::unavailable(format!("cannot connect to {member}")).caused_by(status)
            }
            EtcdError::GRpcStatus(status) => from_status(status.code() as i32, status.message(), member).caused_by(status),
            EtcdError::LeaseKeepAliveError(message) if message.contains("not found") => {
                Self { lease_gone: true, ..Self::definite(LockError::new(ErrorKind::Lost, "the session's lease is gone")) }
            }
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_) => {
                Self::definite(LockError::new(ErrorKind::InvalidUrl, "an endpoint or credential cannot be used")).caused_by(error)
            }
            EtcdError::TransportError(_) if is_connect_error(&error) => {
                Self::unavailable(format!("cannot connect to {member}")).caused_by(error)
            }
            error => Self::unavailable(format!("the connection to {member} failed")).after_sending().caused_by(error),
        }
    }

    fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.error = self.error.caused_by(cause);
        self
    }
}

fn from_status(code: i32, message: &str, member: &str) -> Failure {
    let new = |kind| LockError::new(kind, shorten(message));
    let trouble = |kind| Failure::transient(LockError::new(kind, format!("{member} answered: {}", shorten(message))));
    match code {
        // etcd reports a wrong password as an invalid argument.
        INVALID_ARGUMENT if message.contains("authentication failed") || message.contains("user name") => {
            Failure::definite(LockError::new(ErrorKind::PermissionDenied, "authentication failed; check user and password"))
        }
        // Somebody has changed a user or a role while the request was under way; it was not carried out.
        INVALID_ARGUMENT if message.contains("revision of auth store is old") => trouble(ErrorKind::Unavailable).in_place(),
        FAILED_PRECONDITION if message.contains("authentication is not enabled") => Failure::definite(LockError::new(
            ErrorKind::PermissionDenied,
            "a user was given, but the server has authentication disabled; leave the user out",
        )),
        NOT_FOUND if message.contains("lease not found") => Failure { lease_gone: true, ..Failure::definite(new(ErrorKind::Lost)) },
        PERMISSION_DENIED | UNAUTHENTICATED => Failure::definite(new(ErrorKind::PermissionDenied)),
        RESOURCE_EXHAUSTED if message.contains("too many requests") => trouble(ErrorKind::Exhausted).in_place(),
        // A member that finds its space used up only while it applies a request reports so, and keeps what it applied.
        RESOURCE_EXHAUSTED => Failure::definite(new(ErrorKind::Exhausted).indeterminate()),
        // There is another leader now, or will be in a moment.
        UNKNOWN | UNAVAILABLE if message.contains("proposal dropped") || message.contains("leader changed") => {
            trouble(ErrorKind::Unavailable).after_sending().in_place()
        }
        // What a dead or leaderless member, a broken stream or a time limit looks like: it may have taken effect.
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE => trouble(ErrorKind::Unavailable).after_sending(),
        INVALID_ARGUMENT => Failure::definite(new(ErrorKind::InvalidOptions)),
        NOT_FOUND | FAILED_PRECONDITION | OUT_OF_RANGE | UNIMPLEMENTED => Failure::definite(new(ErrorKind::Protocol)),
        // Nobody knows what such an answer means, least of all that nothing was done.
        _ => Failure::definite(new(ErrorKind::Protocol).indeterminate()),
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

/// What callers learn whose task was dropped together with the client's runtime.
pub(crate) fn runtime_ended() -> LockError {
    LockError::new(ErrorKind::Unavailable, "the client's runtime has ended; connect again on a running one")
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
            (UNIMPLEMENTED, "unknown service", ErrorKind::Protocol, false),
        ] {
            let failure = from_status(code, message, "h:1");
            assert_eq!((failure.error.kind(), failure.transient), (kind, transient), "{code} {message}");
            assert_eq!(failure.error.to_string().contains("h:1"), transient, "{code} {message}");
        }
        assert!(from_status(NOT_FOUND, "etcdserver: requested lease not found", "").lease_gone);
        let unsent = Failure::unavailable("cannot connect".to_owned()).error;
        assert!(!unsent.is_indeterminate());
        assert_eq!(unsent.retry(), RetryAdvice::Later);
    }

    #[test]
    fn only_what_is_known_not_to_be_done_counts_so() {
        for (code, message, unknown) in [
            (RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", true),
            (10, "aborted by a proxy", true),
            (15, "data loss", true),
            (99, "a code of the future", true),
            (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", false),
            (UNIMPLEMENTED, "unknown service", false),
            (PERMISSION_DENIED, "etcdserver: permission denied", false),
        ] {
            assert_eq!(from_status(code, message, "").error.is_indeterminate(), unknown, "{code} {message}");
        }
    }

    #[test]
    fn what_another_member_would_answer_too_does_not_move_on() {
        for (code, message, stays) in [
            (INVALID_ARGUMENT, "etcdserver: revision of auth store is old", true),
            (RESOURCE_EXHAUSTED, "etcdserver: too many requests", true),
            (UNKNOWN, "raft proposal dropped", true),
            (UNAVAILABLE, "etcdserver: leader changed", true),
            (UNAVAILABLE, "etcdserver: no leader", false),
            (UNKNOWN, "h2 protocol error", false),
        ] {
            let failure = from_status(code, message, "");
            assert!(failure.transient);
            assert_eq!(failure.stays, stays, "{code} {message}");
        }
    }

    #[test]
    fn server_text_stays_on_one_short_line() {
        let text = shorten(&"x\n".repeat(500));
        assert!(!text.contains('\n') && text.len() <= 200);
    }
}
