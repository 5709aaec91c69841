use std::{
    fmt::{self, Debug},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::futures::Notified;

use crate::backend::{Lease, Moment, renewal_queue::Id};

/// Ends the renewal of one lease when dropped; the lease then runs out at its deadline.
pub struct RenewalHandle {
    pub(super) id: Id,
    pub(super) keeper: Arc<dyn RenewalControl>,
    pub(super) sent: Moment,
    pub(super) stopped: AtomicBool,
}

impl RenewalHandle {
    /// Instant at which the request was sent that the store answered with the lease.
    pub(crate) fn sent(&self) -> Moment {
        self.sent
    }

    /// Does what a drop does, before the drop.
    pub(crate) fn stop(&self) {
        // Two calls at once both forget it, which does no harm and is cheaper than excluding each
        // other.
        if !self.stopped.load(Ordering::Relaxed) {
            self.stopped.store(true, Ordering::Relaxed);
            self.keeper.forget(self.id);
        }
    }

    /// Renews the lease once, now; returns when that has been acknowledged, or the lease has ended.
    pub(crate) async fn renew(&self, lease: &Lease) {
        let before = lease.renewals();
        self.keeper.renew(self.id);
        loop {
            let mut changed = pin!(self.keeper.changed());
            changed.as_mut().enable();
            let Ok(deadline) = lease.deadline() else {
                return;
            };
            // Nothing is renewed beyond a maximum hold.
            if lease.renewals() != before || lease.cap() == Some(deadline) {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = lease.clock().sleep_until(deadline) => {}
            }
        }
    }
}

/// Requests of a handle to its keeper, whatever that renews.
pub(super) trait RenewalControl: Send + Sync {
    fn forget(&self, id: Id);

    fn renew(&self, id: Id);

    /// Fires after every renewal, and more often.
    fn changed(&self) -> Notified<'_>;
}

impl Drop for RenewalHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Debug for RenewalHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenewalHandle")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
