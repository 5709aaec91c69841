use std::error::Error as _;

use etcd_client::Error as EtcdError;
use lock_core::{ErrorKind, LockError};

/// The meaning of a client error for the request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: LockError,
    /// Another attempt, perhaps on another member, may succeed.
    pub(crate) transient: bool,
    /// The next attempt may go to the same member: another one would not do better.
    pub(crate) in_place: bool,
    /// The lease named in the request does not exist.
    pub(crate) lease_gone: bool,
    /// The token of the request is, or may be, invalid.
    pub(crate) token_invalid: bool,
    /// There was no connection, or it broke.
    pub(crate) unreachable: bool,
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
    /// No answer within the time limit of one attempt.
    pub(crate) fn timeout(member: &str) -> Self {
        Self::unavailable(format!("no answer from {member} in time")).after_sending()
    }

    /// No answer, because there was an election meanwhile.
    pub(crate) fn election(member: &str) -> Self {
        Self::unavailable(format!("an election has dropped the request to {member}"))
            .after_sending()
            .in_place()
    }

    /// Unusable certificates or key.
    pub(crate) fn unusable_tls(error: EtcdError) -> Self {
        let message =
            "the TLS certificates or the key cannot be used; they must be PEM, and belong together";
        Self::definite(LockError::new(ErrorKind::InvalidUrl, message)).caused_by(error)
    }

    /// An answer without the requested content.
    pub(crate) fn protocol(message: &'static str) -> Self {
        Self::definite(LockError::new(ErrorKind::Protocol, message).indeterminate())
    }

    /// An error after which another attempt may succeed.
    pub(crate) fn transient(error: LockError) -> Self {
        Self {
            error,
            transient: true,
            in_place: false,
            lease_gone: false,
            token_invalid: false,
            unreachable: false,
        }
    }

    fn unavailable(message: String) -> Self {
        Self::transient(LockError::new(ErrorKind::Unavailable, message))
    }

    /// No connection could be made.
    pub(crate) fn refused(member: &str) -> Self {
        Self::unavailable(format!("cannot connect to {member}")).without_connection()
    }

    fn without_connection(self) -> Self {
        Self {
            unreachable: true,
            ..self
        }
    }

    /// Marks that the request may have taken effect.
    fn after_sending(mut self) -> Self {
        self.error = self.error.indeterminate();
        self
    }

    fn in_place(self) -> Self {
        Self {
            in_place: true,
            ..self
        }
    }

    /// Marks that the request was refused for its token, not for want of a permission.
    fn with_invalid_token(self) -> Self {
        Self {
            token_invalid: true,
            ..self.in_place()
        }
    }

    /// An error that another attempt does not change.
    pub(crate) fn definite(error: LockError) -> Self {
        Self {
            error,
            transient: false,
            in_place: false,
            lease_gone: false,
            token_invalid: false,
            unreachable: false,
        }
    }

    /// Interprets an error of a request to a member.
    pub(crate) fn of(error: EtcdError, member: &str) -> Self {
        match error {
            EtcdError::GRpcStatus(status) if is_connect_error(&status) => {
                Self::refused(member).caused_by(status)
            }
            // An error that the server sent has no source.
            EtcdError::GRpcStatus(status) if status.source().is_some() => {
                from_status(status.code() as i32, status.message(), member)
                    .without_connection()
                    .caused_by(status)
            }
            EtcdError::GRpcStatus(status) => {
                from_status(status.code() as i32, status.message(), member).caused_by(status)
            }
            EtcdError::LeaseKeepAliveError(message) if message.contains("not found") => Self {
                lease_gone: true,
                ..Self::definite(LockError::new(
                    ErrorKind::Lost,
                    "the session's lease is gone",
                ))
            },
            EtcdError::InvalidArgs(_)
            | EtcdError::InvalidUri(_)
            | EtcdError::InvalidMetadataValue(_) => Self::definite(LockError::new(
                ErrorKind::InvalidUrl,
                "an endpoint or credential cannot be used",
            ))
            .caused_by(error),
            EtcdError::TransportError(_) if is_connect_error(&error) => {
                Self::refused(member).caused_by(error)
            }
            error => Self::unavailable(format!("the connection to {member} failed"))
                .after_sending()
                .without_connection()
                .caused_by(error),
        }
    }

    fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.error = self.error.caused_by(cause);
        self
    }
}

