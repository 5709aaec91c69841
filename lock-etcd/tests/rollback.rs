//! A store that goes back: a data directory or a snapshot that was restored, data that was thrown
//! away.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use lock_conformance::servers::{self, EtcdOptions, Server, TcpProxy, Trouble};
use lock_core::{
    AcquireOptions, DistributedLockExt, ErrorKind, GuardState, LockError, LossReason, RetryAdvice,
};
use lock_etcd::EtcdLock;

mod common;
use common::{
    Operator, Waiter, address, backup::Backups, backup::SAME_CLUSTER, builder, client,
    metrics::Metrics, name, own, promptly, until,
};

/// Short enough to wait for until guards that nobody can be told of have ended.
const TTL: Duration = Duration::from_secs(3);
const PASSWORD: &str = "pw-s3cret-9";

async fn short(endpoint: impl ToString) -> EtcdLock {
    builder(endpoint).with_ttl(TTL).connect().await.unwrap()
}

/// Lets the store go further, so that what is restored is behind.
async fn writes(operator: &Operator, count: usize) {
    for number in 0..count {
        operator
            .put(&format!("data/{number}"), vec![])
            .await
            .unwrap();
    }
}

fn went_back(error: &LockError) {
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    assert!(
        error.to_string().contains("went back from revision"),
        "{error}"
    );
}

