use std::{sync::Arc, time::Duration};

use lock_core::{ErrorKind, OwnerId, backend::Clock};
use tokio_util::sync::CancellationToken;

use crate::{core::Core, entry, error::Failure, keys::Keys, link::Connection, servers::Servers};

/// Longest time to try; whatever is left then ends with its TTL.
const LIMIT: Duration = Duration::from_secs(30);

/// First pause between two tries; doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Until a release over another connection is repeated: by then the server has read what was on its way before.
const RECHECK: Duration = Duration::from_secs(1);

/// Removes an acquisition that nobody wants any more, whose requests went over the `pending` connections and may yet
/// take effect.
///
/// A release over the same connection is executed after them, whenever that is; so it is sent even if it will not be
/// answered. Where it is not answered, or another server is in charge meanwhile, another connection serves, and is asked
/// twice.
pub(crate) async fn undo(core: Arc<Core>, keys: Keys, owner: OwnerId, pending: Vec<Connection>) {
    undo_on(&core.servers, core.holds.closing(), &keys, &owner, &pending).await;
}

/// The same on servers of whichever kind; gives up early once the client is `closing`.
pub(crate) async fn undo_on(servers: &Servers, closing: &CancellationToken, keys: &Keys, owner: &OwnerId, pending: &[Connection]) {
    let mut settled = true;
    for connection in pending {
        let released = entry::release(connection, keys, owner, true).await.is_ok();
        settled &= released && connection.leads_to_who_is_in_charge();
    }
    if settled {
        return;
    }
    let mut outcome = release_until_answered(servers, closing, keys, owner).await;
    if outcome.is_ok() {
        tokio::time::sleep(RECHECK).await;
        outcome = release_until_answered(servers, closing, keys, owner).await;
    }
    if let Err(failure) = outcome {
        tracing::warn!(lock = &*keys.lock, ?failure, "an abandoned acquisition could not be undone, it ends with its TTL");
    }
}

pub(crate) async fn release_until_answered(
    servers: &Servers,
    closing: &CancellationToken,
    keys: &Keys,
    owner: &OwnerId,
) -> Result<bool, Failure> {
    let give_up = Clock::Suspend.now() + LIMIT;
    let mut pause = PAUSE;
    loop {
        let failure = match entry::release_at(servers, keys, owner, true).await {
            Ok(held) => return Ok(held),
            Err(failure) => failure,
        };
        let hopeless = failure.kind() != ErrorKind::Unavailable || closing.is_cancelled();
        if hopeless || Clock::Suspend.now() >= give_up {
            return Err(failure);
        }
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
