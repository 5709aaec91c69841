use super::*;
use crate::{AcquireOptions, Capabilities, Consistency, LossReason};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const TTL: Duration = Duration::from_secs(30);

/// Renews the leases that it is given, or never answers.
#[derive(Debug, Default)]
struct Store {
    frozen: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

#[async_trait]
impl Renewer for Store {
    type Item = ();

    async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
        self.calls.fetch_add(1, SeqCst);
        if self.frozen.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        batch.iter().map(|_| RenewOutcome::Renewed(TTL)).collect()
    }
}

fn terms() -> Terms {
    AcquireOptions::new()
        .resolve(&Capabilities::new("test", Consistency::BestEffort), TTL)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn keeps_a_thousand_leases_with_few_calls() {
    let store = Store::default();
    let calls = Arc::clone(&store.calls);
    let keeper = LeaseKeeper::new(Clock::Tokio, store, Tasks::current());
    let now = Clock::Tokio.now();
    let kept: Vec<_> = (0..1000)
        .map(|_| keeper.register(Arc::new(()), now, TTL, &terms()))
        .collect();
    tokio::time::sleep(TTL * 4).await;
    assert!(kept.iter().all(|(lease, _)| lease.deadline().is_ok()));
    let calls = calls.load(SeqCst);
    assert!(
        (40..=60).contains(&calls),
        "{calls} calls for 11 or 12 rounds of 4 batches"
    );
    drop(kept);
    assert_eq!(keeper.registered(), 0);
}

/// Notes when it is asked.
#[derive(Debug, Default)]
struct Noting(Arc<Mutex<Vec<Moment>>>);

#[async_trait]
impl Renewer for Noting {
    type Item = ();

    async fn renew(&self, batch: &[Arc<()>]) -> Vec<RenewOutcome> {
        locked(&self.0).push(Clock::Tokio.now());
        batch.iter().map(|_| RenewOutcome::Renewed(TTL)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_begin_together_do_not_stay_together() {
    const CLIENTS: usize = 20;
    let asked = Arc::<Mutex<Vec<_>>>::default();
    let start = Clock::Tokio.now();
    let client = |_| {
        let keeper = LeaseKeeper::new(Clock::Tokio, Noting(Arc::clone(&asked)), Tasks::current());
        (keeper.register(Arc::new(()), start, TTL, &terms()), keeper)
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    tokio::time::sleep(TTL * 2).await;
    let asked = locked(&asked);
    let last = &asked[asked.len() - CLIENTS..];
    let spread = last[CLIENTS - 1].saturating_since(last[0]);
    assert!(spread > TTL / 60, "{spread:?}");
    assert!(
        clients
            .iter()
            .all(|((lease, _), _)| lease.deadline().is_ok())
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_loses_the_lease_at_its_deadline() {
    let store = Store::default();
    let frozen = Arc::clone(&store.frozen);
    let keeper = LeaseKeeper::new(Clock::Tokio, store, Tasks::current());
    let start = Clock::Tokio.now();
    let (lease, _renewal) = keeper.register(Arc::new(()), start, TTL, &terms());
    tokio::time::sleep(TTL).await;
    let deadline = lease.deadline().unwrap();
    frozen.store(true, SeqCst);
    lease.ended().fired().await;
    assert_eq!(lease.deadline(), Err(LossReason::Expired));
    // Tokio's timers tick in milliseconds.
    assert!(Clock::Tokio.now().saturating_since(deadline) <= Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn the_driver_ends_with_its_last_keep() {
    let tasks = Tasks::current();
    let keeper = LeaseKeeper::new(Clock::Tokio, Store::default(), tasks.clone());
    let (_, renewal) = keeper.register(Arc::new(()), Clock::Tokio.now(), TTL, &terms());
    drop(keeper);
    assert_eq!(tasks.running(), 1);
    drop(renewal);
    tasks.idle().await;
}

fn paused_runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn leases_live_on_when_one_of_their_runtimes_ends() {
    let tasks = Tasks::anywhere();
    let now = Clock::Tokio.now();
    let keeper = LeaseKeeper::new(Clock::Tokio, Store::default(), tasks.clone());
    let short = paused_runtime();
    let long = paused_runtime();
    let renewal = async || keeper.register(Arc::new(()), now, TTL, &terms());
    let first = short.block_on(renewal());
    let second = long.block_on(renewal());
    let third = long.block_on(renewal());
    assert_eq!(tasks.running(), 2, "one on each runtime");
    drop(short);
    assert_eq!(tasks.running(), 1);
    long.block_on(async { tokio::time::sleep(TTL * 4).await });
    assert!(
        [&first, &second, &third]
            .iter()
            .all(|(lease, _)| lease.deadline().is_ok())
    );
}

#[test]
fn a_renewal_that_ends_with_its_runtime_is_retried_on_another() {
    let store = Store::default();
    let now = Clock::Tokio.now();
    let frozen = Arc::clone(&store.frozen);
    let calls = Arc::clone(&store.calls);
    let keeper = LeaseKeeper::new(Clock::Tokio, store, Tasks::anywhere());
    let renewal = async |ttl| {
        let kept = keeper.register(Arc::new(()), now, ttl, &terms());
        tokio::time::sleep(Duration::from_millis(1)).await;
        kept
    };
    let short = paused_runtime();
    let long = paused_runtime();
    frozen.store(true, SeqCst);
    let (lease, _renewal) = short.block_on(renewal(TTL));
    short.block_on(async { tokio::time::sleep(TTL / 3).await });
    assert_eq!(calls.load(SeqCst), 1);
    // The task there now waits for nothing but the renewal's outcome and what is due long
    // after.
    let _other = long.block_on(renewal(TTL * 10));
    drop(short);
    frozen.store(false, SeqCst);
    long.block_on(async { tokio::time::sleep(TTL * 2).await });
    assert!(lease.deadline().is_ok());
}
