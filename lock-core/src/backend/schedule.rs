use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::backend::{Lease, Moment, RenewOutcome, Renewal, RenewalStep};

/// Which renewals are due when, for any number of leases: synchronous, driven by the keeper.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    slots: HashMap<u64, Slot<T>>,
    queue: BTreeSet<(Moment, u64)>,
    last_id: u64,
    /// When the keeper looks next by itself.
    looks: Option<Moment>,
}

#[derive(Debug)]
struct Slot<T> {
    renewal: Renewal,
    lease: Arc<Lease>,
    item: Arc<T>,
    at: Moment,
}

/// A renewal to send now.
#[derive(Debug)]
pub(super) struct Due<T> {
    pub(super) id: u64,
    pub(super) item: Arc<T>,
    pub(super) give_up: Moment,
}

/// Leases that are due this soon go along with one that is due now: few round trips for many leases.
const SLACK: Duration = Duration::from_millis(100);

impl<T> Schedule<T> {
    pub(super) fn new() -> Self {
        Self { slots: HashMap::new(), queue: BTreeSet::new(), last_id: 0, looks: None }
    }

    /// Adds a lease; returns its id, never used again, and whether the keeper must be woken to look at it in time.
    pub(super) fn insert(&mut self, now: Moment, mut renewal: Renewal, lease: Arc<Lease>, item: Arc<T>) -> (u64, bool) {
        self.last_id += 1;
        let id = self.last_id;
        let at = match renewal.step(now) {
            RenewalStep::Wait(at) => at,
            RenewalStep::Send { .. } | RenewalStep::Lost(_) => now,
        };
        let early = self.looks.is_none_or(|looks| at < looks);
        if early {
            self.looks = Some(at);
        }
        self.slots.insert(id, Slot { renewal, lease, item, at });
        self.queue.insert((at, id));
        (id, early)
    }

    pub(super) fn remove(&mut self, id: u64) {
        if let Some(slot) = self.slots.remove(&id) {
            self.queue.remove(&(slot.at, id));
        }
    }

    /// Decides when to call [`poll`](Self::poll) next.
    ///
    /// An instant that was decided on stays although its lease has gone: a client that acquires and releases in a loop,
    /// faster than the keeper can look, then does not wake it each time.
    pub(super) fn rest(&mut self, now: Moment) -> Option<Moment> {
        self.looks = self.next().or(self.looks.filter(|looks| *looks > now));
        self.looks
    }

    fn next(&self) -> Option<Moment> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// What to send at `now`. Ends the leases whose time is up.
    pub(super) fn poll(&mut self, now: Moment) -> Vec<Due<T>> {
        let mut due = Vec::new();
        if self.next().is_none_or(|next| next > now) {
            return due;
        }
        let ripe: Vec<_> = self.queue.range(..=(now + SLACK, u64::MAX)).copied().collect();
        for (at, id) in ripe {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            self.queue.remove(&(at, id));
            // Early by at most a tenth of the time between two renewals.
            slot.renewal.hasten(now, SLACK.min(slot.renewal.ttl() / 30));
            slot.at = match slot.renewal.step(now) {
                _ if slot.lease.deadline().is_err() => continue,
                RenewalStep::Send { give_up } => {
                    due.push(Due { id, item: Arc::clone(&slot.item), give_up });
                    slot.renewal.deadline()
                }
                RenewalStep::Wait(until) => until,
                RenewalStep::Lost(reason) => {
                    slot.lease.lose(reason);
                    continue;
                }
            };
            self.queue.insert((slot.at, id));
        }
        due
    }

    /// Takes the outcome of a renewal that [`poll`](Self::poll) asked for.
    pub(super) fn complete(&mut self, id: u64, now: Moment, outcome: &RenewOutcome, jitter: f64) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        self.queue.remove(&(slot.at, id));
        match outcome {
            RenewOutcome::Renewed(granted) => {
                slot.renewal.renewed(*granted);
                if slot.lease.extend(slot.renewal.deadline()).is_err() {
                    return;
                }
            }
            RenewOutcome::NotHeld => slot.renewal.not_held(),
            RenewOutcome::Failed(_) => slot.renewal.failed(now, jitter),
        }
        match slot.renewal.step(now) {
            RenewalStep::Wait(until) => slot.at = until,
            // Left to the next poll, which hands out what is to be sent.
            RenewalStep::Send { .. } => slot.at = now,
            RenewalStep::Lost(reason) => return slot.lease.lose(reason),
        }
        self.queue.insert((slot.at, id));
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LossReason, backend::Clock};

    const TTL: Duration = Duration::from_secs(30);

    fn add(schedule: &mut Schedule<&'static str>, item: &'static str, sent: Moment) -> (u64, Arc<Lease>) {
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
        assert_eq!(schedule.next(), Some(start + TTL / 3));
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
}
