//! Words of the attributes and labels.

use lock_core::{ErrorKind, LockError, LockGuard, LossReason, Mode};

pub(crate) const GRANTED: &str = "granted";
pub(crate) const BUSY: &str = "busy";
pub(crate) const CANCELLED: &str = "cancelled";
pub(crate) const RELEASED: &str = "released";
pub(crate) const LOST: &str = "lost";

/// Outcome of an acquire or a try-acquire.
pub(crate) fn outcome<G: AsGuard>(result: &Result<G, LockError>) -> &'static str {
    match result {
        Ok(granted) if granted.as_guard().is_some() => GRANTED,
        Ok(_) => BUSY,
        Err(error) => kind(error.kind()),
    }
}

pub(crate) fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidName => "invalid_name",
        ErrorKind::InvalidOptions => "invalid_options",
        ErrorKind::InvalidUrl => "invalid_url",
        ErrorKind::InvalidConfig => "invalid_config",
        ErrorKind::UnknownScheme => "unknown_scheme",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::TimedOut => "timed_out",
        ErrorKind::Lost => LOST,
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::PermissionDenied => "permission_denied",
        ErrorKind::Exhausted => "exhausted",
        ErrorKind::Shutdown => "shutdown",
        ErrorKind::Protocol => "protocol",
        _ => "other",
    }
}

pub(crate) fn reason(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Expired => "expired",
        LossReason::Removed => "removed",
        LossReason::MaxHold => "max_hold",
        LossReason::Shutdown => "shutdown",
        _ => "other",
    }
}

pub(crate) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        _ => "other",
    }
}

/// Result of an acquire, which has a guard, or of a try-acquire, which may have one.
pub(crate) trait AsGuard: Sized + Send {
    fn as_guard(&self) -> Option<&LockGuard>;
    fn map_guard(self, map: impl FnOnce(LockGuard) -> LockGuard) -> Self;
}

impl AsGuard for LockGuard {
    fn as_guard(&self) -> Option<&LockGuard> {
        Some(self)
    }

    fn map_guard(self, map: impl FnOnce(LockGuard) -> LockGuard) -> Self {
        map(self)
    }
}

impl AsGuard for Option<LockGuard> {
    fn as_guard(&self) -> Option<&LockGuard> {
        self.as_ref()
    }

    fn map_guard(self, map: impl FnOnce(LockGuard) -> LockGuard) -> Self {
        self.map(map)
    }
}
