use std::{sync::Arc, time::Duration};

use lock_core::{
    LockError,
    backend::{Clock, Moment, WaitLimit},
};

use crate::{
    MemStore,
    entry::{MemEntry, owner},
    queue::Place,
};

/// A request that has not become a guard yet: dropped, it gives up its place, or its grant.
#[derive(Debug)]
pub(crate) struct PendingEntry<'a> {
    store: &'a MemStore,
    entry: &'a Arc<MemEntry>,
    granted: bool,
}

impl<'a> PendingEntry<'a> {
    pub(crate) fn new(store: &'a MemStore, entry: &'a Arc<MemEntry>) -> Self {
        Self {
            store,
            entry,
            granted: false,
        }
    }

    /// Notes that the request was granted, and belongs to its guard from now on.
    pub(crate) fn granted(mut self) {
        self.granted = true;
    }

    /// Asks where the request stands, making it if the store does not know it; `None` if the store
    /// does not answer at once.
    pub(crate) fn ask_now(&self, wait: bool) -> Option<(Moment, Place)> {
        let Self { store, entry, .. } = self;
        store.ask_now(&entry.key, |queue, now, wake| {
            store.place(entry, queue, now, wait, wake)
        })
    }

    /// As [`ask_now`](Self::ask_now), waiting for the answer.
    pub(crate) async fn ask(&self, wait: bool) -> Result<(Moment, Place), LockError> {
        let Self { store, entry, .. } = self;
        store
            .ask(&entry.key, |queue, now, wake| {
                store.place(entry, queue, now, wait, wake)
            })
            .await
    }

    /// Waits until the request holds; its TTL counts from the returned instant.
    pub(crate) async fn wait(&self, wait_limit: &WaitLimit) -> Result<Moment, LockError> {
        let in_vain = OnDrop(|| self.name_holder(wait_limit));
        loop {
            wait_limit.asked();
            let answer = self.ask(true).await;
            if answer.is_ok() {
                wait_limit.answered();
            }
            match answer {
                Ok((sent, Place::Holding)) => {
                    std::mem::forget(in_vain);
                    return Ok(sent);
                }
                Ok((_, Place::Waiting { look })) => self.until_woken(look).await,
                Ok((_, Place::None)) => {}
                Err(failure) => {
                    wait_limit.failed(failure)?;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Names the holder in the error, if the wait ends in vain.
    fn name_holder(&self, wait_limit: &WaitLimit) {
        let Self { store, entry, .. } = self;
        store.with(&entry.key, |queue, now, wake| {
            if let Some(holder) = queue
                .holder(now, wake)
                .filter(|holder| holder.number != self.entry.number())
            {
                wait_limit.held_by(&owner(holder.number), holder.entry.metadata.as_deref());
            }
        });
    }

    async fn until_woken(&self, look: Moment) {
        tokio::select! {
            () = self.entry.wake.notified() => {}
            () = Clock::Tokio.sleep_until(look) => {}
        }
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Pause before a request that failed is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl Drop for PendingEntry<'_> {
    fn drop(&mut self) {
        // Past any fault: a request that its client has given up is as if it had not been made.
        if !self.granted && self.entry.number() != 0 {
            self.store.with(&self.entry.key, |queue, now, wake| {
                queue.leave(now, self.entry.number(), wake)
            });
        }
    }
}
