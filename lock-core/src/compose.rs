//! Guards built on other guards. None of them needs a task: their answers are read from the guards
//! below.

use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::{
    Acquisition, AcquisitionObserver, AcquisitionStatus, FencingToken, GuardState, LockError,
    LockGuard, LockName, Operation, OwnerId,
    acquisition::{Ended, ensure_held, release, unsupported},
    latch::Latch,
};

impl LockGuard {
    /// The same guard under another name: for a layer that maps names.
    pub fn with_name(self, name: LockName) -> Self {
        Relabelled::guard(self, |status| status.name = Some(name))
    }

    /// The same guard with another token, or none: for a layer that has tokens of its own. It
    /// cannot be [raised](Self::raise_token).
    pub fn with_token(self, token: Option<FencingToken>) -> Self {
        Relabelled::guard(self, |status| status.token = Some(token))
    }

    /// This guard and others as one, which has the name, the owner and the token of this one.
    ///
    /// It is lost as soon as one of them is, with that one's reason, and stays valid for as long as
    /// the one with the least time left. A release begins with the last one, does not wait for one
    /// before it begins with the next, and returns the first failure; a release that failed is
    /// tried again in the background. [`extend`](Self::extend) extends all of them.
    ///
    /// ```
    /// # async fn example(locks: std::sync::Arc<dyn lock_core::DistributedLock>) -> Result<(), lock_core::LockError> {
    /// use lock_core::DistributedLockExt;
    ///
    /// // In one order everywhere, or two callers may wait for each other.
    /// let source = locks.acquire("accounts/17").await?;
    /// let target = locks.acquire("accounts/23").await?;
    /// let both = source.join([target]);
    /// assert!(both.is_held());
    /// both.release().await
    /// # }
    /// ```
    pub fn join(self, others: impl IntoIterator<Item = Self>) -> Self {
        // Collects all of them before the first is taken apart, because the iterator may panic.
        let guards: Vec<_> = [self].into_iter().chain(others).collect();
        let parts: Vec<_> = guards.into_iter().map(Self::into_acquisition).collect();
        let statuses = parts.iter().map(|part| part.view()).collect();
        let status = Arc::new(JoinedStatus {
            parts: statuses,
            end: Latch::new(),
        });
        Self::new(Arc::new(Joined { parts, status }))
    }
}

/// An acquisition with another name or token.
#[derive(Debug)]
struct Relabelled {
    inner: Arc<dyn Acquisition>,
    has_own_token: bool,
    status: Arc<RelabelledStatus>,
}

#[derive(Debug)]
struct RelabelledStatus {
    inner: Arc<dyn AcquisitionStatus>,
    name: Option<LockName>,
    token: Option<Option<FencingToken>>,
}

impl Relabelled {
    fn guard(guard: LockGuard, change: impl FnOnce(&mut RelabelledStatus)) -> LockGuard {
        let inner = guard.into_acquisition();
        let mut status = RelabelledStatus {
            inner: inner.view(),
            name: None,
            token: None,
        };
        change(&mut status);
        LockGuard::new(Arc::new(Self {
            inner,
            has_own_token: status.token.is_some(),
            status: Arc::new(status),
        }))
    }

