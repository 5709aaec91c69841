//! Clusters, and slots that move in them.

use lock_conformance::servers::RedisCluster;
use lock_redis::{RedisLock, RedisLockBuilder};

use super::{NEVER, Operator, seed};

/// A client whose timings cannot be what makes a test pass.
pub(crate) fn builder(cluster: &RedisCluster) -> RedisLockBuilder {
    let seeds = (0..cluster.size()).map(|at| seed(&cluster.endpoint(at)));
    RedisLock::builder()
        .with_cluster(seeds)
        .with_ttl(NEVER)
        .with_poll_interval(NEVER)
}

pub(crate) fn operator(cluster: &RedisCluster, server: usize) -> Operator {
    Operator::at(&cluster.direct_endpoint(server))
}

pub(crate) async fn slot_of(cluster: &RedisCluster, key: &str) -> usize {
    operator(cluster, 0).run(&["CLUSTER", "KEYSLOT", key]).await
}

/// The server that had the key's slot at first, of three masters.
pub(crate) async fn master_of(cluster: &RedisCluster, key: &str) -> usize {
    let slot = slot_of(cluster, key).await;
    (0..3).find(|at| slot < 16384 * (at + 1) / 3).unwrap()
}

/// Moves a slot by hand, in steps.
pub(crate) struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: usize,
    pub(crate) to: usize,
}

impl<'a> Move<'a> {
    pub(crate) async fn begin(cluster: &'a RedisCluster, key: &str) -> Self {
        let from = master_of(cluster, key).await;
        let this = Self {
            cluster,
            slot: slot_of(cluster, key).await.to_string(),
            from,
            to: (from + 1) % 3,
        };
        let source = cluster.id(this.from).unwrap();
        let target = cluster.id(this.to).unwrap();
        let () = operator(cluster, this.to)
            .run(&["CLUSTER", "SETSLOT", &this.slot, "IMPORTING", &source])
            .await;
        let () = operator(cluster, this.from)
            .run(&["CLUSTER", "SETSLOT", &this.slot, "MIGRATING", &target])
            .await;
        this
    }

    pub(crate) async fn migrate_keys(&self) {
        assert!(self.migrate_some().await, "nothing to migrate");
    }

    /// Until none is left, whatever clients do meanwhile.
    pub(crate) async fn migrate_all(&self) {
        while self.migrate_some().await {}
    }

    async fn migrate_some(&self) -> bool {
        let source = operator(self.cluster, self.from);
        let keys: Vec<String> = source
            .run(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "100"])
            .await;
        if keys.is_empty() {
            return false;
        }
        // Servers that speak TLS to each other do so here.
        let target = self.cluster.endpoint(self.to);
        let (host, port) = target.rsplit_once(':').unwrap();
        let mut command = vec!["MIGRATE", host, port, "", "0", "5000", "KEYS"];
        command.extend(keys.iter().map(String::as_str));
        let () = source.run(&command).await;
        true
    }

    pub(crate) async fn end(&self) {
        let target = self.cluster.id(self.to).unwrap();
        for server in [self.to, self.from, 3 - self.from - self.to] {
            let () = operator(self.cluster, server)
                .run(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &target])
                .await;
        }
    }
}
