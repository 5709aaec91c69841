use std::sync::Arc;

use lock_core::{Acquisition, LockGuard, backend::Lease};
use tokio_util::sync::CancellationToken;

use super::{Membership, share::Share};
use crate::{Phase, guard::named, stores::Stores};

/// The permission to make one acquisition in one phase. Members count them: while one of an older
/// phase is left the process has not followed its plan.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(super) member: Arc<Membership>,
    pub(super) id: u64,
    pub(super) phase: Phase,
    pub(super) stores: Arc<Stores>,
    /// None for a plan that is complete.
    pub(super) bound: Option<Bound>,
}

/// The membership that a guard is valid under.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) lease: Arc<Lease>,
    pub(super) over: CancellationToken,
}

impl Ticket {
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn stores(&self) -> &Arc<Stores> {
        &self.stores
    }

    /// Waits until an attempt with this ticket is of no use any more: the plan has gone on, or the
    /// membership is over.
    pub(crate) async fn superseded(&self) {
        let mut changes = self.member.changes();
        while self.member.is_current(self.id) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes the guard valid no longer than the membership.
    pub(crate) fn bind(self, guard: LockGuard) -> LockGuard {
        let Some(Bound { lease, over }) = self.bound.clone() else {
            // A complete plan has nothing that could change.
            return guard;
        };
        let (member, id) = (Arc::clone(&self.member), self.id);
        let share = Share::guard(self, &guard, lease, &over);
        let bound: Arc<dyn Acquisition> = named(guard.join([share])).into_acquisition();
        member.holds(id, &bound);
        LockGuard::new(bound)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.member.end(self.id);
    }
}
