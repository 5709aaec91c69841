//! Watches of who holds a lock.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use lock_core::{
    LockError, LockInfo, LockName, LockWatch, Operation,
    backend::{Clock, GuardSet, WatchSource, watch_holders},
};

use crate::{
    backoff::{BLIND_POLL, poll},
    keys::Keys,
    waiters::pace::Pace,
    waiters::tracking::{Reports, Watcher},
};

const CLOCK: Clock = Clock::Suspend;

/// A client that can see who holds a lock.
#[async_trait]
pub(crate) trait HolderReader: Send + Sync + 'static {
    /// Returns who holds it, and whether the next change is reported.
    async fn look(
        &self,
        name: &LockName,
        keys: &Keys,
    ) -> Result<(Option<LockInfo>, bool), LockError>;

    fn guards(&self) -> &GuardSet;

    fn watcher(&self) -> &Watcher;

    /// Longest time between two looks.
    fn poll(&self) -> Duration;
}

struct HolderWatch<L> {
    reader: Arc<L>,
    backend: &'static str,
    name: LockName,
    keys: Keys,
    reports: Reports,
    reported: bool,
    pace: Pace,
}

/// Watches until the client is shut down.
pub(crate) fn watch<L: HolderReader>(
    reader: &Arc<L>,
    backend: &'static str,
    prefix: &str,
    name: &LockName,
) -> Result<LockWatch, LockError> {
    reader
        .guards()
        .ensure_open()
        .map_err(|error| error.during(Operation::Watch).on(backend).of(name))?;
    let keys = Keys::new(prefix, name);
    let reports = reader.watcher().reports(&keys.lock);
    Ok(watch_holders(HolderWatch {
        reader: Arc::clone(reader),
        backend,
        name: name.clone(),
        keys,
        reports,
        reported: false,
        pace: Pace::new(BLIND_POLL),
    }))
}

#[async_trait]
impl<L: HolderReader> WatchSource for HolderWatch<L> {
    async fn look(&mut self) -> Result<Option<LockInfo>, LockError> {
        // Before: what is reported while this looks may be news.
        self.reports.forget();
        let seen = self.reader.look(&self.name, &self.keys).await;
        let (info, reported) = seen.map_err(|error| {
            error
                .during(Operation::Watch)
                .on(self.backend)
                .of(&self.name)
        })?;
        self.reported = reported;
        let now = CLOCK.now();
        let holder = info.as_ref().and_then(|info| info.holders.first());
        let left = holder.and_then(|holder| holder.expires_in);
        self.pace.looked(now, left.map(|left| now + left));
        Ok(info)
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = async {
                self.reports.next().await;
                if let Some(paced) = self.pace.not_before() {
                    CLOCK.sleep_until(paced).await;
                }
            } => {}
            () = tokio::time::sleep(poll(self.reader.poll(), !self.reported)) => {}
            () = self.reader.guards().closing().fired() => {}
        }
    }
}