    /// The error under the name that the caller knows.
    fn relabelled(&self, error: LockError) -> LockError {
        error.renamed(self.inner.status().name(), self.status.name())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Relabelled {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        self.inner
            .release_now()
            .map(|outcome| outcome.map_err(|error| self.relabelled(error)))
    }

    async fn release(&self) -> Result<(), LockError> {
        self.inner
            .release()
            .await
            .map_err(|error| self.relabelled(error))
    }

    fn release_in_background(self: Arc<Self>) {
        Arc::clone(&self.inner).release_in_background();
    }

    async fn extend(&self) -> Result<(), LockError> {
        self.inner
            .extend()
            .await
            .map_err(|error| self.relabelled(error))
    }

    async fn raise_token(&self, at_least: FencingToken) -> Result<FencingToken, LockError> {
        if self.has_own_token {
            let error = unsupported(
                &*self.status,
                "this token was made by a layer and cannot be raised",
            );
            return Err(error.during(Operation::RaiseToken));
        }
        self.inner
            .raise_token(at_least)
            .await
            .map_err(|error| self.relabelled(error))
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for RelabelledStatus {
    fn backend(&self) -> &str {
        self.inner.backend()
    }

    fn name(&self) -> &LockName {
        self.name.as_ref().unwrap_or_else(|| self.inner.name())
    }

    fn owner(&self) -> &OwnerId {
        self.inner.owner()
    }

    fn token(&self) -> Option<FencingToken> {
        self.token.unwrap_or_else(|| self.inner.token())
    }

    fn state(&self) -> GuardState {
        self.inner.state()
    }

    fn remaining(&self) -> Duration {
        self.inner.remaining()
    }

    fn ended(self: Arc<Self>) -> Ended {
        Arc::clone(&self.inner).ended()
    }

    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        self.inner.observe(observer);
    }
}

/// Several acquisitions as one.
#[derive(Debug)]
struct Joined {
    parts: Vec<Arc<dyn Acquisition>>,
    status: Arc<JoinedStatus>,
}

/// Never empty.
#[derive(Debug)]
struct JoinedStatus {
    parts: Vec<Arc<dyn AcquisitionStatus>>,
    /// First end that was seen: another part may be lost later, too.
    end: Latch<GuardState>,
}

impl Joined {
    fn begin(&self) -> Result<(), LockError> {
        if self.status.state() == GuardState::Held {
            self.status.end.set(GuardState::Released);
        }
        match self.status.state() {
            GuardState::Released => Ok(()),
            GuardState::Held | GuardState::Lost(_) => ensure_held(&*self.status),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Acquisition for Joined {
    fn status(&self) -> &dyn AcquisitionStatus {
        &*self.status
    }

    fn view(&self) -> Arc<dyn AcquisitionStatus> {
        Arc::clone(&self.status) as _
    }

    fn release_now(&self) -> Option<Result<(), LockError>> {
        // Leaves the parts to `release`: after a loss they must still be released.
        let _ = self.begin();
        None
    }

    async fn release(&self) -> Result<(), LockError> {
        let begun = self.begin();
        // Concurrently: a store that does not answer does not hold up the others.
        let outcomes = join_all(self.parts.iter().rev().map(|part| release(&**part))).await;
        outcomes.into_iter().fold(begun, Result::and)
    }

    fn release_in_background(self: Arc<Self>) {
        let _ = self.begin();
        for part in self.parts.iter().rev() {
            Arc::clone(part).release_in_background();
        }
    }

    async fn extend(&self) -> Result<(), LockError> {
        let outcomes = join_all(self.parts.iter().map(|part| part.extend())).await;
        outcomes.into_iter().fold(Ok(()), Result::and)?;
        ensure_held(&*self.status).map_err(|lost| lost.during(Operation::Renew))
    }

    async fn raise_token(&self, _: FencingToken) -> Result<FencingToken, LockError> {
        let error = unsupported(
            &*self.status,
            "several guards have no common token; raise it before they are joined",
        );
        Err(error.during(Operation::RaiseToken))
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for JoinedStatus {
    fn backend(&self) -> &str {
        self.parts[0].backend()
    }

    fn name(&self) -> &LockName {
        self.parts[0].name()
    }

    fn owner(&self) -> &OwnerId {
        self.parts[0].owner()
    }

    fn token(&self) -> Option<FencingToken> {
        self.parts[0].token()
    }

    fn state(&self) -> GuardState {
        self.end.get().unwrap_or_else(|| {
            let first = self
                .parts
                .iter()
                .map(|part| part.state())
                .find(|state| *state != GuardState::Held);
            first.map_or(GuardState::Held, |first| self.end.set(first))
        })
    }

    fn remaining(&self) -> Duration {
        match self.state() {
            GuardState::Held => self
                .parts
                .iter()
                .map(|part| part.remaining())
                .min()
                .unwrap_or_default(),
            GuardState::Lost(_) | GuardState::Released => Duration::ZERO,
        }
    }

    fn ended(self: Arc<Self>) -> Ended {
        let mut ends: Vec<_> = self
            .parts
            .iter()
            .map(|part| Arc::clone(part).ended())
            .collect();
        Box::pin(async move {
            let mut any =
                |cx: &mut Context<'_>| ends.iter_mut().any(|end| end.as_mut().poll(cx).is_ready());
            poll_fn(|cx| {
                if any(cx) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            self.state()
        })
    }

    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        for part in &self.parts {
            part.observe(observer.clone());
        }
    }
}

#[cfg(test)]
mod tests;
