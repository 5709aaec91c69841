use std::{sync::Arc, time::Duration};

use lock_core::{
    ErrorKind, FencingToken, LockError, LockGuard, LockName, LossReason, Terms,
    backend::{Clock, Grant, WaitLimit},
};

use crate::{
    core::Core,
    held_entry::HeldEntry,
    pending_entry::PendingEntry,
    queue::{QueuePosition, WaitOutcome, Waiter},
    session::Sessions,
};

/// The pause after all the attempts of one request.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Acquires a lock, waiting for it and for the store as long as the limit allows.
pub(crate) async fn acquire(
    core: &Arc<Core>,
    name: &LockName,
    terms: &Terms,
    wait_limit: &Arc<WaitLimit>,
) -> Result<LockGuard, LockError> {
    let request = Arc::new((name.clone(), terms.clone()));
    let attempt = || {
        let core = Arc::clone(core);
        let request = Arc::clone(&request);
        let wait_limit = Arc::clone(wait_limit);
        async move { wait(&core, &request.0, &request.1, &wait_limit).await }
    };
    core.watchdog.run(terms.ttl, attempt).await
}

/// Acquires a lock if it is free.
pub(crate) async fn try_acquire(
    core: &Arc<Core>,
    name: &LockName,
    terms: &Terms,
) -> Result<Option<LockGuard>, LockError> {
    let request = Arc::new((name.clone(), terms.clone()));
    let attempt = || {
        let core = Arc::clone(core);
        let request = Arc::clone(&request);
        async move { try_once(&core, &request.0, &request.1).await }
    };
    core.watchdog.run(terms.ttl, attempt).await
}

/// Replaces the timeout of an acquire that waited because the store went back: it did not meet
/// contention.
pub(crate) fn explain(core: &Core, error: LockError) -> LockError {
    match ensure_unblocked(core) {
        Err(blocked) if error.kind() == ErrorKind::TimedOut => blocked,
        _ => error,
    }
}

