//! Trouble on the way to the server: lost replies, cut and silent connections, a frozen server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use etcd_client::PutOptions;
use lock_conformance::servers::{TcpProxy, Trouble};
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockGuard,
    LossReason, RetryAdvice,
};
use lock_etcd::EtcdLock;

mod common;
use common::{
    Operator, Waiter, address, behind, builder, client, name, own, promptly, until, works,
};

#[tokio::test]
async fn an_acquire_whose_reply_was_lost_finds_its_own_entry() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let operator = Operator::of(&server).await;
    let baseline = locks.residue();
    proxy.set(Trouble::DropReplies);
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 1).await;
    proxy.set(Trouble::None);
    let guard = waiter.granted().await;
    let entries = operator.entries("a").await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(
        entries[0]
            .key
            .ends_with(guard.owner().as_str().split('@').next().unwrap())
    );
    assert!(guard.token().unwrap().as_u64() >= entries[0].created.unsigned_abs());
    guard.release().await.unwrap();
    operator.until_clean("a", &locks, baseline).await;
}

#[tokio::test]
async fn a_try_whose_reply_was_lost_is_not_taken_for_somebody_elses_lock() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let operator = Operator::of(&server).await;
    proxy.set(Trouble::DropReplies);
    let attempt = tokio::spawn({
        let locks = locks.clone();
        async move { locks.try_acquire("a").await }
    });
    operator.until_entries("a", 1).await;
    proxy.set(Trouble::None);
    let guard = promptly("the attempt", attempt)
        .await
        .unwrap()
        .unwrap()
        .expect("it made the entry itself");
    assert_eq!(operator.entries("a").await.len(), 1);
    guard.release().await.unwrap();
    operator.until_entries("a", 0).await;
}

#[tokio::test]
async fn an_acquire_that_never_heard_back_is_indeterminate_and_undone() {
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = builder(proxy.address())
        .with_request_timeout(Duration::from_millis(600))
        .connect()
        .await
        .unwrap();
    let operator = Operator::of(&server).await;
    let baseline = locks.residue();
    proxy.set(Trouble::DropReplies);
    // An outage is put up with for one TTL.
    let options = AcquireOptions::new().with_ttl(Duration::from_secs(3));
    let error = Waiter::start_with(&locks, "a", options)
        .outcome()
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    assert!(
        error.is_indeterminate() && error.to_string().contains(&proxy.address().to_string()),
        "{error}"
    );
    // Requests get through: the clean-up too takes effect without a reply.
    operator.until_entries("a", 0).await;
    proxy.set(Trouble::None);
    operator.until_clean("a", &locks, baseline).await;
    works(&locks).await;
}

#[tokio::test]
async fn a_release_whose_reply_was_lost_succeeds() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let operator = Operator::of(&server).await;
    let baseline = locks.residue();
    let guard = locks.acquire("a").await.unwrap();
    proxy.set(Trouble::DropReplies);
    let release = tokio::spawn(guard.release());
    operator.until_entries("a", 0).await;
    // Somebody else's lock, which the repeated release must leave alone.
    let theirs = client(&server).await.acquire("a").await.unwrap();
    proxy.set(Trouble::None);
    promptly("the release", release).await.unwrap().unwrap();
    assert_eq!(
        (operator.entries("a").await.len(), theirs.state()),
        (1, GuardState::Held)
    );
    theirs.release().await.unwrap();
    operator.until_clean("a", &locks, baseline).await;
}

#[tokio::test]
async fn a_grant_whose_reply_was_lost_leaves_no_second_lease() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let operator = Operator::of(&server).await;
    let before = operator.leases().await;
    proxy.set(Trouble::DropReplies);
    // Without renewal, an acquisition has a lease of its own.
    let waiter = Waiter::start_with(&locks, "a", AcquireOptions::new().without_renewal());
    until("the lease", || async {
        operator.leases().await == before + 1
    })
    .await;
    proxy.set(Trouble::None);
    let guard = waiter.granted().await;
    assert_eq!(operator.leases().await, before + 1);
    guard.release().await.unwrap();
    until("no lease of its own", || async {
        operator.leases().await == before
    })
    .await;
}

