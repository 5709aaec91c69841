use std::{future::Future, time::Duration};

use crate::{
    ErrorKind, LockError, RetryAdvice,
    backend::{Entry, GuardSet, Lease, Pauses, WaitLimit},
};

/// Runs an acquire until its wait limit or its client ends; without a limit, until its client
/// does.
///
/// Dropping `acquire` must undo it: it is dropped when the time is up, before the error is made, so
/// that it can still say [who holds the lock](WaitLimit::held_by).
///
/// # Errors
///
/// Those of `acquire`; [`ErrorKind::TimedOut`] and [`ErrorKind::Unavailable`] as [`WaitLimit`]
/// defines them; [`ErrorKind::Shutdown`]; [`ErrorKind::Unavailable`] without a runtime, or if the
/// client's runtime has ended or does not run.
pub async fn bounded<T: Send>(
    guards: &GuardSet,
    wait_limit: Option<&WaitLimit>,
    acquire: impl Future<Output = Result<T, LockError>> + Send,
) -> Result<T, LockError> {
    guards.ensure_open()?;
    let over = async {
        match wait_limit {
            Some(wait_limit) => (wait_limit, wait_limit.over().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = guards.closing().fired() => Err(guards.ensure_open().err().unwrap_or_else(|| LockError::new(ErrorKind::Shutdown, "closing"))),
        outcome = acquire => match outcome {
            Ok(acquired) => Ok(acquired),
            Err(error) => Err(guards.tasks().explain(error).await),
        },
        (wait_limit, over) = over => Err(wait_limit.error(over)),
        stopped = guards.tasks().stopped() => Err(stopped),
    }
}

/// The first and the longest pause between two attempts to release.
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Releases until the store gives a definite answer, or nothing is left to release because the
/// lease has ended.
pub(crate) async fn release_until_definite(
    entry: &dyn Entry,
    lease: &Lease,
) -> Result<bool, LockError> {
    let mut pauses = Pauses::new(RELEASE_PAUSE, RELEASE_PAUSE_MAX);
    let mut doubtful = false;
    loop {
        let error = match entry.release().await {
            // An earlier attempt whose answer was lost has removed it.
            Ok(held) => return Ok(held || doubtful),
            Err(error) => error,
        };
        doubtful |= error.is_indeterminate();
        if error.retry() == RetryAdvice::Never || lease.deadline().is_err() {
            return Err(if doubtful {
                error.indeterminate()
            } else {
                error
            });
        }
        tokio::time::sleep(pauses.pause()).await;
    }
}
