//! No layer forgets a method.

use lock_conformance::check_forwarding;
use lock_core::AcquireOptions;
use lock_layers::{
    ConcurrencyLimit, DefaultOptions, Faults, Layer, LocalQueue, Metrics, Namespace,
    ReentrantOwner, Retry, Stack, Trace,
};

async fn check(layer: impl Layer) {
    let name = format!("{layer:?}");
    let outcome = check_forwarding(|lock| layer.layer(lock)).await;
    assert_eq!(outcome, Ok(()), "{name}");
}

#[tokio::test]
async fn every_layer_forwards_every_method() {
    check(Stack::new()).await;
    check(Trace::new().with_process_metadata()).await;
    check(Metrics::new().with_lock_names()).await;
    check(DefaultOptions::new(
        AcquireOptions::new().with_metadata("default"),
    ))
    .await;
    check(Retry::new()).await;
    check(ConcurrencyLimit::new(1)).await;
    check(LocalQueue::new()).await;
    check(Namespace::new("a").unwrap()).await;
    check(Faults::new()).await;
    let owner = check_forwarding(|lock| std::sync::Arc::new(ReentrantOwner::new(lock))).await;
    assert_eq!(owner, Ok(()), "ReentrantOwner");
}

#[test]
fn an_empty_stack_is_the_lock_itself() {
    let store: std::sync::Arc<dyn lock_core::DistributedLock> =
        std::sync::Arc::new(lock_mem::MemLock::new());
    let through = Stack::new().over(std::sync::Arc::clone(&store));
    assert!(std::sync::Arc::ptr_eq(&store, &through));
}
