use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use crate::{
    AcquisitionObserver, AcquisitionStatus, FencingToken, GuardState, LockName, LossReason,
    OwnerId,
    acquisition::Ended,
    backend::{Lease, Moment, Signal, observers::Observers},
    latch::Latch,
};

/// State that a guard and its views share: keeping a view keeps nothing else alive, neither the
/// client nor its session.
pub(crate) struct StoredStatus {
    pub(crate) backend: Cow<'static, str>,
    pub(crate) name: LockName,
    pub(crate) owner: OwnerId,
    /// A holder may raise it.
    pub(crate) token: Option<AtomicU64>,
    pub(crate) lease: Arc<Lease>,
    /// Instant at which it was acquired, or asked for; for reports of how long it was held.
    pub(crate) since: Moment,
    /// Fires when the acquisition ends; made when somebody wants to be told.
    pub(crate) ended: OnceLock<Signal>,
    pub(crate) observers: Observers,
    pub(crate) end: Latch<GuardState>,
}

impl StoredStatus {
    /// Ends the acquisition unless it has ended; returns how it ended.
    pub(crate) fn finish(&self, end: GuardState) -> GuardState {
        match self.end.try_set(end) {
            Ok(()) => self.tell(end),
            Err(first) => return first,
        }
        fence(Ordering::SeqCst);
        if let Some(ended) = self.ended.get() {
            ended.fire();
        }
        self.observers.for_each(|observer| observer.ended(end));
        end
    }

    /// Tells the observers of a renewal, unless the acquisition has ended.
    pub(crate) fn tell_renewed(&self, margin: Duration) {
        if self.end.get().is_none() {
            self.observers.for_each(|observer| observer.renewed(margin));
        }
    }

    /// Ends the acquisition by a release; one that comes after the deadline finds a loss.
    pub(crate) fn end_by_release(&self) -> GuardState {
        match self.state() {
            GuardState::Held => self.finish(GuardState::Released),
            end => end,
        }
    }

    /// Reports the end once for each acquisition, from whichever call finds it.
    fn tell(&self, end: GuardState) {
        let GuardState::Lost(reason) = end else {
            return;
        };
        let backend = &*self.backend;
        let name = &self.name;
        let owner = &self.owner;
        let held_for = self.lease.clock().now().saturating_since(self.since);
        match reason {
            LossReason::Shutdown => {
                tracing::debug!(backend, %name, %owner, ?held_for, %reason, "lock lost");
            }
            _ => tracing::warn!(backend, %name, %owner, ?held_for, %reason, "lock lost"),
        }
    }

    /// Fires at any end, and when the lease ends.
    fn end_signal(&self) -> &Signal {
        let ended = self.ended.get_or_init(|| self.lease.ended().child());
        // Either this sees the end, or the end sees the token: see `finish`.
        fence(Ordering::SeqCst);
        if self.end.get().is_some() {
            ended.fire();
        }
        ended
    }

    /// Says how long the lock stays after a release that failed.
    pub(crate) fn how_long_it_stays(&self) -> String {
        match self.lease.remaining().as_millis() {
            0 => "the lock ends with its TTL".to_owned(),
            left => format!(
                "unless it is removed in the background the lock stays for {}.{:03} s",
                left / 1000,
                left % 1000
            ),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl AcquisitionStatus for StoredStatus {
    fn backend(&self) -> &str {
        &self.backend
    }

    fn name(&self) -> &LockName {
        &self.name
    }

    fn owner(&self) -> &OwnerId {
        &self.owner
    }

    fn token(&self) -> Option<FencingToken> {
        self.token
            .as_ref()
            .map(|token| FencingToken::new(token.load(Ordering::Acquire)))
    }

    fn state(&self) -> GuardState {
        // Reads the clock only if the acquisition has not ended.
        if let Some(end) = self.end.get() {
            return end;
        }
        match self.lease.deadline() {
            Ok(_) => GuardState::Held,
            Err(reason) => self.finish(GuardState::Lost(reason)),
        }
    }

    fn remaining(&self) -> Duration {
        match self.state() {
            GuardState::Held => self.lease.remaining(),
            GuardState::Lost(_) | GuardState::Released => Duration::ZERO,
        }
    }

    fn ended(self: Arc<Self>) -> Ended {
        Box::pin(async move {
            loop {
                let until = match self.state() {
                    GuardState::Held => self
                        .lease
                        .deadline()
                        .unwrap_or(Moment::from_origin(Duration::ZERO)),
                    end => return end,
                };
                tokio::select! {
                    () = self.end_signal().fired() => {}
                    () = self.lease.clock().sleep_until(until) => {}
                }
            }
        })
    }

    fn observe(&self, observer: Weak<dyn AcquisitionObserver>) {
        self.lease.set_observed();
        self.observers.add(observer.clone());
        // Either this sees the end, or the end sees the observer: see `finish`.
        fence(Ordering::SeqCst);
        if let (Some(end), Some(observer)) = (self.end.get(), observer.upgrade()) {
            observer.ended(end);
        }
    }
}

impl fmt::Debug for StoredStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredStatus")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