fn from_status(code: i32, message: &str, member: &str) -> Failure {
    let new = |kind| LockError::new(kind, shorten(message));
    let transient = |kind| {
        Failure::transient(LockError::new(
            kind,
            format!("{member} answered: {}", shorten(message)),
        ))
    };
    match code {
        // etcd reports a wrong password as an invalid argument.
        INVALID_ARGUMENT
            if message.contains("authentication failed") || message.contains("user name") =>
        {
            Failure::definite(LockError::new(
                ErrorKind::PermissionDenied,
                "authentication failed; check user and password",
            ))
        }
        // A user or a role was changed while the request was under way, or since a signed token was
        // made.
        INVALID_ARGUMENT if message.contains("revision of auth store is old") => {
            transient(ErrorKind::Unavailable).with_invalid_token()
        }
        // The token has expired, or its member was restarted.
        UNAUTHENTICATED if message.contains("invalid auth token") => {
            transient(ErrorKind::Unavailable).with_invalid_token()
        }
        FAILED_PRECONDITION if message.contains("authentication is not enabled") => {
            Failure::definite(LockError::new(
                ErrorKind::PermissionDenied,
                "a user was given, but the server has authentication disabled; leave the user out",
            ))
        }
        NOT_FOUND if message.contains("lease not found") => Failure {
            lease_gone: true,
            ..Failure::definite(new(ErrorKind::Lost))
        },
        PERMISSION_DENIED | UNAUTHENTICATED => Failure::definite(new(ErrorKind::PermissionDenied)),
        RESOURCE_EXHAUSTED if message.contains("too many requests") => {
            transient(ErrorKind::Exhausted).in_place()
        }
        // A member that runs out of space while it applies a request reports so, and keeps the part
        // that it applied.
        RESOURCE_EXHAUSTED => Failure::definite(new(ErrorKind::Exhausted).indeterminate()),
        // There is another leader now, or will be in a moment.
        UNKNOWN | UNAVAILABLE
            if message.contains("proposal dropped") || message.contains("leader changed") =>
        {
            transient(ErrorKind::Unavailable).after_sending().in_place()
        }
        // A dead or leaderless member, a broken stream or a time limit: it may have taken effect.
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE => {
            transient(ErrorKind::Unavailable).after_sending()
        }
        INVALID_ARGUMENT => Failure::definite(new(ErrorKind::InvalidOptions)),
        NOT_FOUND | FAILED_PRECONDITION | OUT_OF_RANGE | UNIMPLEMENTED => {
            Failure::definite(new(ErrorKind::Protocol))
        }
        // The answer is unknown, and does not mean that nothing was done.
        _ => Failure::definite(new(ErrorKind::Protocol).indeterminate()),
    }
}

/// Keeps one line of a server's text, which may be anything.
fn shorten(message: &str) -> String {
    let line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    if line.is_empty() {
        "no further explanation".to_owned()
    } else {
        line
    }
}

/// Tells whether the request was not sent, because no connection could be made.
fn is_connect_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
            || error.to_string().contains("tcp connect error")
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Tells whether the server knows the user and refuses the request for want of a permission.
pub(crate) fn is_refusal(error: &EtcdError) -> bool {
    matches!(error, EtcdError::GRpcStatus(status) if status.code() as i32 == PERMISSION_DENIED)
}

/// The error of callers whose task was dropped with the client's runtime.
pub(crate) fn runtime_ended() -> LockError {
    LockError::new(
        ErrorKind::Unavailable,
        "the client's runtime has ended; connect again on a running one",
    )
}

#[cfg(test)]
mod tests;
