use std::{fmt, future::Future, pin::Pin, time::Duration};

use lock_core::{Capabilities, LockError, TokenDurability};

use crate::context::Ctx;

/// One case of the suite: a named statement about a guarantee, and the check of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// The guarantee that it belongs to.
    pub group: &'static str,
    /// The statement that the case checks.
    pub name: &'static str,
    /// Requirements of the case; without one of them it is skipped with the reason.
    pub needs: &'static [Need],
    pub(crate) run: fn(Ctx) -> Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl Case {
    /// `group::name`, as the runner prints it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }

    /// The reason why the case does not apply to a backend with these capabilities; `None` if it
    /// does.
    #[must_use]
    pub fn inapplicable_to(&self, capabilities: &Capabilities) -> Option<String> {
        self.needs
            .iter()
            .find_map(|need| need.unmet_by(capabilities))
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.full_name())
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// A requirement of a case: a capability that the backend declares, one that it lacks, or an
/// ability of the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Need {
    /// [`Capabilities::fifo`].
    Fifo,
    /// [`Capabilities::fencing`] of any durability.
    Fencing,
    /// [`Capabilities::fencing`] that survives a restart of the store.
    DurableTokens,
    /// [`Capabilities::push_wake_up`].
    PushWakeUp,
    /// [`Capabilities::inspect`].
    Inspect,
    /// [`Capabilities::queue_length`].
    QueueLength,
    /// [`Capabilities::force_release`].
    ForceRelease,
    /// [`Capabilities::metadata`].
    Metadata,
    /// No [`Capabilities::fencing`].
    NoFencing,
    /// No [`Capabilities::inspect`].
    NoInspect,
    /// No [`Capabilities::queue_length`].
    NoQueueLength,
    /// No [`Capabilities::force_release`].
    NoForceRelease,
    /// [`Capabilities::watch`].
    Watch,
    /// No [`Capabilities::watch`].
    NoWatch,
    /// [`Capabilities::list`].
    List,
    /// No [`Capabilities::list`].
    NoList,
    /// [`Capabilities::raise_token`].
    RaiseToken,
    /// No [`Capabilities::raise_token`].
    NoRaiseToken,
    /// No [`Capabilities::metadata`].
    NoMetadata,
    /// No [`Capabilities::shared_mode`].
    NoSharedMode,
    /// [`Harness::isolated`](crate::Harness::isolated).
    Isolated,
    /// [`Harness::freeze`](crate::Harness::freeze), on an isolated store.
    Freeze,
    /// [`Harness::restart`](crate::Harness::restart), on an isolated store.
    Restart,
    /// [`Harness::stop`](crate::Harness::stop), on an isolated store.
    Stop,
    /// A store whose servers do not take over from each other, so that nobody waits for one longer
    /// than a TTL.
    NoFailover,
    /// [`Harness::delay_replies`](crate::Harness::delay_replies), on an isolated store.
    DelayReplies,
    /// [`Harness::remove_entry`](crate::Harness::remove_entry).
    RemoveEntry,
    /// [`Harness::evict_waiters`](crate::Harness::evict_waiters).
    EvictWaiters,
    /// [`Harness::entries`](crate::Harness::entries).
    Entries,
    /// [`Harness::client_residue`](crate::Harness::client_residue), on an isolated store.
    Residue,
    /// [`Harness::child_address`](crate::Harness::child_address).
    OtherProcess,
    /// [`Harness::addresses`](crate::Harness::addresses) and
    /// [`Harness::connect_at`](crate::Harness::connect_at).
    Proxy,
}

