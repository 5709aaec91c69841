//! What a client does so that the tokens of names that nobody locks in [`Phase::Dual`] go on as
//! well.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lock_core::{
    AcquireOptions, DistributedLock, ErrorKind, FencingToken, LockError, LockName, OwnerId,
};
use tokio::time::{Instant, sleep};

use crate::{
    Phase,
    acquire::{Asked, PAUSE},
    stores::Stores,
};

/// Begins names that are locked for their token, each by one client at one time.
const PROBE: &str = "lock-migrate/probe-";

/// Keeps the target's tokens ahead of the source's for as long as it is polled: whoever is granted
/// in the source alone meanwhile has a smaller one.
pub(crate) async fn keep_ahead(stores: Arc<Stores>) {
    loop {
        if let Err(error) = lead(&stores).await {
            tracing::debug!(%error, "the floor was not raised; it is tried again");
        }
        sleep(LOOK).await;
    }
}

/// How often the floor is compared with the source's tokens: well within what the head-room lasts.
const LOOK: Duration = Duration::from_secs(2);

/// Raises the floor if it is ahead of the source's tokens by less than the head-room.
async fn lead(stores: &Stores) -> Result<(), LockError> {
    let reached = probe(stores.source(), PROBE_LIMIT).await?;
    let ahead = reached.saturating_add(stores.head_room);
    if stores.floor.read().await? < ahead {
        let to = ahead.saturating_add(stores.head_room);
        stores.floor.raise(to).await?;
    }
    Ok(())
}

const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Makes sure that the first token of this client is beyond all of the phase before.
pub(crate) async fn prepare(stores: &Stores, phase: Phase, asked: &Asked) -> Result<(), LockError> {
    if stores.is_prepared.load(Ordering::Acquire) {
        return Ok(());
    }
    if phase == Phase::SourceOnly && stores.target.is_some() {
        pass_target(stores, asked).await.map_err(unnamed)?;
    }
    stores.is_prepared.store(true, Ordering::Release);
    Ok(())
}

/// Without the name of the probe, which the caller does not know.
fn unnamed(error: LockError) -> LockError {
    let message = format!("the stores' tokens cannot be compared: {}", error.message());
    LockError::new(error.kind(), message).caused_by(error)
}

/// Waits until the source's tokens are beyond those of the target, which may be ahead by as much as
/// the floor's head-room.
async fn pass_target(stores: &Stores, asked: &Asked) -> Result<(), LockError> {
    let floor = asked.persist(|| stores.floor.read()).await?;
    if floor == 0 {
        return Ok(());
    }
    let target = asked.persist(|| probe(stores.target(), asked.ttl)).await?;
    let passed = floor.saturating_add(target);
    loop {
        let reached = asked.persist(|| probe(stores.source(), asked.ttl)).await?;
        if reached > passed {
            return Ok(());
        }
        if !asked.waits
            || asked
                .until
                .is_some_and(|until| Instant::now() + PAUSE >= until)
        {
            let message = format!(
                "the source's tokens, at {reached}, have not passed the target's, at {passed}; they do with its clock, so try again later"
            );
            return Err(LockError::new(ErrorKind::Unavailable, message));
        }
        sleep(PAUSE).await;
    }
}

/// The token that the store has come to.
pub(crate) async fn probe(
    store: Result<&Arc<dyn DistributedLock>, LockError>,
    limit: Duration,
) -> Result<u64, LockError> {
    let store = store?;
    let name = LockName::new(format!("{PROBE}{}", OwnerId::random()))?;
    let options = AcquireOptions::new().with_timeout(limit);
    let guard = store.acquire_named(&name, options).await?;
    let token = guard.token().map(FencingToken::as_u64);
    guard.release().await?;
    token.ok_or_else(|| {
        LockError::new(
            ErrorKind::Protocol,
            "a guard came without its fencing token",
        )
    })
}
