use super::*;
use crate::{LossReason, backend::Clock};
use proptest::prelude::*;

const TTL: Duration = Duration::from_secs(30);

fn add(
    queue: &mut RenewalQueue<&'static str>,
    item: &'static str,
    sent: Moment,
) -> (Id, Arc<Lease>) {
    let renewal = Renewal::new(sent, TTL, true, None);
    let lease = Lease::new(Clock::Tokio, renewal.deadline(), None);
    let (id, _) = queue.insert(sent, renewal, Arc::clone(&lease), Arc::new(item));
    (id, lease)
}

fn items(due: &[Due<&'static str>]) -> Vec<&'static str> {
    due.iter().map(|due| *due.item).collect()
}

#[tokio::test(start_paused = true)]
async fn batches_what_is_nearly_due() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    add(&mut queue, "a", start);
    add(&mut queue, "b", start + Duration::from_millis(50));
    add(&mut queue, "c", start + Duration::from_secs(2));
    assert_eq!(queue.rest(start), Some(start + TTL / 3));
    assert!(
        queue
            .poll(start + TTL / 3 - Duration::from_millis(1))
            .is_empty()
    );
    assert_eq!(items(&queue.poll(start + TTL / 3)), ["a", "b"]);
    assert_eq!(queue.next(), Some(start + TTL / 3 + Duration::from_secs(2)));
}

#[tokio::test(start_paused = true)]
async fn only_a_lease_that_is_due_before_the_next_look_wakes_the_keeper() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    let insert = |queue: &mut RenewalQueue<()>, sent, ttl| {
        let renewal = Renewal::new(sent, ttl, true, None);
        let lease = Lease::new(Clock::Tokio, renewal.deadline(), None);
        queue.insert(sent, renewal, lease, Arc::new(()))
    };
    let (id, wakes) = insert(&mut queue, start, TTL);
    assert!(wakes, "the keeper had nothing to look at");
    queue.remove(id);
    assert_eq!(queue.rest(start), Some(start + TTL / 3));
    let (id, wakes) = insert(&mut queue, start + Duration::from_millis(1), TTL);
    assert!(!wakes, "the keeper looks before that");
    let (other, wakes) = insert(&mut queue, start, TTL / 2);
    assert!(wakes, "the keeper would look too late");
    queue.remove(other);
    assert_eq!(
        queue.rest(start + TTL / 6),
        Some(start + Duration::from_millis(1) + TTL / 3)
    );
    queue.remove(id);
    assert_eq!(queue.rest(start + TTL), None);
    assert!(insert(&mut queue, start + TTL, TTL).1);
}

#[tokio::test(start_paused = true)]
async fn renewed_lease_is_extended_and_due_again() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    let (id, lease) = add(&mut queue, "a", start);
    queue.poll(start + TTL / 3);
    queue.complete(id, start + TTL / 3, &RenewOutcome::Renewed(TTL), 0.0);
    assert_eq!(
        lease.deadline(),
        Ok(crate::backend::deadline(start + TTL / 3, TTL))
    );
    assert_eq!(queue.next(), Some(start + TTL / 3 * 2));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_due_when_the_last_one_is_answered_is_sent() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    let (id, _) = add(&mut queue, "a", start);
    queue.poll(start + TTL / 3);
    let answered = start + TTL / 3 * 2 - Duration::from_millis(1);
    queue.complete(id, answered, &RenewOutcome::Renewed(TTL), 1.0);
    assert_eq!(items(&queue.poll(answered)), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_renewal_ends_at_the_deadline() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    let (_, lease) = add(&mut queue, "a", start);
    queue.poll(start + TTL / 3);
    let deadline = queue.next().unwrap();
    assert_eq!(Ok(deadline), lease.deadline());
    tokio::time::advance(deadline.saturating_since(start)).await;
    assert!(queue.poll(deadline).is_empty());
    assert_eq!(lease.deadline(), Err(LossReason::Expired));
    assert_eq!(queue.next(), None);
}

#[tokio::test(start_paused = true)]
async fn not_held_is_lost_and_removal_forgets() {
    let mut queue = RenewalQueue::new();
    let start = Clock::Tokio.now();
    let (a, lease) = add(&mut queue, "a", start);
    let (b, _) = add(&mut queue, "b", start);
    queue.poll(start + TTL / 3);
    queue.complete(a, start + TTL / 3, &RenewOutcome::NotHeld, 0.0);
    assert_eq!(lease.deadline(), Err(LossReason::Removed));
    queue.remove(a);
    queue.remove(b);
    queue.complete(b, start + TTL / 3, &RenewOutcome::Renewed(TTL), 0.0);
    assert_eq!((queue.len(), queue.next()), (0, None));
}

proptest! {
    /// Renews each of the other leases once, whichever leases end before the keeper looks.
    #[test]
    fn whoever_is_left_is_renewed(ends in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..60), looks: bool) {
        let mut queue = RenewalQueue::new();
        let start = Clock::Suspend.now();
        let mut model = Vec::new();
        for (item, end) in ends.into_iter().enumerate() {
            let renewal = Renewal::new(start, TTL, true, None);
            let lease = Lease::new(Clock::Suspend, renewal.deadline(), None);
            model.push((queue.insert(start, renewal, lease, Arc::new(item)).0, item));
            if looks && item % 7 == 0 {
                queue.rest(start);
            }
            if let Some(end) = end {
                let (id, _) = model.remove(end.index(model.len()));
                queue.remove(id);
                queue.remove(id);
            }
        }
        prop_assert_eq!(queue.len(), model.len());
        let mut due: Vec<_> = queue.poll(start + TTL / 3).into_iter().map(|due| (due.id, *due.item)).collect();
        due.sort_unstable();
        prop_assert_eq!(due, model);
    }
}
