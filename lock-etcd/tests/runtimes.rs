//! Applications that start runtimes and end them while a client lives.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use lock_core::{DistributedLockExt, ErrorKind};
use tokio::runtime::Runtime;

mod common;
use common::{Operator, Waiter, client, own};

#[test]
fn a_waiter_learns_that_its_clients_runtime_has_ended() {
    let server = or_skip!(own());
    let home = Runtime::new().unwrap();
    let other = Runtime::new().unwrap();
    let locks = home.block_on(client(&server));
    let (_guard, waiter) = other.block_on(async {
        let holder = client(&server).await;
        let operator = Operator::of(&server).await;
        let guard = holder.acquire("a").await.unwrap();
        let waiter = Waiter::start(&locks, "a");
        operator.until_entries("a", 2).await;
        (guard, waiter)
    });
    home.shutdown_background();
    let error = other.block_on(waiter.outcome()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("runtime"), "{error}");
    // Nor does a later one find the view that was open then.
    let error = other
        .block_on(async { Waiter::start(&locks, "a").outcome().await })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