#[tokio::test]
async fn a_grant_that_is_given_up_or_never_answered_leaves_no_lease() {
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = builder(proxy.address())
        .with_request_timeout(Duration::from_millis(600))
        .connect()
        .await
        .unwrap();
    let operator = Operator::of(&server).await;
    let before = operator.leases().await;
    let baseline = locks.residue();
    for give_up in [true, false] {
        proxy.set(Trouble::DropReplies);
        let waiter = Waiter::start_with(
            &locks,
            "a",
            AcquireOptions::new()
                .without_renewal()
                .with_ttl(Duration::from_secs(3)),
        );
        until("the lease", || async {
            operator.leases().await == before + 1
        })
        .await;
        if give_up {
            waiter.give_up().await;
        } else {
            let error = waiter.outcome().await.unwrap_err();
            assert!(
                error.kind() == ErrorKind::Unavailable && error.is_indeterminate(),
                "{error}"
            );
        }
        until("the lease is revoked", || async {
            operator.leases().await == before
        })
        .await;
        proxy.set(Trouble::None);
        operator.until_clean("a", &locks, baseline).await;
    }
}

#[tokio::test]
async fn a_waiter_gets_what_was_released_while_its_stream_was_broken() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    for round in 0..3 {
        let guard = holder.acquire("a").await.unwrap();
        let waiter = Waiter::start(&locks, "a");
        operator.until_entries("a", 2).await;
        proxy.set(Trouble::Refuse);
        guard.release().await.unwrap();
        // Unrelated history, so that no revision that the client knows is the current one.
        operator.put("other", vec![round]).await.unwrap();
        proxy.set(Trouble::None);
        waiter.granted().await.release().await.unwrap();
    }
}

#[tokio::test]
async fn cut_connections_lose_neither_the_place_nor_the_lock() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let other = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let first = Waiter::start(&other, "a");
    let second = async {
        operator.until_entries("a", 2).await;
        Waiter::start(&locks, "a")
    };
    let second = second.await;
    operator.until_entries("a", 3).await;
    let before = operator.entries("a").await;
    proxy.cut().await;
    assert_eq!(guard.state(), GuardState::Held);
    guard.release().await.unwrap();
    let guard = first.granted().await;
    proxy.cut().await;
    assert!(second.is_pending());
    assert_eq!(operator.entries("a").await, before[1..]);
    guard.release().await.unwrap();
    second.granted().await.release().await.unwrap();
}

#[tokio::test]
async fn a_holder_learns_of_a_removal_while_its_stream_was_broken() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    proxy.set(Trouble::Refuse);
    operator.delete(&operator.entries("a").await[0].key).await;
    proxy.set(Trouble::None);
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Removed
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_waiter_on_a_silent_member_moves_to_another_one() {
    let server = or_skip!(own());
    let one = TcpProxy::start(address(&server)).await.unwrap();
    let two = TcpProxy::start(address(&server)).await.unwrap();
    let endpoints = [one.address().to_string(), two.address().to_string()];
    let locks = EtcdLock::builder(endpoints)
        .with_ttl(common::NEVER)
        .connect()
        .await
        .unwrap();
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    // Whichever it talks to, one of the rounds silences that one.
    for silenced in [&one, &two] {
        let guard = holder.acquire("a").await.unwrap();
        let waiter = Waiter::start(&locks, "a");
        operator.until_entries("a", 2).await;
        silenced.set(Trouble::Blackhole);
        guard.release().await.unwrap();
        waiter.granted().await.release().await.unwrap();
        silenced.set(Trouble::None);
    }
}

