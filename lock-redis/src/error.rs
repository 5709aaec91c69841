use std::{borrow::Cow, error::Error, fmt, io, sync::Arc};

use lock_core::{ErrorKind, LockError};
use redis::{RedisError, ServerErrorKind};

use crate::capabilities::BACKEND;

/// Why a request failed, and whether it may have reached the server: can be handed to everybody who
/// waits for one connection.
#[derive(Clone)]
pub(crate) struct Failure {
    error: RedisError,
    pub(crate) sent: bool,
    context: Option<String>,
    setting: bool,
    /// A redirection that was not followed any more: the servers of a cluster do not agree at the
    /// moment.
    astray: bool,
    /// The client was let in, and may not track what it reads.
    denies_tracking: bool,
}

/// Server to which a request is to be sent instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Redirection<'a> {
    pub(crate) slot: u16,
    /// `host:port`; the host may be missing.
    pub(crate) address: &'a str,
    /// This request only (`ASK`), because the slot is on its way; else all of the slot (`MOVED`).
    pub(crate) once: bool,
}

impl Failure {
    /// The server has not seen the request.
    pub(crate) fn unsent(error: impl Into<RedisError>) -> Self {
        Self::new(without_arguments(error.into()), false)
    }

    /// The request was on its way.
    pub(crate) fn sent(error: impl Into<RedisError>) -> Self {
        Self::new(without_arguments(error.into()), true)
    }

    fn new(error: RedisError, sent: bool) -> Self {
        Self {
            error,
            sent,
            context: None,
            setting: false,
            astray: false,
            denies_tracking: false,
        }
    }

    /// No answer in time, to a request that was on its way.
    pub(crate) fn timed_out() -> Self {
        Self::sent(io::Error::from(io::ErrorKind::TimedOut))
    }

    /// Returns what was tried, for a message that the cause alone does not explain; the first that
    /// is said tells most.
    pub(crate) fn while_trying(mut self, context: String) -> Self {
        self.context.get_or_insert(context);
        self
    }

    /// The client library refuses what it was set up with.
    pub(crate) fn bad_setting(error: RedisError) -> Self {
        Self {
            setting: true,
            ..Self::new(error, false)
        }
    }

    /// A request that was redirected again and again.
    pub(crate) fn gone_astray(self) -> Self {
        Self {
            astray: true,
            ..self
        }
    }

    /// The answer to `CLIENT TRACKING`.
    pub(crate) fn on_tracking(self) -> Self {
        Self {
            denies_tracking: self.is_refusal(),
            ..self
        }
    }

    /// The server lets nobody track, or not this user: rarely passes.
    pub(crate) fn denies_tracking(&self) -> bool {
        self.denies_tracking || self.error.kind() == redis::ErrorKind::RESP3NotSupported
    }

    /// For a request that changes nothing: its outcome is never in doubt.
    pub(crate) fn without_effect(self) -> Self {
        Self {
            sent: false,
            ..self
        }
    }

    /// The server said something that this client does not understand.
    pub(crate) fn unexpected(what: &'static str) -> Self {
        Self::sent((redis::ErrorKind::UnexpectedReturnType, what))
    }

    /// The server is a replica, or about to become one.
    pub(crate) fn not_a_master() -> Self {
        Self::unsent(redis::make_extension_error(
            "READONLY".into(),
            Some("the server says that it is a replica".into()),
        ))
    }

    /// The server has forgotten a script: nothing was done.
    pub(crate) fn is_unknown_script(&self) -> bool {
        self.error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
    }

