//! Every operation once, on a lock of its own.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use polylock::{
    AcquireOptions, Capabilities, DistributedLock, DistributedLockExt, ErrorKind, LockError,
    LockGuard,
};

use super::report::{Report, time};

/// Longest wait for a hand-over.
const LIMIT: Duration = Duration::from_secs(10);

/// Cycles whose median is shown.
const CYCLES: usize = 20;

pub(super) async fn examine(
    locks: &dyn DistributedLock,
    capabilities: &Capabilities,
    probe: &str,
    report: &mut Report,
) {
    let acquired = locks.try_acquire(probe);
    let Some(guard) = tried(report, "acquire", acquired).await.flatten() else {
        return;
    };
    tried(report, "renew", guard.extend()).await;
    if capabilities.inspect {
        tried(report, "inspect", locks.inspect(probe)).await;
    }
    if capabilities.watch {
        let first = async { locks.watch(probe).await?.next().await.transpose() };
        tried(report, "watch", first).await;
    }
    if capabilities.list {
        let first = async { locks.list(probe).await?.next().await.transpose() };
        tried(report, "list", first).await;
    }
    if capabilities.raise_token
        && let Some(token) = guard.token()
    {
        tried(report, "raise token", guard.raise_token(token)).await;
    }
    let Some(guard) = hand_over(locks, guard, probe, report).await else {
        return;
    };
    if capabilities.force_release {
        let taken = locks.force_release_from(probe, guard.owner());
        tried(report, "force release", taken).await;
        drop(guard);
    } else {
        tried(report, "release", guard.release()).await;
    }
    cycles(locks, probe, report).await;
}

async fn tried<T>(
    report: &mut Report,
    operation: &str,
    call: impl Future<Output = Result<T, LockError>>,
) -> Option<T> {
    let began = Instant::now();
    match call.await {
        Ok(value) => {
            report.good(operation, format!("in {}", time(began.elapsed())));
            Some(value)
        }
        Err(error) => {
            let permission = match error.kind() {
                ErrorKind::PermissionDenied => "missing permission: ",
                _ => "",
            };
            report.bad(operation, format!("{permission}{error}"));
            None
        }
    }
}

/// Gives the lock to a waiter, whose guard it returns.
async fn hand_over(
    locks: &dyn DistributedLock,
    guard: LockGuard,
    probe: &str,
    report: &mut Report,
) -> Option<LockGuard> {
    let options = AcquireOptions::new().with_timeout(LIMIT);
    let wait = locks.acquire_with(probe, options);
    let release = async {
        // The waiter asks first.
        tokio::task::yield_now().await;
        let released = guard.release().await;
        (Instant::now(), released)
    };
    let (acquired, (freed, released)) = tokio::join!(wait, release);
    if let Err(error) = released {
        report.bad("release", error.to_string());
    }
    match acquired {
        Ok(next) => {
            report.good("hand-over", format!("in {}", time(freed.elapsed())));
            Some(next)
        }
        Err(error) => {
            report.bad("hand-over", error.to_string());
            None
        }
    }
}

async fn cycles(locks: &dyn DistributedLock, probe: &str, report: &mut Report) {
    let mut times = Vec::with_capacity(CYCLES);
    for _ in 0..CYCLES {
        let began = Instant::now();
        let cycle = async { locks.acquire(probe).await?.release().await };
        if let Err(error) = cycle.await {
            return report.bad("latency", error.to_string());
        }
        times.push(began.elapsed());
    }
    times.sort();
    let [median, worst] = [CYCLES / 2, CYCLES - 1].map(|at| time(times[at]));
    report.good(
        "latency",
        format!("acquire and release: median {median}, worst of {CYCLES} {worst}"),
    );
}