/// Acquires as an application does: again after an error that tells it to come later.
async fn acquires(locks: &EtcdLock, name: &str) {
    let acquire = async {
        loop {
            match locks.acquire(name).await {
                Ok(guard) => return guard,
                Err(error) => went_back(&error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    promptly("the lock", acquire).await.release().await.unwrap();
}

#[tokio::test]
async fn a_guard_is_lost_although_its_entry_came_back() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    Backups(&server).copy().await;
    locks
        .acquire("later")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    Backups(&server).restore_the_copy().await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    acquires(&short(server.endpoint()).await, "a").await;
}

/// A server lets a request wait until it has come as far as it was when it made the token: after a
/// rollback perhaps never.
#[tokio::test]
async fn a_token_from_before_is_replaced() {
    let options = EtcdOptions::new()
        .own()
        .with_root_password(PASSWORD)
        .with_argument("--bcrypt-cost=4");
    let server = or_skip!(servers::etcd(options));
    Backups(&server).copy().await;
    let user = ConnectOptions::new().with_user("root", PASSWORD);
    writes(
        &Operator(
            Client::connect([server.endpoint()], Some(user))
                .await
                .unwrap(),
        ),
        50,
    )
    .await;
    let locks = builder(server.endpoint())
        .with_ttl(TTL)
        .with_credentials("root", PASSWORD)
        .connect()
        .await
        .unwrap();
    Backups(&server).restore_the_copy().await;
    let acquire = async {
        loop {
            if let Ok(guard) = locks.acquire("a").await {
                return guard;
            }
        }
    };
    promptly("the lock", acquire).await.release().await.unwrap();
}

/// Its lease is there again, and is renewed: that tells it nothing.
#[tokio::test]
async fn no_two_guards_are_valid_although_the_token_of_the_holder_is_from_before() {
    let options = EtcdOptions::new()
        .own()
        .with_root_password(PASSWORD)
        .with_argument("--bcrypt-cost=4");
    let server = or_skip!(servers::etcd(options));
    let user = ConnectOptions::new().with_user("root", PASSWORD);
    let operator = Operator(
        Client::connect([server.endpoint()], Some(user))
            .await
            .unwrap(),
    );
    // The log of the restored store begins anew, so that it is behind what it was when it made the
    // tokens.
    writes(&operator, 50).await;
    let connect = || {
        builder(server.endpoint())
            .with_ttl(TTL)
            .with_credentials("root", PASSWORD)
            .connect()
    };
    let locks = connect().await.unwrap();
    let other = connect().await.unwrap();
    Backups(&server).snapshot_by("root", PASSWORD);
    let guard = locks.acquire("a").await.unwrap();
    until("it is watched", || async {
        Metrics::of(&server).await.watchers() == 1
    })
    .await;
    assert!(other.try_acquire("a").await.unwrap().is_none());
    Backups(&server).restore_the_snapshot(SAME_CLUSTER).await;
    let acquired = async {
        loop {
            if let Ok(guard) = other.acquire("a").await {
                return guard;
            }
        }
    };
    let theirs = promptly("the lock", acquired).await;
    assert_ne!(guard.state(), GuardState::Held);
    assert_eq!(theirs.state(), GuardState::Held);
}

#[tokio::test]
async fn a_lock_released_after_the_backup_is_free_again_although_its_client_lives() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    Backups(&server).copy().await;
    guard.release().await.unwrap();
    Backups(&server).restore_the_copy().await;
    // Its lease would keep it for ten minutes, and nobody asks its client for anything.
    let other = short(server.endpoint()).await;
    assert!(other.try_acquire("a").await.unwrap().is_none());
    acquires(&other, "a").await;
    drop(locks);
}

#[tokio::test]
async fn a_lock_released_after_the_backup_can_be_acquired_by_its_old_client() {
    let server = or_skip!(own());
    let locks = short(server.endpoint()).await;
    let guard = locks.acquire("a").await.unwrap();
    Backups(&server).snapshot();
    guard.release().await.unwrap();
    Backups(&server).restore_the_snapshot(SAME_CLUSTER).await;
    acquires(&locks, "a").await;
    let errors = [
        locks.acquire("a").await.err(),
        locks.try_acquire("a").await.err(),
    ];
    assert!(
        errors.iter().all(Option::is_none),
        "once is enough: {errors:?}"
    );
}

/// Somebody else notices first, and the lease is granted by a store that is known to have gone
/// back.
#[tokio::test]
async fn who_had_to_ask_again_for_a_lease_does_not_get_a_guard_that_is_lost() {
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = short(proxy.address()).await;
    Backups(&server).copy().await;
    locks.acquire("a").await.unwrap().release().await.unwrap();
    proxy.set(Trouble::Refuse);
    let waiters: Vec<_> = (20..28)
        .map(|ttl| {
            let locks = locks.clone();
            let name = name(&format!("with-{ttl}"));
            let options = AcquireOptions::new().with_ttl(Duration::from_secs(ttl));
            tokio::spawn(async move { locks.acquire_with(&name, options).await })
        })
        .collect();
    Backups(&server).restore_the_copy().await;
    proxy.set(Trouble::None);
    went_back(&locks.inspect(&name("a")).await.unwrap_err());
    for waiter in waiters {
        match promptly("an answer", waiter).await.unwrap() {
            Ok(guard) => assert_eq!(guard.state(), GuardState::Held),
            Err(error) => went_back(&error),
        }
    }
}

#[tokio::test]
async fn a_waiter_of_a_store_that_went_back_is_told_and_reads_seldom() {
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = short(server.endpoint()).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    // Its opening tells the holder a revision, which must be in the snapshot.
    until("the holder's watch", || async {
        Metrics::of(&server).await.watchers() == 1
    })
    .await;
    Backups(&server).snapshot();
    writes(&operator, 20).await;
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    Backups(&server).restore_the_snapshot(SAME_CLUSTER).await;
    went_back(&waiter.outcome().await.unwrap_err());
    let error = locks.try_acquire("b").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    acquires(&locks, "b").await;
    // Nothing is lost of what its holder knows.
    assert_eq!(guard.state(), GuardState::Held);
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    guard.release().await.unwrap();
    acquires(&locks, "a").await;
    // Counted since the start of the restored server.
    let reads = Metrics::of(&server).await.received("Range");
    assert!(reads < 100, "{reads} reads");
}

/// While a client hears nothing the store goes back, and on beyond what the client has seen.
#[tokio::test]
async fn a_rollback_that_went_unseen_does_not_block_a_lock() {
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = builder(proxy.address())
        .with_ttl(TTL)
        .connect()
        .await
        .unwrap();
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    Backups(&server).snapshot();
    guard.release().await.unwrap();
    proxy.set(Trouble::Refuse);
    Backups(&server).restore_the_snapshot(SAME_CLUSTER).await;
    writes(&operator, 20).await;
    proxy.set(Trouble::None);
    let error = locks.acquire("a").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    assert!(
        error.to_string().contains("went back") && error.to_string().contains("`a/"),
        "{error}"
    );
    let again = promptly("the lock", locks.acquire("a")).await.unwrap();
    assert_eq!(
        operator.entries("a").await.len(),
        1,
        "the entry of before is gone"
    );
    again.release().await.unwrap();
}

#[tokio::test]
async fn no_two_guards_are_valid_although_the_holder_hears_nothing() {
    const LONGER: Duration = Duration::from_secs(6);
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let silent = builder(proxy.address())
        .with_ttl(LONGER)
        .connect()
        .await
        .unwrap();
    let other = builder(server.endpoint())
        .with_ttl(LONGER)
        .connect()
        .await
        .unwrap();
    Backups(&server).copy().await;
    let guard = silent.acquire("a").await.unwrap();
    assert!(other.try_acquire("a").await.unwrap().is_none());
    proxy.set(Trouble::Blackhole);
    Backups(&server).restore_the_copy().await;
    let acquired = async {
        loop {
            match other.acquire("a").await {
                Ok(theirs) => return theirs,
                Err(error) => went_back(&error),
            }
        }
    };
    let theirs = promptly("the lock", acquired).await;
    assert_ne!(
        guard.state(),
        GuardState::Held,
        "tokens {:?} and {:?}",
        guard.token(),
        theirs.token()
    );
    assert_eq!(theirs.state(), GuardState::Held);
}

#[tokio::test]
async fn a_snapshot_restored_as_the_same_or_as_another_cluster_is_noticed() {
    for token in [SAME_CLUSTER, "another"] {
        let server = or_skip!(own());
        let locks = client(&server).await;
        let operator = Operator::of(&server).await;
        let guard = locks.acquire("a").await.unwrap();
        Backups(&server).snapshot();
        writes(&operator, 3).await;
        let later = locks.acquire("later").await.unwrap();
        Backups(&server).restore_the_snapshot(token).await;
        for lost in [guard.lost(), later.lost()] {
            assert_eq!(promptly("the loss", lost).await, LossReason::Removed);
        }
        acquires(&short(server.endpoint()).await, "a").await;
    }
}

#[tokio::test]
async fn another_cluster_is_noticed_although_it_is_not_behind() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    writes(&operator, 20).await;
    Backups(&server).snapshot();
    Backups(&server).restore_the_snapshot("another").await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    acquires(&short(server.endpoint()).await, "a").await;
}

#[tokio::test]
async fn an_emptied_store_and_one_that_a_single_member_leads_anew_are_noticed() {
    let server: Server = or_skip!(servers::etcd(
        EtcdOptions::new()
            .own()
            .with_argument("--force-new-cluster")
    ));
    let first = client(&server).await;
    let guard = first.acquire("a").await.unwrap();
    Backups(&server).copy().await;
    first.acquire("b").await.unwrap().release().await.unwrap();
    Backups(&server).restore_the_copy().await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    let second = client(&server).await;
    let guard = promptly("the lock", second.acquire("a")).await.unwrap();
    Backups(&server).clear();
    server.start().await.unwrap();
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    acquires(&short(server.endpoint()).await, "a").await;
}

#[tokio::test]
async fn guards_with_leases_of_their_own_are_lost_too() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let options = AcquireOptions::new().with_max_hold(Duration::from_secs(300));
    let guard = locks.acquire_with(&name("a"), options).await.unwrap();
    Backups(&server).copy().await;
    locks.acquire("b").await.unwrap().release().await.unwrap();
    Backups(&server).restore_the_copy().await;
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    operator.until_entries("a", 0).await;
}