    /// A server of a cluster says which other server keeps the key.
    pub(crate) fn redirection(&self) -> Option<Redirection<'_>> {
        let (address, slot) = self.error.redirect_node()?;
        let once = self.error.kind() == redis::ErrorKind::Server(ServerErrorKind::Ask);
        Some(Redirection {
            slot,
            address,
            once,
        })
    }

    /// A script found something in the key that no lock wrote.
    pub(crate) fn is_no_lock(&self) -> bool {
        self.code() == "NOTALOCK"
    }

    /// The keys are on their way from one server of a cluster to another.
    pub(crate) fn is_try_again(&self) -> bool {
        self.code() == "TRYAGAIN"
    }

    /// Another server may be in charge of the key by now.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.error.is_io_error()
            || self.ends_connection()
            || matches!(self.code(), "MOVED" | "CLUSTERDOWN")
    }

    /// The connection broke, perhaps while it was idle: the request over the next one may succeed.
    pub(crate) fn found_broken(&self) -> bool {
        self.sent && self.ends_connection()
    }

    /// No answer in time.
    pub(crate) fn is_timeout(&self) -> bool {
        self.error.is_timeout()
    }

    /// The server, and not the way to it, is the reason: another connection of the same kind fails
    /// the same way.
    pub(crate) fn is_refusal(&self) -> bool {
        !self.error.is_io_error() && self.kind() != ErrorKind::Unavailable
    }

    /// The connection is of no more use: broken, out of step, without valid credentials, or to a
    /// server that became a replica.
    pub(crate) fn ends_connection(&self) -> bool {
        let stale = matches!(
            self.code(),
            "READONLY" | "NOAUTH" | "MASTERDOWN" | "UNBLOCKED"
        );
        stale
            || self.error.is_unrecoverable_error()
            || (self.error.is_io_error() && !self.error.is_timeout())
    }

    /// The server refused the request before anything was written.
    pub(crate) fn had_no_effect(&self) -> bool {
        match self.code() {
            // What a script may call is checked call by call: it may have got further.
            "NOPERM" => !self.detail().contains("script"),
            "NOTALOCK" | "NOTOKENS" => true,
            "READONLY" | "OOM" | "MISCONF" | "NOREPLICAS" | "NOAUTH" | "LOADING" | "BUSY"
            | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" => true,
            _ => !self.sent,
        }
    }

    /// The first word of what the server says.
    fn code(&self) -> &str {
        match self.error.code().unwrap_or_default() {
            "ERR" => self.code_inside_script().unwrap_or("ERR"),
            code => code,
        }
    }

    /// Before version 7 the server wraps an error that ended a script: `ERR Error running script
    /// (call to f_...): ...: -OOM ...`.
    fn code_inside_script(&self) -> Option<&str> {
        let (_, cause) = self
            .detail()
            .strip_prefix("Error running script")?
            .rsplit_once(": -")?;
        cause.split(' ').next()
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        use redis::ErrorKind as Kind;
        match self.error.kind() {
            _ if self.setting => ErrorKind::InvalidConfig,
            _ if self.astray => ErrorKind::Unavailable,
            Kind::AuthenticationFailed => ErrorKind::PermissionDenied,
            Kind::Io => ErrorKind::Unavailable,
            Kind::InvalidClientConfig => ErrorKind::InvalidUrl,
            Kind::RESP3NotSupported
            | Kind::Server(
                ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
            ) => ErrorKind::Unsupported,
            _ => match self.code() {
                "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::PermissionDenied,
                "OOM" | "NOTOKENS" => ErrorKind::Exhausted,
                "ERR" if self.is_refused_to_script() => ErrorKind::PermissionDenied,
                "ERR" if self.detail().contains("max number of clients") => ErrorKind::Exhausted,
                "ERR" if self.detail().contains("DB index") => ErrorKind::InvalidUrl,
                "ERR" if self.detail().contains("No such master") => ErrorKind::InvalidUrl,
                "ERR" if self.detail().contains("cluster support disabled") => {
                    ErrorKind::InvalidUrl
                }
                "ERR" if self.detail().contains("non local key") => ErrorKind::Unavailable,
                "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY"
                | "MISCONF" | "NOREPLICAS" => ErrorKind::Unavailable,
                _ => ErrorKind::Protocol,
            },
        }
    }

    /// An access rule stopped a script at one of its commands. Up to version 7.0 that has no code
    /// of its own.
    fn is_refused_to_script(&self) -> bool {
        let detail = self.detail();
        // Redis 7.0, and later servers.
        detail.contains("user executing the script can't")
            || detail.contains("ACL failure in script")
    }

    /// The TLS library reports what it does not accept as invalid data.
    pub(crate) fn is_handshake(&self) -> bool {
        let shared = self
            .error
            .source()
            .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
        let io = shared.and_then(|source| source.downcast_ref::<io::Error>());
        io.is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
    }

    fn detail(&self) -> &str {
        self.error.detail().unwrap_or_default()
    }

    /// Returns what to do about it.
    fn advice(&self) -> Cow<'static, str> {
        match self.code() {
            "NOTALOCK" => format!(
                "{}, which no lock wrote; use another name or prefix, or remove it yourself",
                self.detail()
            )
            .into(),
            "NOTOKENS" => "the lock's fencing counter has no tokens left below 2^53, or holds no number; remove it once nobody compares its tokens with older ones any more".into(),
            _ => self.usual_advice().into(),
        }
    }

    /// Returns what the server, or the way to it, said.
    pub(crate) fn into_cause(self) -> RedisError {
        self.error
    }

    /// Returns what was tried, and what to do about it.
    pub(crate) fn message(&self) -> String {
        match &self.context {
            Some(context) => format!("{context}: {}", self.advice()),
            None => self.advice().into_owned(),
        }
    }

    fn usual_advice(&self) -> &'static str {
        match (self.kind(), self.code()) {
            (ErrorKind::PermissionDenied, "NOPERM" | "ERR") => {
                "the server's access rules do not allow this user's commands or keys; allow eval, evalsha and those in the cause"
            }
            (ErrorKind::PermissionDenied, _) => {
                "the server refused the user name or password; check them in the URL or in LOCK_REDIS_USERNAME and LOCK_REDIS_PASSWORD"
            }
            (ErrorKind::Exhausted, _) => {
                "the server is out of memory or connections; raise its limits or use fewer"
            }
            (ErrorKind::Unsupported, "MOVED" | "ASK") => {
                "the server is one of a cluster; connect with redis+cluster://"
            }
            (ErrorKind::Unsupported, _) => "the server is too old; use version 6 or later",
            (ErrorKind::InvalidUrl, "ERR") if self.detail().contains("No such master") => {
                "the sentinels do not know the service; the first part of the path is its name"
            }
            (ErrorKind::InvalidUrl, "ERR")
                if self.detail().contains("cluster support disabled") =>
            {
                "the server is not part of a cluster; connect with redis://"
            }
            (ErrorKind::InvalidUrl, _) => {
                "the address, the number of the database or a PEM file cannot be used"
            }
            (ErrorKind::Unavailable, "READONLY") => {
                "the server is a replica and refuses writes; connect to the primary"
            }
            (ErrorKind::Unavailable, "MISCONF") => {
                "the server refuses writes because it cannot save its data"
            }
            (ErrorKind::Unavailable, _) if self.is_handshake() => {
                "the TLS handshake failed; check the ca, cert and key files and the host name"
            }
            (ErrorKind::Unavailable, _) if self.is_timeout() => "the server did not answer in time",
            (ErrorKind::Unavailable, _) => {
                "the connection failed or the server cannot serve requests at the moment"
            }
            _ => {
                "the server answered something that is not expected of a Redis server; check the address, its version and the key's type"
            }
        }
    }
}

/// A server that does not know a command repeats its arguments: of `HELLO` and `AUTH` these are
/// user and password.
fn without_arguments(error: RedisError) -> RedisError {
    match error
        .detail()
        .and_then(|detail| detail.split_once(", with args beginning with"))
    {
        Some((what, _)) => redis::make_extension_error(
            error.code().unwrap_or("ERR").to_owned(),
            Some(what.to_owned()),
        ),
        None => error,
    }
}

impl From<Failure> for LockError {
    fn from(failure: Failure) -> Self {
        let message = failure.message();
        let kind = failure.kind();
        // A refusal says that nothing was done, except from inside a script.
        let in_doubt = matches!(kind, ErrorKind::Unavailable | ErrorKind::Protocol)
            && !failure.had_no_effect();
        let error = Self::new(kind, message)
            .on(BACKEND)
            .caused_by(failure.error);
        if in_doubt {
            error.indeterminate()
        } else {
            error
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("error", &self.error)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