async fn wait(
    core: &Arc<Core>,
    name: &LockName,
    terms: &Terms,
    wait_limit: &WaitLimit,
) -> Result<LockGuard, LockError> {
    let history = core.cluster.history();
    let known = history.known();
    loop {
        match wait_in_queue(core, name, terms, wait_limit).await {
            Ok(Some(guard)) => return Ok(guard),
            // The entry or its lease was lost during the wait, which goes on with a new entry.
            Ok(None) => {}
            // The store went back. That is no outage to sit out: the caller must know.
            Err(failure) if !history.continues(known) => return Err(failure),
            Err(failure) => {
                wait_limit.failed(failure)?;
                let pause = OUTAGE_PAUSE.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Waits with one entry. `None` if that, or its lease, is lost.
async fn wait_in_queue(
    core: &Arc<Core>,
    name: &LockName,
    terms: &Terms,
    wait_limit: &WaitLimit,
) -> Result<Option<LockGuard>, LockError> {
    if core.sessions.blocked_until().is_some() {
        // The store answers, and has told that it went back: this is no wait for an answer.
        wait_limit.answered();
        core.sessions.unblocked().await;
    }
    let session = core.sessions.session(terms).await?;
    let read = core.watchers.queue_read(name);
    let prefix = core.prefix(name);
    let pending = PendingEntry::enqueue(Arc::clone(&session), name, prefix, terms, read);
    let mut pending = match pending.await {
        Err(error) if error.kind() == ErrorKind::Lost => return Ok(None),
        pending => pending?,
    };
    wait_limit.answered();
    let position = std::mem::replace(&mut pending.position, QueuePosition::Unknown);
    if let QueuePosition::Head { revision } = position {
        return hold(core, pending, revision, terms).await;
    }
    if let QueuePosition::Near(snapshot) = &position
        && let Some((key, created)) = snapshot.entries.iter().min_by_key(|(_, created)| *created)
    {
        wait_limit.held_by(&pending.entry.prefix.owner(key, *created), None);
    }
    let mut waiter = NamesHolder {
        waiter: core.watchers.join(&pending.entry, position),
        wait_limit,
    };
    let outcome = tokio::select! {
        // A store that went back ends both, and the outcome says why.
        biased;
        outcome = waiter.waiter.outcome() => outcome?,
        () = session.lease().ended().fired() => return Ok(None),
    };
    // Waiters are known by their keys, so this one goes before its key may be used again.
    drop(waiter);
    match outcome {
        WaitOutcome::Granted { revision } => hold(core, pending, revision, terms).await,
        WaitOutcome::Evicted => {
            pending.forget_evicted();
            Ok(None)
        }
    }
}

async fn try_once(
    core: &Arc<Core>,
    name: &LockName,
    terms: &Terms,
) -> Result<Option<LockGuard>, LockError> {
    loop {
        ensure_unblocked(core)?;
        let session = core.sessions.session(terms).await?;
        let prefix = core.prefix(name);
        let pending = match PendingEntry::enqueue_if_free(session, name, prefix, terms).await {
            Err(error) if error.kind() == ErrorKind::Lost => continue,
            pending => pending?,
        };
        let Some(pending) = pending else {
            return Ok(None);
        };
        let owned_at = pending.entry.created;
        if let Some(guard) = hold(core, pending, owned_at, terms).await? {
            return Ok(Some(guard));
        }
    }
}

/// Fails if the store has gone back so lately that guards from before may be valid.
fn ensure_unblocked(core: &Core) -> Result<(), LockError> {
    let Some(until) = core.sessions.blocked_until() else {
        return Ok(());
    };
    let left = until.saturating_since(Clock::Suspend.now());
    let message = format!(
        "the store went back; earlier guards may be valid for another {left:?}, and until then no lock is taken"
    );
    Err(LockError::new(ErrorKind::Unavailable, message))
}

/// Makes a guard of an entry that owned the lock at a revision. `None` if its session has ended
/// meanwhile.
async fn hold(
    core: &Arc<Core>,
    pending: PendingEntry,
    owned_at: i64,
    terms: &Terms,
) -> Result<Option<LockGuard>, LockError> {
    let session = Arc::clone(&pending.entry.session);
    let mut lease = Arc::clone(session.lease());
    let mut renewal = None;
    if Sessions::needs_own(terms) {
        match session.hold(terms).await {
            Ok((own_lease, own_renewal)) => {
                lease = own_lease;
                renewal = Some(own_renewal);
            }
            Err(error) if error.kind() == ErrorKind::Lost => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    // An acquisition whose maximum hold is over goes to the caller: another attempt would end in
    // the same way.
    if lease
        .deadline()
        .is_err_and(|reason| reason != LossReason::MaxHold)
    {
        return Ok(None);
    }
    let token = FencingToken::new(owned_at.unsigned_abs());
    let name = pending.entry.name.clone();
    let client = Arc::clone(core) as _;
    let held = HeldEntry::new(pending.into_held(), token, terms.metadata.clone(), client);
    let entry = Arc::clone(&held) as _;
    let mut grant = Grant::new(name, held.owner(), lease, entry).with_token(token);
    if let Some(renewal) = renewal {
        grant = grant.with_renewal(renewal);
    } else if let Some(shared) = session.renewal() {
        grant = grant.with_shared_renewal(shared);
    }
    let (guard, trigger) = core.guards.grant_watched(grant);
    held.ends_with(trigger);
    core.loss_monitor.granted(&held);
    Ok(Some(guard))
}

/// A waiter that names the holder to the wait limit when it ends.
struct NamesHolder<'a> {
    waiter: Waiter,
    wait_limit: &'a WaitLimit,
}

impl Drop for NamesHolder<'_> {
    fn drop(&mut self) {
        if let Some(holder) = self.waiter.holder() {
            self.wait_limit.held_by(&holder, None);
        }
    }
}
