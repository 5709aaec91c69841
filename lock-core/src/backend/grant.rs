use std::{
    fmt::Debug,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use crate::{
    ErrorKind, FencingToken, LockError, LockName, OwnerId,
    backend::{Lease, RenewalHandle},
};

/// One acquisition's own entry in the store: the part of a guard that a backend implements.
#[async_trait]
pub trait Entry: Debug + Send + Sync + 'static {
    /// Removes this acquisition's entry, and no other; `false` if it was not there any more.
    ///
    /// Called again after an error, until the answer is definite or the lease has ended.
    ///
    /// # Errors
    ///
    /// Those of the store; marked [indeterminate](LockError::is_indeterminate) if the entry may
    /// have been removed.
    async fn release(&self) -> Result<bool, LockError>;

    /// Does the same without I/O and without a runtime, if the backend can.
    fn release_now(&self) -> Option<bool> {
        None
    }

    /// Raises the store's token for this name to at least this number, if the entry is there, and
    /// returns the resulting token.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] unless it is overridden; [`ErrorKind::Lost`] if the entry is not
    /// there; those of the store.
    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        let _ = at_least;
        Err(LockError::new(
            ErrorKind::Unsupported,
            "tokens are the store's own and cannot be raised",
        ))
    }
}

/// Grant that a backend got from its store, to be made into a guard.
#[derive(Debug)]
#[must_use = "it is not released"]
pub struct Grant {
    pub(super) name: LockName,
    pub(super) owner: OwnerId,
    pub(super) token: Option<FencingToken>,
    pub(super) lease: Arc<Lease>,
    pub(super) renewal: Option<RenewalHandle>,
    pub(super) shared_renewal: Option<Weak<RenewalHandle>>,
    pub(super) entry: Arc<dyn Entry>,
}

impl Grant {
    /// Takes the name that was acquired, the acquisition's unique id, the lease that keeps it
    /// valid, and the entry that releases it.
    pub fn new(name: LockName, owner: OwnerId, lease: Arc<Lease>, entry: Arc<dyn Entry>) -> Self {
        Self {
            name,
            owner,
            token: None,
            lease,
            renewal: None,
            shared_renewal: None,
            entry,
        }
    }

    /// Sets its token.
    pub fn with_token(mut self, token: FencingToken) -> Self {
        self.token = Some(token);
        self
    }

    /// Sets the renewal of its lease, if the lease is its own; ended before the release.
    pub fn with_renewal(mut self, renewal: RenewalHandle) -> Self {
        self.renewal = Some(renewal);
        self
    }

    /// Sets the renewal of its lease, if other guards share that; it goes on after the release, and
    /// the guard does not keep it going.
    pub fn with_shared_renewal(mut self, renewal: Weak<RenewalHandle>) -> Self {
        self.shared_renewal = Some(renewal);
        self
    }
}
