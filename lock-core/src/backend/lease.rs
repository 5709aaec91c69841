use std::{
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use crate::{
    AcquisitionStatus as _, LossReason,
    backend::{Clock, GuardSet, Moment, Signal, stored_acquisition::StoredAcquisition},
    sync::locked,
};

/// Validity of one or more guards: a deadline that renewals push out, and that is final once it has
/// passed.
///
/// Reading the deadline late is as good as reading it in time: the first look after it latches the
/// loss, so that a renewal whose reply arrives later cannot revive a guard that may have been seen
/// lost.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// Nanoseconds since the clock's origin, or the code of a [`LossReason`]: one word, so that a
    /// loss and an extension cannot both win.
    state: AtomicU64,
    /// Number of renewals that were acknowledged.
    renewals: AtomicU64,
    /// No renewal goes beyond this.
    cap: Option<Moment>,
    /// Made when somebody wants to be told, which is rare where locks are held briefly.
    ended: OnceLock<Signal>,
    guards: Mutex<Guards>,
    /// An observer of one of the guards wants to hear of renewals.
    observed: AtomicBool,
}

/// Guards that must hear of an end that nobody looks at.
#[derive(Clone, Debug)]
enum Guards {
    None,
    One(Weak<StoredAcquisition>),
    /// Those of this client.
    Many(Weak<GuardSet>),
}

const REASONS: [LossReason; 4] = [
    LossReason::Expired,
    LossReason::Removed,
    LossReason::MaxHold,
    LossReason::Shutdown,
];

impl Lease {
    /// A lease that is valid until `deadline`, and never beyond `cap`, however often it is
    /// extended.
    #[must_use]
    pub fn new(clock: Clock, deadline: Moment, cap: Option<Moment>) -> Arc<Self> {
        let deadline = cap.map_or(deadline, |cap| deadline.min(cap));
        Arc::new(Self {
            clock,
            state: AtomicU64::new(encode(deadline)),
            renewals: AtomicU64::new(0),
            cap,
            ended: OnceLock::new(),
            guards: Mutex::new(Guards::None),
            observed: AtomicBool::new(false),
        })
    }

    /// The clock that the deadline is on.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Instant that no renewal goes beyond.
    pub(crate) fn cap(&self) -> Option<Moment> {
        self.cap
    }

    /// The instant after which the lease must be assumed gone, or why it is gone.
    ///
    /// # Errors
    ///
    /// The reason of the loss.
    pub fn deadline(&self) -> Result<Moment, LossReason> {
        loop {
            let word = self.state.load(Ordering::Acquire);
            let deadline = decode(word)?;
            let now = self.clock.now();
            if now < deadline {
                return Ok(deadline);
            }
            let reason = if self.cap.is_some_and(|cap| now >= cap) {
                LossReason::MaxHold
            } else {
                LossReason::Expired
            };
            self.end(word, reason);
        }
    }

