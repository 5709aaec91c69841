use std::{collections::BTreeMap, time::Duration};

use lock_core::{AcquireOptions, DistributedLockExt};
use lock_mem::{MemLock, MemStore};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use super::*;

/// A recorder for this thread, and a lock whose metrics go there.
fn measured(
    locks: MemLock,
) -> (
    Arc<MetricsLock>,
    Snapshotter,
    metrics::LocalRecorderGuard<'static>,
) {
    let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
    let local = metrics::set_default_local_recorder(recorder);
    let measured = MetricsLock {
        inner: Arc::new(locks),
        recorder: Recorder::new("mem".to_owned(), false),
        waiting: Arc::default(),
    };
    (Arc::new(measured), recorder.snapshotter(), local)
}

/// Changes since the last call, by metric and labels; a histogram as its samples, rounded to tenths
/// of a second.
fn values(snapshotter: &Snapshotter) -> BTreeMap<String, Vec<f64>> {
    let metrics = snapshotter.snapshot().into_vec();
    let line = |(key, _, _, value): (metrics_util::CompositeKey, _, _, DebugValue)| {
        let labels = key.key().labels().filter(|label| label.key() != "backend");
        let labels: Vec<_> = labels.map(|label| label.value().to_owned()).collect();
        let name = format!("{} {}", key.key().name(), labels.join(" "));
        let values = match value {
            DebugValue::Counter(count) => vec![count as f64],
            DebugValue::Gauge(value) => vec![value.0],
            DebugValue::Histogram(samples) => {
                let rounded = samples
                    .iter()
                    .map(|sample| (sample.0 * 10.0).round() / 10.0);
                rounded.collect()
            }
        };
        (name.trim().to_owned(), values)
    };
    metrics.into_iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_is_counted_and_timed() {
    let (locks, snapshotter, _local) = measured(MemLock::new());
    let first = locks.acquire("a").await.unwrap();
    let waiter = tokio::spawn({
        let locks = Arc::clone(&locks);
        async move { locks.acquire("a").await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let during = values(&snapshotter);
    assert_eq!(during["lock_waiters"], [1.0]);
    assert_eq!(during["lock_holders"], [1.0]);
    first.release().await.unwrap();
    let second = waiter.await.unwrap().unwrap();
    drop(second);
    let after = values(&snapshotter);
    assert_eq!(after["lock_waiters"], [-1.0]);
    assert_eq!(after["lock_holders"], [-1.0]);
    assert_eq!(during["lock_acquisitions_total try-acquire busy"], [1.0]);
    assert_eq!(during["lock_acquisitions_total acquire granted"], [1.0]);
    assert_eq!(after["lock_acquisitions_total acquire granted"], [1.0]);
    assert_eq!(after["lock_wait_seconds acquire granted"], [3.0]);
    assert_eq!(after["lock_hold_seconds released"], [3.0, 0.0]);
    assert_eq!(after["lock_release_seconds released"], [0.0]);
    assert_eq!(after["lock_handover_seconds"], [0.0]);
    assert_eq!(locks.waiting.names(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_acquire_leaves_no_gauge() {
    let (locks, snapshotter, _local) = measured(MemLock::new());
    let guard = locks.acquire("a").await.unwrap();
    let wait = locks.acquire("a");
    assert!(
        tokio::time::timeout(Duration::from_secs(1), wait)
            .await
            .is_err()
    );
    let options = AcquireOptions::new().with_timeout(Duration::from_secs(2));
    assert!(locks.acquire_with("a", options).await.is_err());
    let after = values(&snapshotter);
    assert_eq!(after["lock_waiters"], [0.0]);
    assert_eq!(after["lock_acquisitions_total acquire cancelled"], [1.0]);
    assert_eq!(after["lock_acquisitions_total acquire timed_out"], [1.0]);
    assert!(!after.contains_key("lock_errors_total acquire timed_out"));
    assert_eq!(locks.waiting.names(), 0);
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_loss_counts_although_nobody_looks_at_the_guard() {
    let store = MemStore::new();
    let (locks, snapshotter, _local) = measured(store.client());
    let guard = locks.acquire("a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(35)).await;
    let held = values(&snapshotter);
    assert!(held["lock_renewal_margin_seconds"].len() >= 3, "{held:?}");
    store.evict(guard.name());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let lost = values(&snapshotter);
    assert_eq!(lost["lock_losses_total removed"], [1.0]);
    assert_eq!(lost["lock_holders"], [-1.0]);
    assert_eq!(lost["lock_hold_seconds lost"].len(), 1);
    assert!(guard.release().await.is_err());
    let after = values(&snapshotter);
    assert_eq!(after["lock_release_seconds lost"], [0.0]);
    let again = after.get("lock_losses_total removed");
    assert!(again.is_none_or(|again| *again == [0.0]), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_kept_keeps_no_layer() {
    let (locks, _snapshotter, _local) = measured(MemLock::new());
    let guard = locks.acquire("a").await.unwrap();
    let view = guard.view();
    drop(guard);
    let waiting = Arc::downgrade(&locks.waiting);
    drop(locks);
    assert!(waiting.upgrade().is_none());
    assert!(!view.is_held());
}
