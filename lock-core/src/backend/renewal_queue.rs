use std::{collections::BTreeSet, sync::Arc, time::Duration};

use slab::Slab;

use crate::backend::{Lease, Moment, RenewOutcome, Renewal, RenewalStep};

/// Schedule of the renewals of any number of leases: synchronous, driven by the keeper.
///
/// Most leases end before their first renewal: one that is not due before the keeper looks next is
/// put aside until then, which costs next to nothing.
#[derive(Debug)]
pub(super) struct RenewalQueue<T> {
    slots: Slab<Slot<T>>,
    /// Leases that came since the keeper looked, in any order.
    fresh: Vec<usize>,
    queue: BTreeSet<(Moment, Id)>,
    last_number: u64,
    /// Instant at which the keeper looks next by itself.
    looks: Option<Moment>,
    /// Leases that were found ended, whose guards are to be told.
    ended: Vec<Arc<Lease>>,
    /// Observed leases that were renewed, and how long before their deadline.
    renewed: Vec<(Arc<Lease>, Duration)>,
}

/// Names a lease for ever: its slot is used again, its number is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    number: u64,
    slot: usize,
}

#[derive(Debug)]
struct Slot<T> {
    number: u64,
    renewal: Renewal,
    lease: Arc<Lease>,
    item: Arc<T>,
    place: Place,
}

/// Place where a lease waits for its next step.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fresh {
        index: usize,
        at: Moment,
    },
    Queue {
        at: Moment,
    },
    /// Its time is up: it waits only for its holder's end.
    Nowhere,
}

/// A renewal to send now.
#[derive(Debug)]
pub(super) struct Due<T> {
    pub(super) id: Id,
    pub(super) item: Arc<T>,
    pub(super) give_up: Moment,
}

/// Leases that are due this soon go along with one that is due now: few round trips for many
/// leases.
const SLACK: Duration = Duration::from_millis(100);

/// Tables that have grown beyond this give their memory back when they are empty.
const KEEP_CAPACITY: usize = 1024;

impl Id {
    const LAST: Self = Self {
        number: u64::MAX,
        slot: usize::MAX,
    };
}

