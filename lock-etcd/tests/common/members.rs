//! Clients of a cluster that begin on a member of the test's choice.

use std::time::Duration;

use conformance_tests::servers::{EtcdCluster, Trouble};
use etcd_client::Client;
use lock_etcd::EtcdLock;

pub(crate) fn others(member: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |other| *other != member)
}

/// A client that knows all members and talks to this one, until it fails.
pub(crate) async fn client_on(cluster: &EtcdCluster, member: usize, ttl: Duration) -> EtcdLock {
    others(member).for_each(|other| cluster.trouble_with_clients(other, Trouble::Refuse));
    let locks = EtcdLock::builder(cluster.endpoints()).with_ttl(ttl).connect().await.unwrap();
    others(member).for_each(|other| cluster.heal(other));
    locks
}

/// Asks a member directly, as an operator would.
pub(crate) async fn operator(cluster: &EtcdCluster, member: usize) -> Client {
    Client::connect([cluster.direct_endpoint(member)], None).await.unwrap()
}
