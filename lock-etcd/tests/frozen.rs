//! One member of three freezes: guards and places survive it, whatever their TTL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, Instant};

use lock_conformance::servers::{self, EtcdCluster, EtcdOptions};
use lock_core::{DistributedLockExt, LockGuard};

mod common;
use common::{
    Found, Operator, Waiter,
    members::{OutageProbe, client_on, operator},
    until,
};

/// The shortest that etcd grants, the default, and what lies between.
const TTLS: [u64; 5] = [2, 3, 5, 9, 30];

/// A guard and a waiter with the same TTL, on clients of their own that talk to the member that is
/// to freeze.
struct Pair {
    ttl: Duration,
    name: String,
    guard: LockGuard,
    waiter: Waiter,
    places: Vec<Found>,
}

impl Pair {
    async fn on(cluster: &EtcdCluster, member: usize, observer: &Operator, ttl: Duration) -> Self {
        let holder = client_on(cluster, member, ttl).await;
        let other = client_on(cluster, member, ttl).await;
        let name = format!("for {ttl:?}");
        let guard = holder.acquire(name.as_str()).await.unwrap();
        let waiter = Waiter::start(&other, &name);
        observer.until_entries(&name, 2).await;
        let places = observer.entries(&name).await;
        Self {
            ttl,
            name,
            guard,
            waiter,
            places,
        }
    }

    /// Waits until only renewals since the fault can have kept the lock. If the outage excuses it,
    /// the lock may be lost nevertheless, but not before its deadline, and nobody else has it
    /// before.
    async fn outlasts(self, observer: &Operator, outage: &OutageProbe) -> Result<(), String> {
        let frozen = Instant::now();
        let left = self.guard.remaining();
        if tokio::time::timeout(self.ttl * 5 / 4, self.guard.lost())
            .await
            .is_ok()
        {
            let after = frozen.elapsed();
            let waits = self.waiter.is_pending();
            if !outage.excuses_loss(self.ttl) || after < left || !waits {
                return Err(format!(
                    "lost after {after:?} of {left:?}; the waiter waits: {waits}"
                ));
            }
            return self
                .waiter
                .granted()
                .await
                .release()
                .await
                .map_err(|error| error.to_string());
        }
        let places = observer.entries(&self.name).await;
        // The lease of the waiter may have ended, and it waits on with another.
        let is_kept = places == self.places || outage.excuses_loss(self.ttl);
        if !is_kept || !self.waiter.is_pending() {
            return Err(format!("the queue was {:?} and is {places:?}", self.places));
        }
        self.guard
            .release()
            .await
            .map_err(|error| error.to_string())?;
        self.waiter
            .granted()
            .await
            .release()
            .await
            .map_err(|error| error.to_string())
    }
}

async fn outlast_the_freeze(of: impl Fn(usize) -> usize) {
    let cluster = or_skip!(servers::etcd_cluster(EtcdOptions::new(), 3));
    let member = of(cluster.leader().await.unwrap());
    let observer = Operator(operator(&cluster, (member + 1) % 3).await);
    let mut pairs = Vec::new();
    for ttl in TTLS.into_iter().rev() {
        pairs.push(Pair::on(&cluster, member, &observer, Duration::from_secs(ttl)).await);
    }
    // Just before the renewal of the shortest: what is left of it then is all there is.
    let shortest = &pairs.last().unwrap().guard;
    until("a renewal is near", || async {
        shortest.remaining() < Duration::from_millis(1400)
    })
    .await;
    let outage = OutageProbe::start(&cluster);
    cluster.freeze(member).unwrap();
    let outcomes = pairs.into_iter().map(async |pair| {
        let ttl = pair.ttl;
        pair.outlasts(&observer, &outage)
            .await
            .map_err(|failure| format!("TTL {ttl:?}: {failure}"))
    });
    let failures: Vec<_> = futures_util::future::join_all(outcomes)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_and_places_outlast_a_frozen_follower() {
    outlast_the_freeze(|leader| (leader + 1) % 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_and_places_outlast_a_frozen_leader() {
    outlast_the_freeze(|leader| leader).await;
}