impl<T> RenewalQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: Slab::new(),
            fresh: Vec::new(),
            queue: BTreeSet::new(),
            last_number: 0,
            looks: None,
            ended: Vec::new(),
            renewed: Vec::new(),
        }
    }

    /// Adds a lease that was granted in answer to a request sent at `sent`; returns its id, never
    /// used again, and whether the keeper must be woken to look at it in time.
    pub(super) fn insert(
        &mut self,
        sent: Moment,
        mut renewal: Renewal,
        lease: Arc<Lease>,
        item: Arc<T>,
    ) -> (Id, bool) {
        self.last_number += 1;
        let at = match renewal.step(sent) {
            RenewalStep::Wait(at) => at,
            RenewalStep::Send { .. } | RenewalStep::Lost(_) => sent,
        };
        let early = self.looks.is_none_or(|looks| at < looks);
        if early {
            self.looks = Some(at);
        }
        let number = self.last_number;
        let place = Place::Fresh {
            index: self.fresh.len(),
            at,
        };
        let slot = self.slots.insert(Slot {
            number,
            renewal,
            lease,
            item,
            place,
        });
        self.fresh.push(slot);
        (Id { number, slot }, early)
    }

    pub(super) fn remove(&mut self, id: Id) {
        if self.slot(id).is_none() {
            return;
        }
        match self.slots.remove(id.slot).place {
            Place::Fresh { index, .. } => {
                self.fresh.swap_remove(index);
                if let Some(moved) = self
                    .fresh
                    .get(index)
                    .and_then(|slot| self.slots.get_mut(*slot))
                    && let Place::Fresh { index: now, .. } = &mut moved.place
                {
                    *now = index;
                }
            }
            Place::Queue { at } => drop(self.queue.remove(&(at, id))),
            Place::Nowhere => {}
        }
        if self.slots.is_empty() && self.slots.capacity() > KEEP_CAPACITY {
            (self.slots, self.fresh) = (Slab::new(), Vec::new());
        }
    }

    fn slot(&mut self, id: Id) -> Option<&mut Slot<T>> {
        self.slots
            .get_mut(id.slot)
            .filter(|slot| slot.number == id.number)
    }

    /// Sorts in what came since the last look.
    fn sort(&mut self) {
        for slot in self.fresh.drain(..) {
            let Some(fresh) = self.slots.get_mut(slot) else {
                continue;
            };
            if let Place::Fresh { at, .. } = fresh.place {
                fresh.place = Place::Queue { at };
                self.queue.insert((
                    at,
                    Id {
                        number: fresh.number,
                        slot,
                    },
                ));
            }
        }
    }

    /// Decides when to call [`poll`](Self::poll) next.
    ///
    /// An instant that was decided on stays although its lease has gone: a client that acquires and
    /// releases in a loop, faster than the keeper can look, then does not wake it each time.
    pub(super) fn rest(&mut self, now: Moment) -> Option<Moment> {
        self.sort();
        self.looks = self.next().or(self.looks.filter(|looks| *looks > now));
        self.looks
    }

    fn next(&self) -> Option<Moment> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Returns the renewals to send at `now`. Ends the leases whose time is up.
    pub(super) fn poll(&mut self, now: Moment) -> Vec<Due<T>> {
        self.sort();
        let mut due = Vec::new();
        if self.next().is_none_or(|next| next > now) {
            return due;
        }
        let ripe: Vec<_> = self
            .queue
            .range(..=(now + SLACK, Id::LAST))
            .copied()
            .collect();
        for (at, id) in ripe {
            self.queue.remove(&(at, id));
            let Some(slot) = self.slot(id) else { continue };
            slot.place = Place::Nowhere;
            // Early by at most a tenth of the time between two renewals.
            slot.renewal.hasten(now, SLACK.min(slot.renewal.ttl() / 30));
            let at = match slot.renewal.step(now) {
                _ if slot.lease.deadline().is_err() => {
                    let ended = Arc::clone(&slot.lease);
                    self.ended.push(ended);
                    continue;
                }
                RenewalStep::Send { give_up } => {
                    due.push(Due {
                        id,
                        item: Arc::clone(&slot.item),
                        give_up,
                    });
                    slot.renewal.deadline()
                }
                RenewalStep::Wait(until) => until,
                RenewalStep::Lost(reason) => {
                    let ended = Arc::clone(&slot.lease);
                    ended.lose(reason);
                    self.ended.push(ended);
                    continue;
                }
            };
            self.put(id, at);
        }
        due
    }

    /// Makes a renewal due at once.
    pub(super) fn renew_at(&mut self, id: Id, now: Moment) {
        self.sort();
        let Some(slot) = self.slot(id) else { return };
        slot.renewal.renew_at(now);
        if !slot.renewal.is_due(now) {
            return;
        }
        if let Place::Queue { at } = slot.place {
            self.queue.remove(&(at, id));
        }
        self.put(id, now);
    }

    /// Takes the outcome of a renewal that [`poll`](Self::poll) asked for. Leases with the same
    /// `jitter`, from 0 to 1, stay together.
    pub(super) fn complete(&mut self, id: Id, now: Moment, outcome: &RenewOutcome, jitter: f64) {
        let Some(slot) = self.slot(id) else { return };
        if let Place::Queue { at } = std::mem::replace(&mut slot.place, Place::Nowhere) {
            self.queue.remove(&(at, id));
        }
        let Some(slot) = self.slot(id) else { return };
        match outcome {
            RenewOutcome::Renewed(granted) => {
                slot.renewal.renewed(*granted, jitter);
                let lease = Arc::clone(&slot.lease);
                let margin = lease.is_observed().then(|| lease.remaining());
                if lease.extend(slot.renewal.deadline()).is_err() {
                    return self.ended.push(lease);
                }
                if let Some(margin) = margin {
                    self.renewed.push((lease, margin));
                }
            }
            RenewOutcome::NotHeld => slot.renewal.not_held(),
            RenewOutcome::Failed(_) => slot.renewal.failed(now, jitter),
        }
        let Some(slot) = self.slot(id) else { return };
        if slot.renewal.is_due(now) {
            // The next poll hands it out. A step here would count it as sent, and nobody would send
            // it.
            return self.put(id, now);
        }
        match slot.renewal.step(now) {
            RenewalStep::Wait(at) | RenewalStep::Send { give_up: at } => self.put(id, at),
            RenewalStep::Lost(reason) => {
                let ended = Arc::clone(&slot.lease);
                ended.lose(reason);
                self.ended.push(ended);
            }
        }
    }

    /// Returns the leases that were found ended since the last call, to be told once no mutex is
    /// locked any more.
    pub(super) fn ended(&mut self) -> Vec<Arc<Lease>> {
        std::mem::take(&mut self.ended)
    }

    /// Returns the observed leases that were renewed since the last call, and how long before their
    /// deadline; to be told as [`ended`](Self::ended) ones are.
    pub(super) fn renewed(&mut self) -> Vec<(Arc<Lease>, Duration)> {
        std::mem::take(&mut self.renewed)
    }

    fn put(&mut self, id: Id, at: Moment) {
        if let Some(slot) = self.slot(id) {
            slot.place = Place::Queue { at };
            self.queue.insert((at, id));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests;
