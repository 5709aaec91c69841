use std::time::Duration;

use tokio::time::Instant;

use super::cluster::Cluster;

/// A request without an answer so far. Requests move on to another member if it is dropped after a
/// while: the next one on this member would wait in vain, too.
pub(super) struct UnansweredRequest<'a> {
    cluster: &'a Cluster,
    member: usize,
    since: Instant,
    wait_limit: Duration,
}

impl<'a> UnansweredRequest<'a> {
    pub(super) fn new(cluster: &'a Cluster, member: usize, wait_limit: Duration) -> Self {
        Self {
            cluster,
            member,
            since: Instant::now(),
            wait_limit,
        }
    }

    /// Moves on to the member that has answered first.
    pub(super) fn answered_by(self, member: usize) {
        self.cluster.move_to(member, self.member);
        self.forget();
    }

    pub(super) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for UnansweredRequest<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= self.wait_limit {
            self.cluster.move_on(self.member);
        }
    }
}
