use std::{sync::Arc, time::Duration};

use lock_core::{
    ErrorKind,
    backend::{Clock, Moment, Signal},
};

use crate::{
    acquire::Core, backoff::Backoff, entry, error::Failure, renewal::StoredEntry,
    transport::reconnect::Connection, transport::routing::Servers,
};

/// Time to try at least: a request may take effect late. With a longer TTL it is that long, for
/// what was there ends by then.
pub(crate) const LEAST: Duration = Duration::from_secs(30);

/// Until a release over another connection is repeated: by then the server has read what was on its
/// way before.
const RECHECK: Duration = Duration::from_secs(1);

/// Removes an acquisition that nobody wants any more, whose requests went over the `pending`
/// connections and may yet take effect.
///
/// A release over the same connection is executed after them, whenever that is; so it is sent even
/// if it will not be answered. Where it is not answered, or another server is in charge meanwhile,
/// another connection serves, and is asked twice.
pub(crate) async fn undo(core: Arc<Core>, stored: Arc<StoredEntry>, pending: Vec<Connection>) {
    undo_on(&core.servers, core.guards.closing(), &stored, &pending).await;
}

/// The same on servers of whichever kind; gives up early once the client is `closing`.
pub(crate) async fn undo_on(
    servers: &Servers,
    closing: &Signal,
    stored: &StoredEntry,
    pending: &[Connection],
) {
    let mut settled = true;
    for connection in pending {
        let released = entry::release(connection, &stored.keys, &stored.owner)
            .await
            .is_ok();
        settled &= released && connection.leads_to_who_is_in_charge();
    }
    if settled {
        return;
    }
    let mut outcome = release_until_answered(servers, closing, stored).await;
    if outcome.is_ok() {
        tokio::time::sleep(RECHECK).await;
        outcome = release_until_answered(servers, closing, stored).await;
    }
    if let Err(failure) = outcome {
        tracing::warn!(
            lock = &*stored.keys.lock,
            ?failure,
            "an abandoned acquisition could not be undone, it ends with its TTL"
        );
    }
}

pub(crate) async fn release_until_answered(
    servers: &Servers,
    closing: &Signal,
    stored: &StoredEntry,
) -> Result<bool, Failure> {
    let mut retry = Retry::new(Clock::Suspend.now(), stored.ttl);
    loop {
        let failure = match entry::release_at(servers, &stored.keys, &stored.owner).await {
            Ok(held) => return Ok(held),
            Err(failure) => failure,
        };
        let hopeless = failure.kind() != ErrorKind::Unavailable || closing.has_fired();
        match retry.pause(Clock::Suspend.now()) {
            Some(pause) if !hopeless => tokio::time::sleep(pause).await,
            _ => return Err(failure),
        }
    }
}

/// Time to go on, and how often.
struct Retry {
    ends: Moment,
    pauses: Backoff,
}

impl Retry {
    fn new(now: Moment, ttl: Duration) -> Self {
        Self {
            ends: now + ttl.max(LEAST),
            pauses: Backoff::after_failures(),
        }
    }

    /// The pause before the next try, `None` when what was there has ended.
    fn pause(&mut self, now: Moment) -> Option<Duration> {
        (now < self.ends).then(|| self.pauses.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::FAILURE_PAUSE_MAX;

    #[test]
    fn tries_go_on_until_the_lease_has_ended() {
        let start = Moment::from_origin(Duration::from_secs(1000));
        for (ttl, end) in [
            (Duration::from_secs(600), Duration::from_secs(600)),
            (Duration::from_secs(1), LEAST),
        ] {
            let mut retry = Retry::new(start, ttl);
            let mut now = start;
            let mut tries = 0;
            while let Some(pause) = retry.pause(now) {
                (now, tries) = (now + pause, tries + 1);
            }
            let took = now.saturating_since(start);
            assert!(
                end <= took && took <= end + FAILURE_PAUSE_MAX,
                "{ttl:?} took {took:?}"
            );
            assert!(tries < took.as_secs() * 2 + 8, "{tries} tries in {took:?}");
        }
    }
}
