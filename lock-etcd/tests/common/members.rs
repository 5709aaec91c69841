//! Clients of a cluster that begin on a member of the test's choice, and the cluster's outages.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use etcd_client::Client;
use lock_conformance::servers::{EtcdCluster, Trouble};
use lock_etcd::EtcdLock;
use tokio::task::JoinHandle;

pub(crate) fn others(member: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |other| *other != member)
}

/// A client that knows all members and talks to this one, until it fails.
pub(crate) async fn client_on(cluster: &EtcdCluster, member: usize, ttl: Duration) -> EtcdLock {
    others(member).for_each(|other| cluster.trouble_with_clients(other, Trouble::Refuse));
    let locks = EtcdLock::builder(cluster.endpoints())
        .with_ttl(ttl)
        .connect()
        .await
        .unwrap();
    others(member).for_each(|other| cluster.heal(other));
    locks
}

/// Asks a member directly, as an operator would.
pub(crate) async fn operator(cluster: &EtcdCluster, member: usize) -> Client {
    Client::connect([cluster.direct_endpoint(member)], None)
        .await
        .unwrap()
}

/// Measures the longest time in which no member could serve a linearizable request.
///
/// Nobody can renew a lease while there is no leader. An election takes 1 to 2 s, and several times
/// that if votes split, as they do on a busy machine.
#[derive(Debug)]
pub(crate) struct OutageProbe {
    service: Arc<Mutex<Service>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Service {
    longest_gap: Duration,
    served: Instant,
}

impl OutageProbe {
    pub(crate) fn start(cluster: &EtcdCluster) -> Self {
        let service = Arc::new(Mutex::new(Service {
            longest_gap: Duration::ZERO,
            served: Instant::now(),
        }));
        let measured = Arc::clone(&service);
        let cluster = cluster.clone();
        let task = tokio::spawn(async move {
            loop {
                // A request that was sent in an outage may be answered at its end.
                let asked = Instant::now();
                if cluster.serves().await {
                    let mut service = measured.lock().unwrap();
                    service.longest_gap = service.longest_gap.max(service.served.elapsed());
                    service.served = asked;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { service, task }
    }

    /// Tells whether a lease with this TTL may have ended for want of a leader. At the least it has
    /// two thirds of its TTL left, and its holder tries each member within a sixth.
    pub(crate) fn excuses_loss(&self, ttl: Duration) -> bool {
        let service = self.service.lock().unwrap();
        let longest = service.longest_gap.max(service.served.elapsed());
        longest * 2 + Duration::from_secs(1) > ttl
    }
}

impl Drop for OutageProbe {
    fn drop(&mut self) {
        self.task.abort();
    }
}
