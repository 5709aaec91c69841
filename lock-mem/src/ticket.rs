use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use lock_core::{
    ErrorKind, FencingToken, LockError, LockName, LossReason, OwnerId,
    backend::{Clock, Entry, Lease, Moment, Patience, RenewOutcome, Renewer, locked},
};
use tokio::sync::Notify;

use crate::{
    MemStore,
    queue::{Number, Place},
    store::Key,
};

/// One acquisition from its request to its release: what the store keeps, and what its guard releases.
pub(crate) struct Ticket {
    pub(crate) store: MemStore,
    pub(crate) key: Key,
    pub(crate) ttl: Duration,
    pub(crate) metadata: Option<String>,
    pub(crate) wake: Notify,
    /// Zero until the store has seen the request.
    number: AtomicU64,
    link: Mutex<Link>,
}

/// A loss and the guard may come in either order.
enum Link {
    Unbound,
    Bound(Arc<Lease>),
    Lost(LossReason),
}

impl Ticket {
    pub(crate) fn new(store: MemStore, name: &LockName, ttl: Duration, metadata: Option<String>) -> Arc<Self> {
        let (key, number, link) = (store.key(name), AtomicU64::new(0), Mutex::new(Link::Unbound));
        Arc::new(Self { store, key, ttl, metadata, wake: Notify::new(), number, link })
    }

    pub(crate) fn number(&self) -> Number {
        self.number.load(Ordering::Acquire)
    }

    pub(crate) fn token(&self) -> FencingToken {
        FencingToken::new(self.number())
    }

    /// Starts over in the order of arrival.
    pub(crate) fn enter(&self, number: Number) {
        if self.number() == 0 {
            self.number.store(number, Ordering::Release);
            return;
        }
        // Both at once, for the loss of what it was granted under its last number may still be on its way.
        let mut link = locked(&self.link);
        *link = Link::Unbound;
        self.number.store(number, Ordering::Release);
    }

    /// Has the store's losses reach the guard.
    pub(crate) fn bind(&self, lease: &Arc<Lease>) {
        let mut link = locked(&self.link);
        match *link {
            Link::Lost(reason) => lease.lose(reason),
            Link::Unbound | Link::Bound(_) => *link = Link::Bound(Arc::clone(lease)),
        }
    }

    /// The store took away what it had granted under this number.
    pub(crate) fn lose(&self, number: Number, reason: LossReason) {
        let mut link = locked(&self.link);
        if self.number() != number {
            return;
        }
        if let Link::Bound(lease) = std::mem::replace(&mut *link, Link::Lost(reason)) {
            drop(link);
            lease.lose(reason);
        }
    }
}

/// The id of an acquisition, unique in its store: its number as 16 hexadecimal digits.
pub(crate) fn owner(number: Number) -> OwnerId {
    // By hand: this is on the path of every acquisition, and `format!` takes longer than the lock.
    let digits: [u8; 16] = std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15]);
    OwnerId::new(str::from_utf8(&digits).unwrap_or_default())
}

#[async_trait]
impl Entry for Ticket {
    async fn release(&self) -> Result<bool, LockError> {
        let request = self.store.ask(&self.key, |queue, now, wake| queue.leave(now, self.number(), wake));
        tokio::select! {
            biased;
            outcome = request => outcome.map(|(_, held)| held),
            () = tokio::time::sleep(self.ttl) => {
                Err(LockError::new(ErrorKind::Unavailable, "no answer within the TTL").indeterminate())
            }
        }
    }

    fn release_now(&self) -> Option<bool> {
        self.store.ask_now(&self.key, |queue, now, wake| queue.leave(now, self.number(), wake)).map(|(_, held)| held)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("name", &self.key.name).field("number", &self.number()).finish_non_exhaustive()
    }
}

/// A request that has not become a guard yet: dropped, it gives up its place, or what it was granted.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    ticket: &'a Arc<Ticket>,
    granted: bool,
}

impl<'a> Pending<'a> {
    pub(crate) fn new(ticket: &'a Arc<Ticket>) -> Self {
        Self { ticket, granted: false }
    }

