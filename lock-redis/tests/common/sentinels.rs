//! Servers under three sentinels.

use lock_conformance::servers::RedisSentinel;

use super::Operator;

pub(crate) fn operator(servers: &RedisSentinel, server: usize) -> Operator {
    Operator::at(&servers.direct_endpoint(server))
}

pub(crate) fn sentinels(servers: &RedisSentinel) -> [Operator; 3] {
    [0, 1, 2].map(|at| Operator::at(&servers.sentinel(at)))
}

/// The sentinels name the replica from now on, and tell nobody; the old master takes itself for one
/// still, as behind a partition.
pub(crate) async fn replace_master(servers: &RedisSentinel) {
    for sentinel in sentinels(servers) {
        let () = sentinel
            .run(&["SENTINEL", "REMOVE", RedisSentinel::SERVICE])
            .await;
    }
    let () = operator(servers, 1).run(&["REPLICAOF", "NO", "ONE"]).await;
    let new = servers.endpoint(1);
    let (host, port) = new.rsplit_once(':').unwrap();
    for sentinel in sentinels(servers) {
        let () = sentinel
            .run(&[
                "SENTINEL",
                "MONITOR",
                RedisSentinel::SERVICE,
                host,
                port,
                "2",
            ])
            .await;
    }
}
