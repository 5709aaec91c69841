//! Other keys below a lock's name: data of others, very many entries, very many locks with
//! longer names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use etcd_client::{Client, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use futures_util::stream::{self, StreamExt};
use lock_conformance::servers::Server;
use lock_core::{AcquireOptions, DistributedLockExt, ErrorKind, LockInfo};
use lock_etcd::EtcdLock;

mod common;
use common::{Operator, Waiter, client, name, own, promptly, until};

/// Requests on their way at the same time: the store commits them together.
const AT_ONCE: usize = 32;

async fn put(server: &Server, key: &str, lease: i64) {
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    if lease != 0 {
        client
            .lease_grant(600, Some(LeaseGrantOptions::new().with_id(lease)))
            .await
            .unwrap();
    }
    client
        .put(key, "data", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
}

async fn inspected(locks: &EtcdLock, lock: &str) -> LockInfo {
    locks
        .inspect(&name(lock))
        .await
        .unwrap()
        .expect("somebody holds it")
}

#[tokio::test]
async fn a_key_that_is_no_locks_entry_is_never_removed_and_named_to_who_waits_for_it() {
    for (key, lease) in [("orders/42", 0), ("orders/42", 0x77), ("orders/77", 0)] {
        let server = or_skip!(own());
        let locks = client(&server).await;
        let operator = Operator::of(&server).await;
        put(&server, key, lease).await;
        let error = locks.force_release(&name("orders")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        let error = locks
            .acquire_timeout("orders", Duration::from_secs(2))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(
            error
                .to_string()
                .contains(&format!("`{key}`, not a lock's entry")),
            "{error}"
        );
        let info = inspected(&locks, "orders").await;
        assert!(
            info.holder().owner.as_str().contains(&format!("`{key}`")),
            "{info:?}"
        );
        operator.until_entries("orders", 1).await;
        assert!(locks.try_acquire("orders").await.unwrap().is_none());
        operator.delete(key).await;
        promptly("the lock", locks.acquire("orders"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_holder_is_released_by_force_although_other_data_is_behind_it() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("orders").await.unwrap();
    put(&server, "orders/42", 0).await;
    assert_eq!(
        inspected(&locks, "orders").await.waiters,
        Some(0),
        "what is no entry does not wait"
    );
    let waiter = Waiter::start(&other, "orders");
    operator.until_entries("orders", 3).await;
    assert!(
        !locks
            .force_release(&name("orders"))
            .await
            .unwrap()
            .is_empty()
    );
    promptly("the loss", guard.lost()).await;
    assert!(waiter.is_pending());
    operator.delete("orders/42").await;
    waiter.granted().await.release().await.unwrap();
}

/// 1,100 entries with 4 KiB each are more than the 4 MiB that a client takes by default.
#[tokio::test]
async fn a_queue_with_very_large_entries_is_served() {
    const WAITERS: usize = 1100;
    const LEASE: i64 = 0x77;
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder
        .acquire_with(
            &name("a"),
            AcquireOptions::new().with_metadata("m".repeat(4000)),
        )
        .await
        .unwrap();
    operator
        .0
        .lease_client()
        .grant(600, Some(LeaseGrantOptions::new().with_id(LEASE)))
        .await
        .unwrap();
    let wait = |number| {
        let mut kv = operator.0.kv_client();
        let options = PutOptions::new().with_lease(LEASE);
        async move {
            drop(
                kv.put(
                    format!("a/{LEASE:x}-{number:x}"),
                    "m".repeat(4000),
                    Some(options),
                )
                .await
                .unwrap(),
            );
        }
    };
    stream::iter(0..WAITERS)
        .for_each_concurrent(AT_ONCE, wait)
        .await;
    let info = inspected(&locks, "a").await;
    assert_eq!(
        (
            info.waiters,
            info.holder().metadata.as_ref().map(String::len)
        ),
        (Some(WAITERS as u64), Some(4000))
    );
    let last = Waiter::start(&locks, "a");
    operator.until_entries("a", WAITERS + 2).await;
    assert!(!locks.force_release(&name("a")).await.unwrap().is_empty());
    promptly("the loss", guard.lost()).await;
    assert!(last.is_pending());
    operator.revoke(LEASE).await;
    last.granted().await.release().await.unwrap();
}

/// 100,000 keys of locks with longer names: acquire, inspect and force-release of the shorter one
/// look past them.
#[tokio::test]
async fn very_many_locks_with_longer_names_do_not_disturb_the_shorter_one() {
    const NAMES: usize = 100_000;
    let server = or_skip!(own());
    let locks = client(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let hold_a_hundred = |first: usize| {
        let puts: Vec<_> = (first..first + 100)
            .map(|number| TxnOp::put(format!("orders/customer-{number}/77"), "", None))
            .collect();
        let mut kv = operator.0.kv_client();
        async move { drop(kv.txn(Txn::new().and_then(puts)).await.unwrap()) }
    };
    stream::iter((0..NAMES).step_by(100))
        .for_each_concurrent(AT_ONCE, hold_a_hundred)
        .await;
    assert_eq!(locks.inspect(&name("orders")).await.unwrap(), None);
    assert!(
        locks
            .force_release(&name("orders"))
            .await
            .unwrap()
            .is_empty()
    );
    let guard = promptly("a try", locks.try_acquire("orders"))
        .await
        .unwrap()
        .expect("it is free");
    assert_eq!(
        inspected(&other, "orders").await.holder().owner,
        *guard.owner()
    );
    let waiter = Waiter::start(&other, "orders");
    until("a waiter", || async {
        inspected(&locks, "orders").await.waiters == Some(1)
    })
    .await;
    guard.release().await.unwrap();
    waiter.granted().await.release().await.unwrap();
    let guard = promptly("the lock", locks.acquire("orders")).await.unwrap();
    assert!(
        !other
            .force_release(&name("orders"))
            .await
            .unwrap()
            .is_empty()
    );
    promptly("the loss", guard.lost()).await;
}