    /// The request was granted, and is its guard's from now on.
    pub(crate) fn granted(mut self) {
        self.granted = true;
    }

    /// Asks where the request stands, making it if the store does not know it; `None` if the store does not answer at once.
    pub(crate) fn ask_now(&self, wait: bool) -> Option<(Moment, Place)> {
        let Ticket { store, key, .. } = &**self.ticket;
        store.ask_now(key, |queue, now, wake| store.place(self.ticket, queue, now, wait, wake))
    }

    /// As [`ask_now`](Self::ask_now), waiting for the answer.
    pub(crate) async fn ask(&self, wait: bool) -> Result<(Moment, Place), LockError> {
        let Ticket { store, key, .. } = &**self.ticket;
        store.ask(key, |queue, now, wake| store.place(self.ticket, queue, now, wait, wake)).await
    }

    /// Waits until the request holds; its TTL counts from the returned instant.
    pub(crate) async fn wait(&self, patience: &Patience) -> Result<Moment, LockError> {
        let in_vain = OnDrop(|| self.name_holder(patience));
        loop {
            patience.asked();
            let answer = self.ask(true).await;
            if answer.is_ok() {
                patience.answered();
            }
            match answer {
                Ok((sent, Place::Holding)) => {
                    std::mem::forget(in_vain);
                    return Ok(sent);
                }
                Ok((_, Place::Waiting { look })) => self.until_woken(look).await,
                Ok((_, Place::None)) => {}
                Err(failure) => {
                    patience.failed(failure)?;
                    tokio::time::sleep(TROUBLE_PAUSE).await;
                }
            }
        }
    }

    /// For the error, if the wait ends in vain.
    fn name_holder(&self, patience: &Patience) {
        let Ticket { store, key, .. } = &**self.ticket;
        store.with(key, |queue, now, wake| {
            if let Some(holder) = queue.holder(now, wake).filter(|holder| holder.number != self.ticket.number()) {
                patience.held_by(&owner(holder.number), holder.ticket.metadata.as_deref());
            }
        });
    }

    async fn until_woken(&self, look: Moment) {
        tokio::select! {
            () = self.ticket.wake.notified() => {}
            () = Clock::Tokio.sleep_until(look) => {}
        }
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Before a request that failed is made again.
const TROUBLE_PAUSE: Duration = Duration::from_millis(50);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // Past any fault: a request that its client has given up is as if it had not been made.
        if !self.granted && self.ticket.number() != 0 {
            self.ticket.store.with(&self.ticket.key, |queue, now, wake| queue.leave(now, self.ticket.number(), wake));
        }
    }
}

/// Renews in the store that each ticket belongs to.
#[derive(Debug)]
pub(crate) struct MemRenewer(pub(crate) MemStore);

#[async_trait]
impl Renewer for MemRenewer {
    type Item = Ticket;

    async fn renew(&self, batch: &[Arc<Ticket>]) -> Vec<RenewOutcome> {
        // Together, as over a pipeline: replies that are late are late once.
        join_all(batch.iter().map(|ticket| self.renew_one(ticket))).await
    }
}

impl MemRenewer {
    async fn renew_one(&self, ticket: &Ticket) -> RenewOutcome {
        let renewed = self.0.ask(&ticket.key, |queue, now, wake| queue.renew(now, ticket.number(), ticket.ttl, wake));
        match renewed.await {
            Ok((_, true)) => RenewOutcome::Renewed(ticket.ttl),
            Ok((_, false)) => RenewOutcome::NotHeld,
            Err(error) => RenewOutcome::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_its_number() {
        for number in [1, 0x1234_5678_9abc_def0, u64::MAX] {
            assert_eq!(owner(number).as_str(), format!("{number:016x}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_before_the_guard_is_made_reaches_it() {
        let ticket = Ticket::new(MemStore::new(), &"n".parse().unwrap(), Duration::from_secs(30), None);
        let lease = Lease::new(Clock::Tokio, Clock::Tokio.now() + ticket.ttl, None);
        ticket.lose(ticket.number(), LossReason::Removed);
        ticket.bind(&lease);
        assert_eq!(lease.deadline(), Err(LossReason::Removed));
    }
}
