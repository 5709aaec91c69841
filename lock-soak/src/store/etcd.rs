use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::servers::{self, EtcdCluster, EtcdOptions, Trouble};
use etcd_client::{Client, CompactionOptions, GetOptions};

use super::Store;
use crate::{
    BoxError,
    schedule::{Cut, Side},
};

pub(super) const SIZE: usize = 3;
const LEASES: Duration = Duration::from_secs(60);

/// A cluster of etcd members on this machine.
#[derive(Debug)]
pub(super) struct Etcd {
    cluster: EtcdCluster,
    thawed_leader_revokes: bool,
}

impl Etcd {
    pub(super) async fn start() -> Result<Self, BoxError> {
        let cluster = tokio::task::spawn_blocking(|| servers::etcd_cluster(EtcdOptions::new(), SIZE)).await??;
        let thawed_leader_revokes = cluster.thawed_leader_revokes().await?;
        if thawed_leader_revokes {
            println!(
                "this etcd revokes live leases when a paused leader goes on (mended in 3.4.31 and 3.5.13): leaders are paused briefly"
            );
        }
        Ok(Self { cluster, thawed_leader_revokes })
    }

    /// Unlike the clients under test, on a way that no fault touches.
    async fn operator(&self, member: usize) -> Result<Client, BoxError> {
        Ok(Client::connect([self.cluster.direct_endpoint(member)], None).await?)
    }
}

#[async_trait]
impl Store for Etcd {
    fn url(&self, ttl: Duration) -> String {
        format!("{}/?ttl={}s", self.cluster.url(), ttl.as_secs())
    }

    async fn leader(&self) -> Result<usize, BoxError> {
        Ok(self.cluster.leader().await?)
    }

    fn kill(&self, member: usize) -> Result<(), BoxError> {
        Ok(self.cluster.kill(member)?)
    }

    fn start(&self, member: usize) -> Result<(), BoxError> {
        Ok(self.cluster.start(member)?)
    }

    fn pause(&self, member: usize) -> Result<(), BoxError> {
        Ok(self.cluster.freeze(member)?)
    }

    fn resume(&self, member: usize) -> Result<(), BoxError> {
        Ok(self.cluster.thaw(member)?)
    }

    fn cut(&self, member: usize, side: Side, cut: Cut) {
        let trouble = match cut {
            Cut::Silent => Trouble::Blackhole,
            Cut::Refused => Trouble::Refuse,
            Cut::Replies => Trouble::DropReplies,
        };
        if side != Side::Clients {
            self.cluster.trouble_with_peers(member, trouble);
        }
        if side != Side::Peers {
            self.cluster.trouble_with_clients(member, trouble);
        }
    }

    fn delay(&self, member: usize, by: Duration) {
        self.cluster.trouble_with_clients(member, Trouble::Delay(by));
    }

    fn heal(&self, member: usize) {
        self.cluster.heal(member);
    }

    async fn wait_healthy(&self) -> Result<(), BoxError> {
        Ok(self.cluster.wait_healthy().await?)
    }

    fn longest_leader_pause(&self, ttl: Duration) -> Option<Duration> {
        // Clients renew every third of a TTL, so that no lease that the leader knows of has less than two thirds left.
        self.thawed_leader_revokes.then_some(ttl / 3)
    }

    async fn chore(&self) -> Result<(), BoxError> {
        let mut operator = self.operator(0).await?;
        let now = operator.get("\0", None).await?;
        let revision = now.header().map_or(1, etcd_client::ResponseHeader::revision);
        operator.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
        for member in 0..SIZE {
            self.operator(member).await?.defragment().await?;
        }
        Ok(())
    }

    /// A session, and whatever is under way on it, may end a TTL after the cause.
    fn patience(&self, ttl: Duration) -> Duration {
        ttl
    }

    fn prompt(&self) -> bool {
        false
    }

    /// The leases of what was given up in an outage run out, and a member may be slow to elect.
    fn settles(&self, ttl: Duration) -> (Duration, Duration) {
        (ttl + LEASES, ttl + LEASES)
    }

    async fn contents(&self) -> Result<Vec<String>, BoxError> {
        let mut operator = self.operator(0).await?;
        let keys = operator.get("", Some(GetOptions::new().with_all_keys().with_keys_only())).await?;
        let leases = operator.leases().await?;
        let keys = keys.kvs().iter().map(|kv| format!("the key {}", String::from_utf8_lossy(kv.key())));
        Ok(keys.chain(leases.leases().iter().map(|lease| format!("the lease {:x}", lease.id()))).collect())
    }
}