impl Need {
    fn unmet_by(self, store: &Capabilities) -> Option<String> {
        let (met, what) = match self {
            Self::Fifo => (store.fifo, "does not declare FIFO order"),
            Self::Fencing => (store.fencing.is_some(), "declares no fencing tokens"),
            Self::DurableTokens => (
                store.fencing >= Some(TokenDurability::StoreData),
                "declares no tokens that survive a restart",
            ),
            Self::PushWakeUp => (store.push_wake_up, "does not declare push wake-ups"),
            Self::Inspect => (store.inspect, "cannot inspect"),
            Self::QueueLength => (
                store.inspect && store.queue_length,
                "does not tell the queue length",
            ),
            Self::ForceRelease => (store.force_release, "cannot force a release"),
            Self::Metadata => (store.metadata, "keeps no metadata"),
            Self::NoFencing => (store.fencing.is_none(), "has fencing tokens"),
            Self::NoInspect => (!store.inspect, "can inspect"),
            Self::NoQueueLength => (
                !store.queue_length && store.inspect,
                "tells the queue length, or cannot inspect at all",
            ),
            Self::NoForceRelease => (!store.force_release, "can force a release"),
            Self::Watch => (store.watch, "cannot watch"),
            Self::NoWatch => (!store.watch, "can watch"),
            Self::List => (store.list, "cannot list"),
            Self::NoList => (!store.list, "can list"),
            Self::RaiseToken => (store.raise_token, "cannot raise a token"),
            Self::NoRaiseToken => (!store.raise_token, "can raise a token"),
            Self::NoMetadata => (!store.metadata, "keeps metadata"),
            Self::NoSharedMode => (!store.shared_mode, "has shared mode"),
            _ => return None,
        };
        (!met).then(|| format!("{} {what}", store.backend))
    }

    /// Says which ability the harness lacks, and how to add it.
    pub(crate) fn missing(self) -> String {
        let hook = match self {
            Self::Isolated => "Harness::isolated`, or write the port into the URL of `backend",
            Self::Freeze => "Harness::freeze` and `thaw",
            Self::Restart => "Harness::restart` or `Server::start",
            Self::Stop => "Harness::stop` or `Server::stop",
            Self::DelayReplies => "Harness::delay_replies",
            Self::RemoveEntry => "Operator::remove` or `Harness::remove_entry",
            Self::EvictWaiters => "Operator::evict_waiters` or `Harness::evict_waiters",
            Self::Entries => "Operator::entries` or `Harness::entries",
            Self::Residue => "Harness::client_residue",
            Self::OtherProcess => "Harness::child_address",
            Self::Proxy => "Harness::addresses` and `connect_at",
            _ => return format!("the harness lacks the ability {self:?}"),
        };
        format!("implement `{hook}`")
    }

    /// True if its absence says something about the store and not about the harness.
    pub(crate) fn is_of_the_store(self) -> bool {
        self == Self::NoFailover
    }
}

/// Reason why a case ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The guarantee does not hold.
    Fail(String),
    /// The harness lacks what it takes to check it, and why.
    Lacks(Need, String),
    /// It says nothing about this store, and why.
    NotApplicable(String),
    /// There is no store to check it on, and why.
    NotRun(String),
}

/// Result of a case.
pub(crate) type Outcome = Result<(), Stop>;

impl Stop {
    /// The harness lacks this ability.
    pub(crate) fn lacks(need: Need) -> Self {
        Self::Lacks(need, need.missing())
    }
}

impl From<LockError> for Stop {
    fn from(error: LockError) -> Self {
        Self::Fail(format!("unexpected error: {error} ({error:?})"))
    }
}

/// Verdict on a case that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The guarantee holds.
    Passed,
    /// It does not apply to what the backend declares, or to a store of this kind; says why.
    NotApplicable(String),
    /// It could not be checked, because the harness lacks this; says why, or how to add it.
    Lacking(Need, String),
    /// There was no store to check it on; says why.
    NotRun(String),
}

/// A guarantee does not hold: says which and what was seen instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub(crate) String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// More than any request should take, even on a store that does not answer.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);

/// Upper bound for "promptly": generous for a loaded machine, and far below the default TTL.
pub(crate) const PROMPT: Duration = Duration::from_secs(6);

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::case::Stop::Fail(format!($($message)+)));
        }
    };
}

/// Fails the case with a message.
macro_rules! fail {
    ($($message:tt)+) => {
        return Err($crate::case::Stop::Fail(format!($($message)+)))
    };
}

/// The table of a group: `cases!("group"; name [needs, ...]; ...)`.
macro_rules! cases {
    ($group:literal; $($name:ident [$($need:ident),*];)+) => {
        pub(super) const CASES: &[$crate::Case] = &[$($crate::Case {
            group: $group,
            name: stringify!($name),
            needs: &[$($crate::Need::$need),*],
            run: |ctx| Box::pin($name(ctx)),
        }),+];
    };
}

pub(crate) use {cases, ensure, fail};
