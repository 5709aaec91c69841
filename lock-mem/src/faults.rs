use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_core::{ErrorKind, LockError, backend::locked};
use tokio::sync::watch;

/// Faults between a store and its clients: none, or those that a test asked for.
#[derive(Debug)]
pub(crate) struct Faults {
    /// True if any fault is set, for the fast path.
    active: AtomicBool,
    frozen: watch::Sender<bool>,
    rest: Mutex<Rest>,
}

#[derive(Debug)]
struct Rest {
    /// Number of requests that fail, and the kind of their error.
    failures: (u32, ErrorKind),
    /// Delay of every reply.
    delay: Duration,
}

/// Time that a client waits for the answer to a request that has no bound of its own.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Faults {
    pub(crate) fn new() -> Self {
        Self {
            active: AtomicBool::new(false),
            frozen: watch::Sender::new(false),
            rest: Mutex::new(Rest {
                failures: (0, ErrorKind::Unavailable),
                delay: Duration::ZERO,
            }),
        }
    }

    pub(crate) fn none(&self) -> bool {
        !self.active.load(Ordering::Acquire)
    }

    pub(crate) fn frozen(&self) -> bool {
        !self.none() && *self.frozen.borrow()
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.change(|_| {
            self.frozen.send_replace(frozen);
        });
    }

    pub(crate) fn set_failures(&self, requests: u32, kind: ErrorKind) {
        self.change(|rest| rest.failures = (requests, kind));
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.change(|rest| rest.delay = delay);
    }

    /// Lets a request pass: at once, after a thaw, or not.
    pub(crate) async fn pass(&self) -> Result<(), LockError> {
        if self.none() {
            return Ok(());
        }
        // The sender lives as long as `self`.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        self.change(
            |Rest {
                 failures: (left, kind),
                 ..
             }| match left.checked_sub(1) {
                None => Ok(()),
                Some(rest) => {
                    *left = rest;
                    Err(LockError::new(*kind, "failed on request of the test"))
                }
            },
        )
    }

    /// Lets a reply pass, late if that was asked for.
    pub(crate) async fn reply(&self) {
        if !self.none() {
            let delay = self.change(|rest| rest.delay);
            tokio::time::sleep(delay).await;
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Rest) -> R) -> R {
        let mut rest = locked(&self.rest);
        let outcome = change(&mut rest);
        let active = *self.frozen.borrow() || rest.failures.0 > 0 || !rest.delay.is_zero();
        self.active.store(active, Ordering::Release);
        outcome
    }
}