    /// Time until the deadline; zero once the lease has ended.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline().map_or(Duration::ZERO, |deadline| {
            deadline.saturating_since(self.clock.now())
        })
    }

    /// Pushes the deadline out after a renewal was acknowledged; never pulls it in.
    ///
    /// # Errors
    ///
    /// The reason if the lease had ended: the caller must not act as if it still held.
    pub fn extend(&self, deadline: Moment) -> Result<Moment, LossReason> {
        let target = self.cap.map_or(deadline, |cap| deadline.min(cap));
        self.renewals.fetch_add(1, Ordering::Relaxed);
        loop {
            let current = self.deadline()?;
            if target <= current {
                return Ok(current);
            }
            if self
                .state
                .compare_exchange(
                    encode(current),
                    encode(target),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .is_ok()
            {
                return Ok(target);
            }
        }
    }

    /// Number of times that it was [extended](Self::extend), even if by nothing.
    pub(crate) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Relaxed)
    }

    /// Ends the lease for good, with all its guards. The first reason stays.
    pub fn lose(&self, reason: LossReason) {
        loop {
            let word = self.state.load(Ordering::Acquire);
            if decode(word).is_err() || self.end(word, reason) {
                return;
            }
        }
    }

    /// Fires when the lease has been found ended; not by itself when the deadline passes
    /// unobserved.
    #[must_use]
    pub fn ended(&self) -> &Signal {
        let ended = self.ended.get_or_init(Signal::new);
        // Either this sees the end, or the end sees the token: see `end`.
        fence(Ordering::SeqCst);
        if decode(self.state.load(Ordering::Acquire)).is_err() {
            ended.fire();
        }
        ended
    }

    /// Adds a guard that relies on this lease.
    pub(super) fn attach(&self, guard: &Arc<StoredAcquisition>) {
        let mut guards = locked(&self.guards);
        match *guards {
            Guards::None => *guards = Guards::One(Arc::downgrade(guard)),
            Guards::One(_) => *guards = Guards::Many(Arc::downgrade(&guard.registered.guards)),
            Guards::Many(_) => {}
        }
    }

    /// Makes every guard find that the lease has ended. Must not be called while holding a lock
    /// that the drop of a guard takes.
    pub(super) fn tell(self: &Arc<Self>) {
        self.for_each_guard(&|guard| {
            guard.status.state();
        });
    }

    /// Asks for calls of [`tell_renewed`](Self::tell_renewed).
    pub(super) fn set_observed(&self) {
        self.observed.store(true, Ordering::Relaxed);
    }

    /// True if a guard's observer wants to hear of renewals.
    pub(super) fn is_observed(&self) -> bool {
        self.observed.load(Ordering::Relaxed)
    }

    /// Tells the observers of its guards of a renewal; to be called as [`tell`](Self::tell) is.
    pub(super) fn tell_renewed(self: &Arc<Self>, margin: Duration) {
        self.for_each_guard(&|guard| guard.status.tell_renewed(margin));
    }

    fn for_each_guard(self: &Arc<Self>, act: &dyn Fn(&StoredAcquisition)) {
        // A guard that is dropped here takes locks of its own.
        let guards = locked(&self.guards).clone();
        match guards {
            Guards::None => {}
            Guards::One(guard) => guard.upgrade().iter().for_each(|guard| act(guard)),
            Guards::Many(client) => client
                .upgrade()
                .iter()
                .for_each(|client| client.for_each_of(self, act)),
        }
    }

    fn end(&self, word: u64, reason: LossReason) -> bool {
        let code = REASONS
            .iter()
            .position(|r| *r == reason)
            .unwrap_or_default() as u64;
        let ended = self
            .state
            .compare_exchange(word, code, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if ended {
            fence(Ordering::SeqCst);
            if let Some(signal) = self.ended.get() {
                signal.fire();
            }
        }
        ended
    }
}

fn encode(moment: Moment) -> u64 {
    // The lowest numbers are codes of reasons.
    moment.nanos().max(REASONS.len() as u64)
}

fn decode(word: u64) -> Result<Moment, LossReason> {
    match REASONS.get(usize::try_from(word).unwrap_or(usize::MAX)) {
        Some(reason) => Err(*reason),
        None => Ok(Moment::from_nanos(word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn lease(cap: Option<Duration>) -> (Arc<Lease>, Moment) {
        let now = Clock::Tokio.now();
        (
            Lease::new(Clock::Tokio, now + TTL, cap.map(|cap| now + cap)),
            now,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn is_over_at_the_deadline_without_any_event() {
        let (lease, start) = lease(None);
        tokio::time::advance(TTL - Duration::from_nanos(1)).await;
        assert_eq!(lease.deadline(), Ok(start + TTL));
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert!(!lease.ended().has_fired());
        assert_eq!(lease.deadline(), Err(LossReason::Expired));
        assert!(lease.ended().has_fired());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_renewal_revives_nothing() {
        let (lease, start) = lease(None);
        tokio::time::advance(TTL).await;
        assert_eq!(lease.extend(start + TTL * 2), Err(LossReason::Expired));
        assert_eq!(lease.deadline(), Err(LossReason::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn extension_never_shortens_and_respects_the_cap() {
        let (lease, start) = lease(Some(TTL * 2));
        assert_eq!(lease.extend(start + TTL / 2), Ok(start + TTL));
        assert_eq!(lease.extend(start + TTL * 5), Ok(start + TTL * 2));
        tokio::time::advance(TTL * 2).await;
        assert_eq!(lease.deadline(), Err(LossReason::MaxHold));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_reason_stays() {
        let (lease, _) = lease(None);
        lease.lose(LossReason::Removed);
        lease.lose(LossReason::Shutdown);
        tokio::time::advance(TTL).await;
        assert_eq!(lease.deadline(), Err(LossReason::Removed));
    }
}
