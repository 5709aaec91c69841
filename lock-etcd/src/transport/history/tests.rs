use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

const CLUSTER: u64 = 7;

fn at(revision: i64) -> StorePosition {
    StorePosition {
        cluster: CLUSTER,
        revision,
        before: revision,
    }
}

fn seen(revision: i64) -> (StoreHistory, Arc<AtomicUsize>) {
    let history = StoreHistory::default();
    let starts = Arc::new(AtomicUsize::new(0));
    history.confirm(history.known(), at(revision)).unwrap();
    let count = Arc::clone(&starts);
    history.on_rollback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (history, starts)
}

#[test]
fn answers_of_concurrent_requests_may_overtake_each_other() {
    let (history, starts) = seen(5);
    let first = history.known();
    let second = history.known();
    history.confirm(second, at(9)).unwrap();
    history.confirm(first, at(6)).unwrap();
    assert_eq!(history.known().revision, 9);
    assert_eq!(starts.load(Ordering::Relaxed), 0);
}

#[test]
fn an_answer_from_behind_what_was_known_at_its_request_starts_over_once() {
    let (history, starts) = seen(9);
    let first = history.known();
    let second = history.known();
    let error = history.confirm(first, at(8)).unwrap_err();
    assert!(
        error.to_string().contains("from revision 9 to 8"),
        "{error}"
    );
    assert!(error.is_indeterminate());
    assert!(!history.continues(first));
    // Whatever was under way tells of what is gone, be it from before or after.
    for revision in [7, 20] {
        history.confirm(second, at(revision)).unwrap_err();
    }
    assert_eq!(
        (history.known().revision, starts.load(Ordering::Relaxed)),
        (8, 1)
    );
    history.confirm(history.known(), at(8)).unwrap();
}

#[test]
fn a_write_makes_a_revision_and_so_comes_after_what_was_known() {
    let (history, _) = seen(5);
    history
        .confirm(history.known(), at(6).if_wrote(true))
        .unwrap();
    history
        .confirm(history.known(), at(6).if_wrote(false))
        .unwrap();
    assert!(
        history
            .confirm(history.known(), at(6).if_wrote(true))
            .is_err(),
        "another 6 than the known one"
    );
}

#[test]
fn what_may_lag_behind_counts_and_proves_nothing() {
    let (history, starts) = seen(5);
    let known = history.known();
    history.note(known, at(8));
    history.note(known, at(3));
    assert_eq!(
        (history.known().revision, starts.load(Ordering::Relaxed)),
        (8, 0)
    );
    history.confirm(history.known(), at(7)).unwrap_err();
    history.note(known, at(99));
    assert_eq!(history.known().revision, 7, "a stream from before");
}

#[test]
fn another_cluster_and_an_entry_that_came_back_start_over() {
    let (history, starts) = seen(5);
    let known = history.known();
    let error = history
        .confirm(
            known,
            StorePosition {
                cluster: 8,
                ..at(50)
            },
        )
        .unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    history
        .confirm(
            history.known(),
            StorePosition {
                cluster: 8,
                ..at(50)
            },
        )
        .unwrap();
    assert!(
        history.reappeared(known, "a/1").is_err(),
        "it was read before"
    );
    assert_eq!(starts.load(Ordering::Relaxed), 1);
    assert!(
        history
            .reappeared(history.known(), "a/1")
            .unwrap_err()
            .to_string()
            .contains("`a/1`")
    );
    assert_eq!(starts.load(Ordering::Relaxed), 2);
}
