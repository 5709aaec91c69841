//! Three members, of which some fail: a live holder keeps its lock, waiters move on, and calls do
//! not fail while a majority is there.
//!
//! A member's clock cannot be made to jump here. Programs that fake it, such as libfaketime,
//! replace functions of the C library, and etcd is written in Go, which asks the kernel itself; the
//! other ways need privileges. What a jump could change is in little danger: etcd keeps leases by
//! the monotonic clock of the leader, and our deadlines are on that of the client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{CompactionOptions, GetOptions};
use lock_conformance::servers::{self, EtcdCluster, EtcdOptions, Trouble};
use lock_core::{
    AcquireOptions, DistributedLock, DistributedLockExt, ErrorKind, GuardState, LockError,
    LockGuard, LockName, RetryAdvice,
};
use lock_etcd::EtcdLock;
use tokio::task::{JoinHandle, JoinSet};

mod common;
use common::members::{OutageProbe, client_on, operator};

/// Longer than any election here.
const TTL: Duration = Duration::from_secs(15);
/// Others that an election leaves time to renew, up to the default.
const OTHER_TTLS: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(9),
    Duration::from_secs(30),
];
/// Longer than any test: what happens before it did not happen because a lease ran out.
const NEVER: Duration = Duration::from_secs(600);
/// Far beyond an election and a silent connection on a loaded machine.
const PROMPT: Duration = Duration::from_secs(60);

macro_rules! cluster_or_skip {
    () => {
        match servers::etcd_cluster(EtcdOptions::new(), 3) {
            Ok(cluster) => cluster,
            Err(skip) => {
                eprintln!("{skip}");
                return;
            }
        }
    };
}

async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PROMPT, future)
        .await
        .unwrap_or_else(|_| panic!("not within {PROMPT:?}: {what}"))
}