#[tokio::test]
async fn a_silent_network_ends_without_a_trace() {
    let server = or_skip!(own());
    let (proxy, locks) = behind(&server).await;
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    let baseline = locks.residue();
    let guard = holder.acquire("a").await.unwrap();
    let waiter = Waiter::start(&locks, "a");
    operator.until_entries("a", 2).await;
    proxy.set(Trouble::Blackhole);
    guard.release().await.unwrap();
    waiter.give_up().await;
    assert_eq!(
        operator.entries("a").await.len(),
        1,
        "nobody can have removed it"
    );
    proxy.set(Trouble::None);
    operator.until_clean("a", &locks, baseline).await;
}

#[tokio::test]
async fn acquires_given_up_while_the_server_is_frozen_leave_nothing() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    works(&locks).await;
    let baseline = locks.residue();
    for wait_limit in [1, 20, 300] {
        server.freeze().unwrap();
        let impatient = AcquireOptions::new().with_timeout(Duration::from_millis(wait_limit));
        let error = locks.acquire_with(&name("a"), impatient).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        server.thaw().unwrap();
        // A later request on the same connection: whatever was under way has taken effect by then.
        works(&locks).await;
        operator.until_entries("a", 0).await;
    }
    let guard = promptly("the name", locks.try_acquire("a"))
        .await
        .unwrap()
        .expect("nobody holds it");
    guard.release().await.unwrap();
    until("the client's baseline", || async {
        locks.residue() <= baseline
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_that_is_dropped_leaves_no_lease() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    // Looks at the shutdown once.
    let _ = tokio::time::timeout(Duration::ZERO, locks.shutdown()).await;
    until("no lease", || async { operator.leases().await == 0 }).await;
    assert!(guard.is_lost() && locks.acquire("a").await.is_err());
}

/// A client that has a lock on `held`, and then one on `a` whose first request is stuck on its way
/// to one member and was made again on another.
async fn stuck_on_the_way([first, second]: [&TcpProxy; 2]) -> (EtcdLock, LockGuard, LockGuard) {
    second.set(Trouble::Refuse);
    let addresses = [first, second].map(|proxy| proxy.address().to_string());
    let locks = EtcdLock::builder(addresses)
        .with_ttl(common::NEVER)
        .with_request_timeout(Duration::from_secs(3))
        .connect()
        .await
        .unwrap();
    let held = locks.acquire("held").await.unwrap();
    second.set(Trouble::None);
    first.set(Trouble::Blackhole);
    let guard = promptly("the lock", locks.acquire("a")).await.unwrap();
    (locks, held, guard)
}

/// However late: a frozen member carries out what it had received when it goes on.
#[tokio::test]
async fn a_request_that_arrives_after_its_session_has_ended_blocks_nobody() {
    let server = or_skip!(own());
    let one = TcpProxy::start(address(&server)).await.unwrap();
    let two = TcpProxy::start(address(&server)).await.unwrap();
    let (locks, held, guard) = stuck_on_the_way([&one, &two]).await;
    let operator = Operator::of(&server).await;
    let lease = operator.entries("a").await[0].lease;
    held.release().await.unwrap();
    guard.release().await.unwrap();
    until("the session in doubt has ended", || async {
        !operator.has_lease(lease).await
    })
    .await;
    one.set(Trouble::None);
    for _ in 0..20 {
        locks
            .try_acquire("a")
            .await
            .unwrap()
            .expect("nobody holds it")
            .release()
            .await
            .unwrap();
    }
    operator.until_entries("a", 0).await;
}

#[tokio::test]
async fn an_entry_that_comes_late_is_removed_while_its_session_lives_on() {
    let server = or_skip!(own());
    let one = TcpProxy::start(address(&server)).await.unwrap();
    let two = TcpProxy::start(address(&server)).await.unwrap();
    let (locks, held, guard) = stuck_on_the_way([&one, &two]).await;
    let operator = Operator::of(&server).await;
    let entry = operator.entries("a").await.remove(0);
    assert_eq!(entry.lease, operator.entries("held").await[0].lease);
    guard.release().await.unwrap();
    operator.until_entries("a", 0).await;
    for _ in 0..2 {
        // Makes the change that the late request makes.
        let late = PutOptions::new().with_lease(entry.lease);
        operator
            .0
            .kv_client()
            .put(entry.key.as_str(), "", Some(late))
            .await
            .unwrap();
        promptly("somebody else's turn", client(&server).await.acquire("a"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert_eq!(held.state(), GuardState::Held);
    held.release().await.unwrap();
    until("the session in doubt has ended", || async {
        !operator.has_lease(entry.lease).await
    })
    .await;
    works(&locks).await;
}

#[tokio::test]
async fn a_shutdown_ends_a_session_in_doubt_although_its_guard_is_kept() {
    let server = or_skip!(own());
    let one = TcpProxy::start(address(&server)).await.unwrap();
    let two = TcpProxy::start(address(&server)).await.unwrap();
    let (locks, held, guard) = stuck_on_the_way([&one, &two]).await;
    let operator = Operator::of(&server).await;
    let lease = operator.entries("held").await[0].lease;
    guard.release().await.unwrap();
    let shutdown = tokio::spawn({
        let locks = locks.clone();
        async move { locks.shutdown().await }
    });
    assert_eq!(
        promptly("the loss", held.lost()).await,
        LossReason::Shutdown
    );
    until("its lease is revoked", || async {
        !operator.has_lease(lease).await
    })
    .await;
    promptly("the shutdown", shutdown).await.unwrap().unwrap();
    drop(held);
    until("nothing of the client", || async { locks.residue() == 0 }).await;
}

/// However many leases there are, and whatever becomes of each.
#[tokio::test]
async fn a_shutdown_with_many_ttls_and_a_frozen_server_takes_no_longer_than_with_one() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let mut guards = Vec::new();
    for ttl in 600..611 {
        let options = AcquireOptions::new().with_ttl(Duration::from_secs(ttl));
        guards.push(
            locks
                .acquire_with(&name(&format!("a/{ttl}")), options.clone())
                .await
                .unwrap(),
        );
        guards.push(
            locks
                .acquire_with(&name(&format!("b/{ttl}")), options.without_renewal())
                .await
                .unwrap(),
        );
    }
    server.freeze().unwrap();
    let start = Instant::now();
    let shutdown = tokio::spawn(async move { locks.shutdown().await });
    for guard in &guards {
        assert_eq!(
            promptly("the loss", guard.lost()).await,
            LossReason::Shutdown
        );
    }
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "the guards were lost after {:?}",
        start.elapsed()
    );
    let error = shutdown.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    // One request without an answer, and not another one for what it would have removed.
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "the shutdown took {:?}",
        start.elapsed()
    );
    server.thaw().unwrap();
}

/// Events that are logged at the usual level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// However many guards there are, in an outage each is told of once: when it is lost.
#[tokio::test]
async fn an_outage_is_logged_once_and_each_loss_once() {
    const GUARDS: usize = 200;
    // With a subscriber for all threads no other test, which has none of its own, can have a log
    // statement cached as one that nobody listens to.
    let sink = tracing_subscriber::fmt().with_writer(std::io::sink);
    tracing::subscriber::set_global_default(sink.finish()).unwrap();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _subscribed = tracing::subscriber::set_default(subscriber);
    let server = or_skip!(own());
    let proxy = TcpProxy::start(address(&server)).await.unwrap();
    let locks = EtcdLock::builder([proxy.address().to_string()])
        .with_ttl(Duration::from_secs(3))
        .connect()
        .await
        .unwrap();
    let mut guards = Vec::new();
    let baseline = locks.residue();
    for lock in 0..GUARDS {
        guards.push(locks.acquire(&format!("a/{lock}")).await.unwrap());
    }
    proxy.set(Trouble::Refuse);
    for guard in &guards {
        promptly("the loss", guard.lost()).await;
    }
    // Their entries are gone with their lease.
    drop(guards);
    until("the end of all releases", || async {
        locks.residue() <= baseline
    })
    .await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let losses = text
        .lines()
        .filter(|line| line.contains("lock lost"))
        .count();
    assert_eq!(losses, GUARDS);
    assert!(text.lines().count() <= GUARDS + 5, "{text}");
}
