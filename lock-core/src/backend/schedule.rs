use std::{collections::BTreeSet, sync::Arc, time::Duration};

use slab::Slab;

use crate::backend::{Lease, Moment, RenewOutcome, Renewal, RenewalStep};

/// Which renewals are due when, for any number of leases: synchronous, driven by the keeper.
///
/// Most leases end before their first renewal: one that is not due before the keeper looks next is put aside until then,
/// which costs next to nothing.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    slots: Slab<Slot<T>>,
    /// Leases that came since the keeper looked, in any order.
    fresh: Vec<usize>,
    queue: BTreeSet<(Moment, Id)>,
    last_number: u64,
    /// When the keeper looks next by itself.
    looks: Option<Moment>,
    /// Leases that were found ended, whose guards are to be told.
    ended: Vec<Arc<Lease>>,
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

/// Where a lease is waited for.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fresh {
        index: usize,
        at: Moment,
    },
    Queue {
        at: Moment,
    },
    /// Its time is up: only its holder's end is waited for.
    Nowhere,
}

/// A renewal to send now.
#[derive(Debug)]
pub(super) struct Due<T> {
    pub(super) id: Id,
    pub(super) item: Arc<T>,
    pub(super) give_up: Moment,
}

/// Leases that are due this soon go along with one that is due now: few round trips for many leases.
const SLACK: Duration = Duration::from_millis(100);

/// Tables that have grown beyond this give their memory back when they are empty.
const KEEP_CAPACITY: usize = 1024;

impl Id {
    const LAST: Self = Self { number: u64::MAX, slot: usize::MAX };
}

impl<T> Schedule<T> {
    pub(super) fn new() -> Self {
        Self { slots: Slab::new(), fresh: Vec::new(), queue: BTreeSet::new(), last_number: 0, looks: None, ended: Vec::new() }
    }

    /// Adds a lease that was granted in answer to a request sent at `sent`; returns its id, never used again, and whether
    /// the keeper must be woken to look at it in time.
    pub(super) fn insert(&mut self, sent: Moment, mut renewal: Renewal, lease: Arc<Lease>, item: Arc<T>) -> (Id, bool) {
        self.last_number += 1;
        let at = match renewal.step(sent) {
            RenewalStep::Wait(at) => at,
            RenewalStep::Send { .. } | RenewalStep::Lost(_) => sent,
        };
        let early = self.looks.is_none_or(|looks| at < looks);
        if early {
            self.looks = Some(at);
        }
        let (number, place) = (self.last_number, Place::Fresh { index: self.fresh.len(), at });
        let slot = self.slots.insert(Slot { number, renewal, lease, item, place });
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
                if let Some(moved) = self.fresh.get(index).and_then(|slot| self.slots.get_mut(*slot))
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
        self.slots.get_mut(id.slot).filter(|slot| slot.number == id.number)
    }

    /// Sorts in what came since the last look.
    fn sort(&mut self) {
        for slot in self.fresh.drain(..) {
            let Some(fresh) = self.slots.get_mut(slot) else { continue };
            if let Place::Fresh { at, .. } = fresh.place {
                fresh.place = Place::Queue { at };
                self.queue.insert((at, Id { number: fresh.number, slot }));
            }
        }
    }

    /// Decides when to call [`poll`](Self::poll) next.
    ///
    /// An instant that was decided on stays although its lease has gone: a client that acquires and releases in a loop,
    /// faster than the keeper can look, then does not wake it each time.
    pub(super) fn rest(&mut self, now: Moment) -> Option<Moment> {
        self.sort();
        self.looks = self.next().or(self.looks.filter(|looks| *looks > now));
        self.looks
    }