async fn eventually<R: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> R) {
    promptly(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

fn name(name: &str) -> LockName {
    name.parse().unwrap()
}

/// An acquire in a task of its own that is known to be in the store's queue.
async fn waiter(
    locks: &EtcdLock,
    name: &LockName,
    behind: u64,
) -> JoinHandle<Result<LockGuard, LockError>> {
    let client = locks.clone();
    let wanted = name.clone();
    let waiter =
        tokio::spawn(async move { client.acquire_with(&wanted, AcquireOptions::new()).await });
    eventually("the waiter is queued", || async {
        locks.inspect(name).await.unwrap().unwrap().waiters == Some(behind)
    })
    .await;
    waiter
}

/// Cycles on locks of their own that go on until they are stopped; the first error ends one.
struct Cyclers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: JoinSet<Result<(), LockError>>,
}

impl Cyclers {
    fn start<'a>(clients: impl IntoIterator<Item = &'a EtcdLock>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (at, locks) in clients.into_iter().enumerate() {
            let locks = locks.clone();
            let stop = Arc::clone(&stop);
            let done = Arc::clone(&done);
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    locks
                        .acquire(format!("cycler-{at}"))
                        .await?
                        .release()
                        .await?;
                    let guard = locks.try_acquire(format!("trier-{at}")).await?;
                    guard.expect("nobody else wants it").release().await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { stop, done, tasks }
    }

    /// Waits until every one of them, on average, has got on a good deal.
    async fn get_on(&self) {
        let goal = self.done.load(Ordering::Relaxed) + 20 * self.tasks.len() as u64;
        eventually("cycles go on", || async {
            self.done.load(Ordering::Relaxed) >= goal
        })
        .await;
    }

    async fn none_failed(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(outcome) = promptly("the last cycle", self.tasks.join_next()).await {
            outcome.unwrap().expect("a call failed");
        }
    }
}

/// A lock of each client for each of the other TTLs.
async fn hold_for_other_ttls(clients: &[EtcdLock]) -> Vec<(Duration, LockGuard)> {
    let mut held = Vec::new();
    for (at, locks) in clients.iter().enumerate() {
        for ttl in OTHER_TTLS {
            let name = name(&format!("held by {at} for {ttl:?}"));
            held.push((
                ttl,
                locks
                    .acquire_with(&name, AcquireOptions::new().with_ttl(ttl))
                    .await
                    .unwrap(),
            ));
        }
    }
    held
}

/// Asserts that the guards were renewed that could be.
async fn renewed_since(since: Instant, outage: OutageProbe, held: Vec<(Duration, LockGuard)>) {
    for (ttl, guard) in held {
        if guard.is_lost() && outage.excuses_loss(ttl) {
            eprintln!("lost: {guard:?}; {outage:?}");
            continue;
        }
        assert_eq!(guard.state(), GuardState::Held, "{guard:?}; {outage:?}");
        assert!(
            guard.remaining() + since.elapsed() > ttl,
            "not renewed for {:?}: {guard:?}",
            since.elapsed()
        );
        guard.release().await.unwrap();
    }
}

/// What every fault of a single member must leave as it is: who holds goes on holding, who waits
/// moves on, no call fails.
async fn a_fault_of_the_leader_is_hidden(
    disturb: impl Fn(&EtcdCluster, usize),
    mend: impl Fn(&EtcdCluster, usize),
    deposed: bool,
) {
    a_fault_is_hidden(cluster_or_skip!(), disturb, mend, deposed, false).await;
}

/// `harmful_end`: what happens when the fault ends is beyond us, and only recovery is asked for.
async fn a_fault_is_hidden(
    cluster: EtcdCluster,
    disturb: impl Fn(&EtcdCluster, usize),
    mend: impl Fn(&EtcdCluster, usize),
    deposed: bool,
    harmful_end: bool,
) {
    let leader = cluster.leader().await.unwrap();
    let follower = (leader + 1) % 3;
    let clients = [
        client_on(&cluster, leader, TTL).await,
        client_on(&cluster, follower, TTL).await,
    ];
    let names = [
        name("held by the leader's client"),
        name("held by the follower's client"),
    ];
    let mut held = Vec::new();
    let mut waiters = Vec::new();
    for (at, name) in names.iter().enumerate() {
        held.push(
            clients[at]
                .acquire_with(name, AcquireOptions::new())
                .await
                .unwrap(),
        );
        for (behind, client) in clients.iter().enumerate() {
            waiters.push(waiter(client, name, behind as u64 + 1).await);
        }
    }
    let of_other_ttls = hold_for_other_ttls(&clients).await;
    let mut cyclers = Cyclers::start(&clients);
    cyclers.get_on().await;

    let outage = OutageProbe::start(&cluster);
    disturb(&cluster, leader);
    if deposed {
        cluster.leader_other_than(leader).await.unwrap();
    }
    cyclers.get_on().await;
    // Past the TTL, so that only renewals since the fault can have kept the locks.
    let disturbed = Instant::now();
    eventually("a TTL has passed", || async {
        disturbed.elapsed() > TTL || held.iter().any(LockGuard::is_lost)
    })
    .await;
    for guard in &held {
        assert_eq!(guard.state(), GuardState::Held, "{guard:?}");
    }
    renewed_since(disturbed, outage, of_other_ttls).await;
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    for (guard, queue) in held.into_iter().zip(waiters.chunks_mut(2)) {
        let mut token = guard.token();
        guard.release().await.unwrap();
        for waiter in queue {
            let next = promptly("the next in the queue", waiter)
                .await
                .unwrap()
                .unwrap();
            assert!(next.token() > token);
            token = next.token();
            next.release().await.unwrap();
        }
    }
    cyclers.get_on().await;
    if harmful_end {
        cyclers.none_failed().await;
        mend(&cluster, leader);
        cluster.wait_healthy().await.unwrap();
        cyclers = Cyclers::start(&clients);
    } else {
        mend(&cluster, leader);
        cluster.wait_healthy().await.unwrap();
    }
    cyclers.get_on().await;
    cyclers.none_failed().await;
    nothing_is_left(&cluster, clients).await;
}

async fn nothing_is_left(cluster: &EtcdCluster, clients: impl IntoIterator<Item = EtcdLock>) {
    for locks in clients {
        promptly("the shutdown", locks.shutdown()).await.unwrap();
        assert_eq!(locks.residue(), 0, "{locks:?}");
    }
    let mut operator = operator(cluster, 0).await;
    let keys = operator
        .get("", Some(GetOptions::new().with_all_keys().with_keys_only()))
        .await
        .unwrap();
    assert_eq!(keys.count(), 0, "{:?}", keys.kvs());
    assert_eq!(operator.leases().await.unwrap().leases(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_killed() {
    a_fault_of_the_leader_is_hidden(
        |cluster, at| cluster.kill(at).unwrap(),
        |cluster, at| cluster.start(at).unwrap(),
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_paused() {
    let cluster = cluster_or_skip!();
    // Frozen for longer than the TTL: old servers take the locks away from live holders when they
    // go on.
    let harmful_end = cluster.thawed_leader_revokes().await.unwrap();
    a_fault_is_hidden(
        cluster,
        |cluster, at| cluster.freeze(at).unwrap(),
        |cluster, at| cluster.thaw(at).unwrap(),
        true,
        harmful_end,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_partitioned_from_its_peers() {
    a_fault_of_the_leader_is_hidden(
        |cluster, at| cluster.trouble_with_peers(at, Trouble::Blackhole),
        EtcdCluster::heal,
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_partitioned_from_clients() {
    a_fault_of_the_leader_is_hidden(
        |cluster, at| cluster.trouble_with_clients(at, Trouble::Blackhole),
        EtcdCluster::heal,
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_partitioned_from_all() {
    let cut = |cluster: &EtcdCluster, at| {
        cluster.trouble_with_peers(at, Trouble::Blackhole);
        cluster.trouble_with_clients(at, Trouble::Blackhole);
    };
    a_fault_of_the_leader_is_hidden(cut, EtcdCluster::heal, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_dead_and_not_one_of_10_000_cycles_fails() {
    const CYCLES: u64 = 10_000;
    const TASKS: u64 = 16;
    let cluster = cluster_or_skip!();
    let dead = (cluster.leader().await.unwrap() + 1) % 3;
    // One client meets the death, the other finds the member dead.
    let before = client_on(&cluster, dead, NEVER).await;
    cluster.kill(dead).unwrap();
    let after = EtcdLock::builder(cluster.endpoints())
        .with_ttl(NEVER)
        .connect()
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let locks = if task % 2 == 0 {
            before.clone()
        } else {
            after.clone()
        };
        tasks.spawn(async move {
            for _ in 0..CYCLES / TASKS {
                locks
                    .acquire(format!("name-{task}"))
                    .await?
                    .release()
                    .await?;
            }
            Ok::<_, LockError>(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap().expect("a call failed");
    }
    cluster.start(dead).unwrap();
    cluster.wait_healthy().await.unwrap();
    nothing_is_left(&cluster, [before, after]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_while_held_and_waiting() {
    let cluster = cluster_or_skip!();
    let holder = client_on(&cluster, 0, TTL).await;
    let other = client_on(&cluster, 2, TTL).await;
    let lock = name("restarts");
    let guard = holder
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    let queued = waiter(&other, &lock, 1).await;
    let cyclers = Cyclers::start([&holder, &other]);
    for member in 0..3 {
        cluster.kill(member).unwrap();
        cluster.start(member).unwrap();
        cluster.wait_healthy().await.unwrap();
        cyclers.get_on().await;
        assert_eq!(
            guard.state(),
            GuardState::Held,
            "after the restart of member {member}"
        );
        assert!(!queued.is_finished());
    }
    cyclers.none_failed().await;
    guard.release().await.unwrap();
    promptly("the waiter", queued)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_is_left(&cluster, [holder, other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_down_and_back_within_the_ttl() {
    const TTL: Duration = Duration::from_secs(60);
    let cluster = cluster_or_skip!();
    let holder = client_on(&cluster, 0, TTL).await;
    let other = client_on(&cluster, 1, TTL).await;
    let lock = name("outage");
    let guard = holder
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    let queued = waiter(&other, &lock, 1).await;
    for member in 0..3 {
        cluster.kill(member).unwrap();
    }
    let error = promptly("the error", other.try_acquire("another"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    for member in 0..3 {
        cluster.start(member).unwrap();
    }
    cluster.wait_healthy().await.unwrap();
    assert!(
        promptly("an answer", other.try_acquire(&lock))
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(guard.state(), GuardState::Held);
    assert!(!queued.is_finished(), "the wait outlasts the outage");
    guard.release().await.unwrap();
    promptly("the waiter", queued)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_is_left(&cluster, [holder, other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_and_defragmentation_while_waiting() {
    let cluster = cluster_or_skip!();
    let holder = client_on(&cluster, 0, NEVER).await;
    let other = client_on(&cluster, 1, NEVER).await;
    let lock = name("compacted");
    let guard = holder
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    let queued = waiter(&other, &lock, 1).await;
    let mut admin = operator(&cluster, 0).await;
    for round in 0..200 {
        admin
            .put("compacted/x/y", round.to_string(), None)
            .await
            .unwrap();
    }
    // The watch breaks, misses a history that is gone when it is opened again, and so must not ask
    // for it.
    cluster.trouble_with_clients(1, Trouble::Refuse);
    let removed = admin.delete("compacted/x/y", None).await.unwrap();
    let revision = removed.header().unwrap().revision();
    admin
        .compact(revision, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
    cluster.heal(1);
    for member in 0..3 {
        operator(&cluster, member).await.defragment().await.unwrap();
    }
    // A second one beneath open watches.
    let revision = admin
        .put("compacted/x/y", "", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    admin
        .compact(revision, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
    admin.delete("compacted/x/y", None).await.unwrap();
    assert!(!queued.is_finished() && guard.state() == GuardState::Held);
    guard.release().await.unwrap();
    promptly("the waiter", queued)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    nothing_is_left(&cluster, [holder, other]).await;
}

/// The waiter's watch is on a member that hears nothing any more; the release happens on the other
/// side.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_stale_member_does_not_strand_its_waiter() {
    let cluster = cluster_or_skip!();
    let leader = cluster.leader().await.unwrap();
    let stale = (leader + 1) % 3;
    let holder = client_on(&cluster, leader, NEVER).await;
    let other = client_on(&cluster, stale, NEVER).await;
    let lock = name("stale");
    let guard = holder
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    let queued = waiter(&other, &lock, 1).await;
    cluster.trouble_with_peers(stale, Trouble::Blackhole);
    guard.release().await.unwrap();
    promptly("the waiter", queued)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    // And the other way round: a holder whose watch is on the stale member learns of a forced
    // release.
    cluster.heal(stale);
    cluster.wait_healthy().await.unwrap();
    let guard = client_on(&cluster, stale, NEVER)
        .await
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    cluster.trouble_with_peers(stale, Trouble::Blackhole);
    assert!(!holder.force_release(&lock).await.unwrap().is_empty());
    promptly("the loss", guard.lost()).await;
    drop(guard);
    cluster.heal(stale);
    cluster.wait_healthy().await.unwrap();
    // Its client went with the guard, once that was released.
    let mut admin = operator(&cluster, leader).await;
    promptly("the end of its lease", async {
        while admin.leases().await.unwrap().leases().len() > 2 {}
    })
    .await;
    nothing_is_left(&cluster, [holder, other]).await;
}

/// A majority that is gone for longer than the TTL cannot be hidden.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_calls_say_so_and_guards_end_at_their_deadline() {
    const TTL: Duration = Duration::from_secs(5);
    let cluster = cluster_or_skip!();
    let holder = client_on(&cluster, 0, TTL).await;
    let other = client_on(&cluster, 0, TTL).await;
    let lock = name("minority");
    let guard = holder
        .acquire_with(&lock, AcquireOptions::new())
        .await
        .unwrap();
    let queued = waiter(&other, &lock, 1).await;
    cluster.kill(1).unwrap();
    cluster.kill(2).unwrap();
    let at_most = guard.remaining();
    let since = Instant::now();
    let error = promptly("an error", holder.acquire("x")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Later),
        "{error}"
    );
    assert!(error.to_string().contains("acquire `x` on etcd"), "{error}");
    promptly("the loss", guard.lost()).await;
    assert!(
        since.elapsed() + Duration::from_secs(1) > at_most,
        "lost before its deadline"
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    cluster.start(1).unwrap();
    cluster.start(2).unwrap();
    cluster.wait_healthy().await.unwrap();
    // The waiter's own lease may have ended in the outage, and it waits on with another; or it ends
    // just after the grant.
    match promptly("the waiter's end", queued).await.unwrap() {
        Ok(guard) => assert!(
            guard
                .release()
                .await
                .err()
                .is_none_or(|error| error.kind() == ErrorKind::Lost)
        ),
        Err(error) => assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, RetryAdvice::Later),
            "{error}"
        ),
    }
    nothing_is_left(&cluster, [holder, other]).await;
}
