//! Cost of locks to the server, by its own counters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_core::{AcquireOptions, DistributedLockExt, LockGuard};
use lock_etcd::EtcdLock;

mod common;
use common::{Operator, Waiter, client, metrics::Metrics, name, own, promptly, until, works};

/// A loaded machine may hold a lock for so long that its client looks after it: a few more
/// requests.
const FEW: u64 = 10;

#[tokio::test]
async fn an_uncontended_cycle_costs_two_requests() {
    const CYCLES: u64 = 200;
    let server = or_skip!(own());
    let locks = client(&server).await;
    let before = Metrics::of(&server).await;
    for cycle in 0..CYCLES {
        locks
            .acquire(format!("a/{cycle}"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        locks
            .try_acquire("b")
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    let after = Metrics::of(&server).await;
    let requests = after.all_received() - before.all_received();
    let transactions = after.received("Txn") - before.received("Txn");
    assert!(
        (4 * CYCLES..=4 * CYCLES + FEW).contains(&transactions),
        "{transactions} transactions"
    );
    assert!(requests <= transactions + FEW, "{requests} requests");
    assert_eq!(
        after.puts() - before.puts(),
        2 * CYCLES,
        "one entry for each acquisition"
    );
}

#[tokio::test]
async fn a_try_on_a_held_lock_costs_one_request_and_no_entry() {
    const TRIES: u64 = 200;
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    until("the holder's watch", || async {
        Metrics::of(&server).await.watchers() == 1
    })
    .await;
    let before = Metrics::of(&server).await;
    for _ in 0..TRIES {
        assert!(locks.try_acquire("a").await.unwrap().is_none());
    }
    let after = Metrics::of(&server).await;
    let requests = after.all_received() - before.all_received();
    assert!(
        (TRIES..=TRIES + FEW).contains(&requests),
        "{requests} requests"
    );
    assert_eq!(
        (after.puts(), after.watchers()),
        (before.puts(), before.watchers())
    );
    assert_eq!(operator.entries("a").await.len(), 1);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_thousand_names_are_kept_by_one_lease_and_one_stream() {
    const NAMES: usize = 1000;
    const TTL: Duration = Duration::from_secs(6);
    let server = or_skip!(own());
    let locks = EtcdLock::builder([server.endpoint()])
        .with_ttl(TTL)
        .connect()
        .await
        .unwrap();
    let operator = Operator::of(&server).await;
    let residue = locks.residue();
    let guards = futures_util::future::try_join_all(
        (0..NAMES).map(|number| locks.acquire(format!("n/{number}"))),
    )
    .await
    .unwrap();
    until("a watch for each", || async {
        Metrics::of(&server).await.watchers() == NAMES as u64
    })
    .await;
    let before = Metrics::of(&server).await;
    let start = Instant::now();
    until("two renewals", || async {
        Metrics::of(&server).await.received("LeaseKeepAlive")
            >= before.received("LeaseKeepAlive") + 2
    })
    .await;
    let after = Metrics::of(&server).await;
    // One in a third of the TTL, whatever the number of names.
    let most = start.elapsed().as_secs() / (TTL / 3).as_secs() + 2;
    let renewals = after.received("LeaseKeepAlive") - before.received("LeaseKeepAlive");
    assert!(
        renewals <= most,
        "{renewals} renewals in {:?}",
        start.elapsed()
    );
    assert_eq!((operator.leases().await, after.watch_streams()), (1, 1));
    assert_eq!(operator.below("n/").await.len(), NAMES);
    for released in futures_util::future::join_all(guards.into_iter().map(LockGuard::release)).await
    {
        released.unwrap();
    }
    assert!(operator.below("n/").await.is_empty());
    until("the baseline", || async {
        locks.residue() == residue && Metrics::of(&server).await.watchers() == 0
    })
    .await;
    assert_eq!(operator.leases().await, 1);
}

#[tokio::test]
async fn two_hundred_tasks_that_wait_for_a_name_share_one_watch() {
    const TASKS: usize = 200;
    let server = or_skip!(own());
    let holder = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let residue = locks.residue();
    let guard = holder.acquire("a").await.unwrap();
    until("the holder's watch", || async {
        Metrics::of(&server).await.watchers() == 1
    })
    .await;
    let waiters: Vec<_> = (0..TASKS).map(|_| Waiter::start(&locks, "a")).collect();
    operator.until_entries("a", TASKS + 1).await;
    // Those that come before the watch is open may have their own for a moment.
    until("one watch for all waiters", || async {
        Metrics::of(&server).await.watchers() == 2
    })
    .await;
    assert_eq!(operator.leases().await, 2);
    // Those that come later never do.
    let late: Vec<_> = (0..TASKS).map(|_| Waiter::start(&locks, "a")).collect();
    operator.until_entries("a", 2 * TASKS + 1).await;
    works(&locks).await;
    assert_eq!(Metrics::of(&server).await.watchers(), 2);
    let waiters: Vec<_> = waiters.into_iter().chain(late).collect();
    // Half of them give up, wherever they are in the queue.
    let (given_up, kept): (Vec<_>, Vec<_>) = waiters
        .into_iter()
        .enumerate()
        .partition(|(number, _)| number % 2 == 0);
    futures_util::future::join_all(given_up.into_iter().map(|(_, waiter)| waiter.give_up())).await;
    operator.until_entries("a", TASKS + 1).await;
    guard.release().await.unwrap();
    let served = kept
        .into_iter()
        .map(|(_, waiter)| async { waiter.granted().await.release().await.unwrap() });
    futures_util::future::join_all(served).await;
    assert!(operator.entries("a").await.is_empty());
    until("the baseline", || async {
        locks.residue() == residue && Metrics::of(&server).await.watchers() == 0
    })
    .await;
}

#[tokio::test]
async fn a_contended_cycle_costs_hardly_more_than_an_uncontended_one() {
    // Tasks of one process, tasks of several, and several processes with one each.
    for (processes, tasks) in [(1, 8), (4, 4), (16, 1)] {
        let server = or_skip!(own());
        let mut clients = Vec::new();
        for _ in 0..processes {
            clients.push(client(&server).await);
        }
        let contenders = clients
            .iter()
            .flat_map(|locks| (0..tasks).map(move |_| cycles(locks.clone())));
        let before = Metrics::of(&server).await;
        futures_util::future::join_all(contenders).await;
        let after = Metrics::of(&server).await;
        let cycles = (processes * tasks) as u64 * CYCLES;
        let requests = after.all_received() - before.all_received();
        println!(
            "{processes} processes with {tasks} tasks each: {requests} requests for {cycles} cycles"
        );
        assert!(
            requests * 10 <= cycles * 25,
            "{processes} processes with {tasks} tasks each: {requests} requests for {cycles} cycles"
        );
        let residue = || clients.iter().map(EtcdLock::residue).sum::<usize>();
        until("no watch left", || async {
            Metrics::of(&server).await.watchers() == 0
        })
        .await;
        let idle = client(&server).await.residue();
        until("the baseline", || async { residue() == processes * idle }).await;
    }
}

const CYCLES: u64 = 60;

async fn cycles(locks: EtcdLock) {
    for _ in 0..CYCLES {
        promptly("the lock", locks.acquire("a"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

/// Far behind others, tasks of one process do not each watch those before them.
#[tokio::test]
async fn tasks_that_wait_far_back_in_a_queue_share_their_watches() {
    const AHEAD: usize = 60;
    const TASKS: usize = 100;
    let server = or_skip!(own());
    let others = client(&server).await;
    let locks = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = others.acquire("a").await.unwrap();
    let ahead: Vec<_> = (0..AHEAD).map(|_| Waiter::start(&others, "a")).collect();
    operator.until_entries("a", 1 + AHEAD).await;
    until("the watches of those ahead", || async {
        Metrics::of(&server).await.watchers() == 2
    })
    .await;
    let waiters: Vec<_> = (0..TASKS).map(|_| Waiter::start(&locks, "a")).collect();
    operator.until_entries("a", 1 + AHEAD + TASKS).await;
    works(&locks).await;
    let watchers = Metrics::of(&server).await.watchers();
    assert!(watchers <= 2 + 3, "{watchers} watches");
    guard.release().await.unwrap();
    let served = ahead
        .into_iter()
        .chain(waiters)
        .map(|waiter| async { waiter.granted().await.release().await.unwrap() });
    futures_util::future::join_all(served).await;
}

/// However many processes wait, a release wakes those near the head, and the steady state needs few
/// messages.
#[tokio::test]
async fn a_release_in_a_long_queue_of_processes_wakes_a_few_of_them() {
    const PROCESSES: usize = 48;
    const ROUNDS: u64 = 12;
    let server = or_skip!(own());
    let mut clients = Vec::new();
    for _ in 0..PROCESSES {
        clients.push(client(&server).await);
    }
    let turns = |rounds: u64| {
        let takes_turns = |locks: &EtcdLock| {
            let locks = locks.clone();
            async move {
                for _ in 0..rounds {
                    promptly("the lock", locks.acquire("a"))
                        .await
                        .unwrap()
                        .release()
                        .await
                        .unwrap();
                }
            }
        };
        futures_util::future::join_all(clients.iter().map(takes_turns))
    };
    let before = Metrics::of(&server).await;
    turns(ROUNDS).await;
    let after = Metrics::of(&server).await;
    let cycles = PROCESSES as u64 * ROUNDS;
    let watch = after.sent("Watch") - before.sent("Watch");
    let received = after.all_received() - before.all_received();
    println!("{watch} messages of watches and {received} requests for {cycles} cycles");
    // The first and the last round are not like the others: nobody knows the others yet, and the
    // queue gets short.
    assert!(
        watch <= cycles * 20 && received <= cycles * 8,
        "{watch} messages of watches and {received} requests for {cycles} cycles"
    );
}

/// Nor does a release wake everybody where locks are held for long.
#[tokio::test]
async fn a_release_after_a_long_hold_wakes_a_few_of_those_who_wait() {
    const PROCESSES: usize = 40;
    const NEAR: u64 = 20;
    let server = or_skip!(own());
    let holder = client(&server).await;
    let operator = Operator::of(&server).await;
    let guard = holder.acquire("a").await.unwrap();
    let mut waiters = Vec::new();
    for _ in 0..PROCESSES {
        let locks = client(&server).await;
        waiters.push((Waiter::start(&locks, "a"), locks));
        operator.until_entries("a", 1 + waiters.len()).await;
    }
    // All who wait far back have had the patience to watch their own entries as well.
    until("their watches", || async {
        Metrics::of(&server).await.watchers() >= 1 + NEAR + 2 * (PROCESSES as u64 - NEAR)
    })
    .await;
    let before = Metrics::of(&server).await;
    guard.release().await.unwrap();
    let mut waiters = waiters.into_iter();
    let (first, _) = waiters.next().unwrap();
    let guard = first.granted().await;
    let after = Metrics::of(&server).await;
    let woken = after.events() - before.events();
    assert!(woken <= NEAR, "a release told {woken} of {PROCESSES}");
    // One that waits far back notices its eviction, and waits again; the others have their turn.
    let evicted = operator.entries("a").await.pop().unwrap();
    operator.delete(&evicted.key).await;
    until("its new entry", || async {
        operator
            .entries("a")
            .await
            .last()
            .is_some_and(|last| last.created > evicted.created)
    })
    .await;
    guard.release().await.unwrap();
    for (waiter, _) in waiters {
        waiter.granted().await.release().await.unwrap();
    }
}

/// Callers that leave before the store answers do not each have it grant a lease.
#[tokio::test]
async fn callers_that_leave_share_what_is_granted() {
    const CALLERS: u64 = 100;
    let server = or_skip!(own());
    for (at, options) in [
        AcquireOptions::new().with_ttl(TTL),
        AcquireOptions::new().without_renewal(),
    ]
    .into_iter()
    .enumerate()
    {
        let locks = client(&server).await;
        let operator = Operator::of(&server).await;
        let granted = Metrics::of(&server).await.received("LeaseGrant");
        let leases = operator.leases().await;
        server.freeze().unwrap();
        for _ in 0..CALLERS {
            let impatient = options.clone().with_timeout(Duration::from_millis(30));
            locks
                .acquire_with(&name(&format!("a/{at}")), impatient)
                .await
                .unwrap_err();
        }
        server.thaw().unwrap();
        let guard = promptly(
            "the lock",
            locks.acquire_with(&name(&format!("a/{at}")), options),
        )
        .await
        .unwrap();
        let granted = Metrics::of(&server).await.received("LeaseGrant") - granted;
        assert!(granted <= FEW, "{granted} grants for {CALLERS} callers");
        guard.release().await.unwrap();
        until("what nobody wants is revoked", || async {
            operator.leases().await <= leases + 1
        })
        .await;
    }
}

const TTL: Duration = Duration::from_secs(60);
