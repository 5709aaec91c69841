use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::{
    FencingToken, LossReason, OwnerId,
    backend::{Lease, locked},
};
use tokio::sync::Notify;

use crate::{
    key::Key,
    queue::{Number, Place, Queue},
};

/// One acquisition from its request to its release, which the store keeps.
pub(crate) struct MemEntry {
    pub(crate) key: Key,
    pub(crate) ttl: Duration,
    pub(crate) metadata: Option<String>,
    pub(crate) wake: Notify,
    /// Zero until the store has seen the request.
    number: AtomicU64,
    /// Set when it is granted.
    token: AtomicU64,
    link: Mutex<Link>,
}

/// A loss and the guard may come in either order.
enum Link {
    Unbound,
    Bound(Arc<Lease>),
    Lost(LossReason),
}

impl MemEntry {
    pub(crate) fn new(key: Key, ttl: Duration, metadata: Option<String>) -> Arc<Self> {
        let link = Mutex::new(Link::Unbound);
        Arc::new(Self {
            key,
            ttl,
            metadata,
            wake: Notify::new(),
            number: AtomicU64::new(0),
            token: AtomicU64::new(0),
            link,
        })
    }

    pub(crate) fn number(&self) -> Number {
        self.number.load(Ordering::Acquire)
    }

    pub(crate) fn token(&self) -> FencingToken {
        FencingToken::new(self.token.load(Ordering::Acquire))
    }

    /// Notes the token if it was granted.
    pub(crate) fn granted(&self, place: Place, queue: &Queue<Arc<Self>>) -> Place {
        if place == Place::Holding {
            self.token.store(queue.token(), Ordering::Release);
        }
        place
    }

    /// Starts over in the order of arrival.
    pub(crate) fn enter(&self, number: Number) {
        if self.number() == 0 {
            self.number.store(number, Ordering::Release);
            return;
        }
        // Both at once, because the loss of the grant under its last number may still be on its
        // way.
        let mut link = locked(&self.link);
        *link = Link::Unbound;
        self.number.store(number, Ordering::Release);
    }

    /// Makes the store's losses reach the guard.
    pub(crate) fn bind(&self, lease: &Arc<Lease>) {
        let mut link = locked(&self.link);
        match *link {
            Link::Lost(reason) => lease.lose(reason),
            Link::Unbound | Link::Bound(_) => *link = Link::Bound(Arc::clone(lease)),
        }
    }

    /// Loses the grant under this number, which the store took away.
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
    let digits: [u8; 16] =
        std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15]);
    OwnerId::new(str::from_utf8(&digits).unwrap_or_default())
}

/// The number that an id stands for, if it may be of this store.
pub(crate) fn number_of(owner: &OwnerId) -> Option<Number> {
    Number::from_str_radix(owner.as_str(), 16)
        .ok()
        .filter(|number| self::owner(*number) == *owner)
}

impl fmt::Debug for MemEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemEntry")
            .field("name", &self.key.name)
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use lock_core::backend::Clock;

    use super::*;
    use crate::MemStore;

    #[test]
    fn an_owner_is_its_number() {
        for number in [1, 0x1234_5678_9abc_def0, u64::MAX] {
            assert_eq!(owner(number).as_str(), format!("{number:016x}"));
            assert_eq!(number_of(&owner(number)), Some(number));
        }
        for foreign in ["", "1", "x", "000000000000000G", "+00000000000000f"] {
            assert_eq!(number_of(&OwnerId::new(foreign)), None, "{foreign}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_before_the_guard_is_made_reaches_it() {
        let entry = MemEntry::new(
            MemStore::new().key(&"n".parse().unwrap()),
            Duration::from_secs(30),
            None,
        );
        let lease = Lease::new(Clock::Tokio, Clock::Tokio.now() + entry.ttl, None);
        entry.lose(entry.number(), LossReason::Removed);
        entry.bind(&lease);
        assert_eq!(lease.deadline(), Err(LossReason::Removed));
    }
}