    fn next(&self) -> Option<Moment> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// What to send at `now`. Ends the leases whose time is up.
    pub(super) fn poll(&mut self, now: Moment) -> Vec<Due<T>> {
        self.sort();
        let mut due = Vec::new();
        if self.next().is_none_or(|next| next > now) {
            return due;
        }
        let ripe: Vec<_> = self.queue.range(..=(now + SLACK, Id::LAST)).copied().collect();
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
                    due.push(Due { id, item: Arc::clone(&slot.item), give_up });
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

    /// Takes the outcome of a renewal that [`poll`](Self::poll) asked for. What has the same `jitter`, from 0 to 1, stays
    /// together.
    pub(super) fn complete(&mut self, id: Id, now: Moment, outcome: &RenewOutcome, jitter: f64) {
        let Some(slot) = self.slot(id) else { return };
        if let Place::Queue { at } = std::mem::replace(&mut slot.place, Place::Nowhere) {
            self.queue.remove(&(at, id));
        }
        let Some(slot) = self.slot(id) else { return };
        match outcome {
            RenewOutcome::Renewed(granted) => {
                slot.renewal.renewed(*granted, jitter);
                if slot.lease.extend(slot.renewal.deadline()).is_err() {
                    let ended = Arc::clone(&slot.lease);
                    return self.ended.push(ended);
                }
            }
            RenewOutcome::NotHeld => slot.renewal.not_held(),
            RenewOutcome::Failed(_) => slot.renewal.failed(now, jitter),
        }
        if slot.renewal.is_due(now) {
            // The next poll hands it out. A step here would count it as sent, and nobody would send it.
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

    /// Leases that were found ended since this was asked last: to be told when nothing is locked any more.
    pub(super) fn ended(&mut self) -> Vec<Arc<Lease>> {
        std::mem::take(&mut self.ended)
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
mod tests {
    use super::*;
    use crate::{LossReason, backend::Clock};
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(30);

    fn add(schedule: &mut Schedule<&'static str>, item: &'static str, sent: Moment) -> (Id, Arc<Lease>) {
        let renewal = Renewal::new(sent, TTL, true, None);
        let lease = Lease::new(Clock::Tokio, renewal.deadline(), None);
        let (id, _) = schedule.insert(sent, renewal, Arc::clone(&lease), Arc::new(item));
        (id, lease)
    }

    fn items(due: &[Due<&'static str>]) -> Vec<&'static str> {
        due.iter().map(|due| *due.item).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn batches_what_is_nearly_due() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        add(&mut schedule, "a", start);
        add(&mut schedule, "b", start + Duration::from_millis(50));
        add(&mut schedule, "c", start + Duration::from_secs(2));
        assert_eq!(schedule.rest(start), Some(start + TTL / 3));
        assert!(schedule.poll(start + TTL / 3 - Duration::from_millis(1)).is_empty());
        assert_eq!(items(&schedule.poll(start + TTL / 3)), ["a", "b"]);
        assert_eq!(schedule.next(), Some(start + TTL / 3 + Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_lease_that_is_due_before_the_next_look_wakes_the_keeper() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        let insert = |schedule: &mut Schedule<()>, sent, ttl| {
            let renewal = Renewal::new(sent, ttl, true, None);
            let lease = Lease::new(Clock::Tokio, renewal.deadline(), None);
            schedule.insert(sent, renewal, lease, Arc::new(()))
        };
        let (id, wakes) = insert(&mut schedule, start, TTL);
        assert!(wakes, "the keeper had nothing to look at");
        schedule.remove(id);
        assert_eq!(schedule.rest(start), Some(start + TTL / 3));
        let (id, wakes) = insert(&mut schedule, start + Duration::from_millis(1), TTL);
        assert!(!wakes, "the keeper looks before that");
        let (other, wakes) = insert(&mut schedule, start, TTL / 2);
        assert!(wakes, "the keeper would look too late");
        schedule.remove(other);
        assert_eq!(schedule.rest(start + TTL / 6), Some(start + Duration::from_millis(1) + TTL / 3));
        schedule.remove(id);
        assert_eq!(schedule.rest(start + TTL), None);
        assert!(insert(&mut schedule, start + TTL, TTL).1);
    }

    #[tokio::test(start_paused = true)]
    async fn renewed_lease_is_extended_and_due_again() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        let (id, lease) = add(&mut schedule, "a", start);
        schedule.poll(start + TTL / 3);
        schedule.complete(id, start + TTL / 3, &RenewOutcome::Renewed(TTL), 0.0);
        assert_eq!(lease.deadline(), Ok(crate::backend::deadline(start + TTL / 3, TTL)));
        assert_eq!(schedule.next(), Some(start + TTL / 3 * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_due_when_the_last_one_is_answered_is_sent() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        let (id, _) = add(&mut schedule, "a", start);
        schedule.poll(start + TTL / 3);
        let answered = start + TTL / 3 * 2 - Duration::from_millis(1);
        schedule.complete(id, answered, &RenewOutcome::Renewed(TTL), 1.0);
        assert_eq!(items(&schedule.poll(answered)), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_renewal_ends_at_the_deadline() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        let (_, lease) = add(&mut schedule, "a", start);
        schedule.poll(start + TTL / 3);
        let deadline = schedule.next().unwrap();
        assert_eq!(Ok(deadline), lease.deadline());
        tokio::time::advance(deadline.saturating_since(start)).await;
        assert!(schedule.poll(deadline).is_empty());
        assert_eq!(lease.deadline(), Err(LossReason::Expired));
        assert_eq!(schedule.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn not_held_is_lost_and_removal_forgets() {
        let (mut schedule, start) = (Schedule::new(), Clock::Tokio.now());
        let (a, lease) = add(&mut schedule, "a", start);
        let (b, _) = add(&mut schedule, "b", start);
        schedule.poll(start + TTL / 3);
        schedule.complete(a, start + TTL / 3, &RenewOutcome::NotHeld, 0.0);
        assert_eq!(lease.deadline(), Err(LossReason::Removed));
        schedule.remove(a);
        schedule.remove(b);
        schedule.complete(b, start + TTL / 3, &RenewOutcome::Renewed(TTL), 0.0);
        assert_eq!((schedule.len(), schedule.next()), (0, None));
    }

    proptest! {
        /// Whichever leases end before the keeper looks: the others are renewed, each once.
        #[test]
        fn whoever_is_left_is_renewed(ends in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..60), looks: bool) {
            let (mut schedule, start, mut model) = (Schedule::new(), Clock::Suspend.now(), Vec::new());
            for (item, end) in ends.into_iter().enumerate() {
                let renewal = Renewal::new(start, TTL, true, None);
                let lease = Lease::new(Clock::Suspend, renewal.deadline(), None);
                model.push((schedule.insert(start, renewal, lease, Arc::new(item)).0, item));
                if looks && item % 7 == 0 {
                    schedule.rest(start);
                }
                if let Some(end) = end {
                    let (id, _) = model.remove(end.index(model.len()));
                    schedule.remove(id);
                    schedule.remove(id);
                }
            }
            prop_assert_eq!(schedule.len(), model.len());
            let mut due: Vec<_> = schedule.poll(start + TTL / 3).into_iter().map(|due| (due.id, *due.item)).collect();
            due.sort_unstable();
            prop_assert_eq!(due, model);
        }
    }
}
