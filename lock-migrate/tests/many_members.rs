//! A coordinator with a thousand members and a hundred plans, on a real etcd, and what it costs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, EtcdOptions, Server};
use lock_core::{DistributedLock, DistributedLockExt};
use lock_etcd::EtcdLock;
use lock_mem::MemStore;
use lock_migrate::{MigratingLock, Operator, Order, Phase};

const MEMBERS: usize = 1_000;
const PLANS: usize = 100;
/// Simulated members have few connections between them.
const CONNECTIONS: usize = 20;
const MEMBERSHIP: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(300);
const ACQUISITIONS: usize = 500;

fn prefix(number: usize) -> String {
    format!("p{number:03}/")
}

async fn target(etcd: &Server) -> EtcdLock {
    let builder = EtcdLock::builder([etcd.endpoint()]).with_ttl(MEMBERSHIP);
    builder.connect().await.unwrap()
}

async fn operator(etcd: &Server, source: &MemStore) -> Operator {
    let target = target(etcd).await;
    let records = Arc::new(target.records());
    Operator::new(Arc::new(source.client()), Arc::new(target), records, "test")
}

async fn members(etcd: &Server, source: &MemStore) -> Vec<MigratingLock> {
    let mut members = Vec::new();
    for connection in 0..CONNECTIONS {
        let target = Arc::new(target(etcd).await);
        for number in 0..MEMBERS / CONNECTIONS {
            let source: Arc<dyn DistributedLock> = Arc::new(source.client());
            let records = Arc::new(target.records());
            let member = MigratingLock::coordinated(source, target.clone(), records)
                .with_label(format!("{connection}/{number}"));
            members.push(member.build().unwrap());
        }
    }
    members
}

/// The number of messages of one kind that etcd has received.
fn received(etcd: &Server, method: &str) -> u64 {
    let endpoint = etcd.endpoint().trim_start_matches("http://");
    let mut stream = TcpStream::connect(endpoint).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let wanted = format!("grpc_server_msg_received_total{{grpc_method=\"{method}\"");
    let lines = metrics.lines().filter(|line| line.starts_with(&wanted));
    let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    counts.sum::<f64>() as u64
}

async fn wait_until_all_have_joined(operator: &Operator) {
    let begin = Instant::now();
    while operator.status().await.unwrap().members.len() < MEMBERS {
        assert!(begin.elapsed() < LIMIT, "not all members have joined");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{MEMBERS} members have joined after {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_members_follow_a_hundred_plans_and_cost_a_renewal_each() {
    let Ok(etcd) = servers::etcd(EtcdOptions::new().own()) else {
        return;
    };
    let source = MemStore::new();
    let operator = operator(&etcd, &source).await;
    for number in 0..PLANS {
        operator.plan(&prefix(number), false).await.unwrap();
    }
    let members = members(&etcd, &source).await;
    wait_until_all_have_joined(&operator).await;
    for number in [0, PLANS / 2, PLANS - 1] {
        let prefix = prefix(number);
        assert!(
            operator
                .settle(&prefix, LIMIT, |_| {})
                .await
                .unwrap()
                .settled
        );
        let begin = Instant::now();
        let plan = operator.order(&prefix, Order::Advance, LIMIT, false).await;
        assert_eq!(plan.unwrap().unwrap().phase, Phase::Dual);
        assert!(
            operator
                .settle(&prefix, LIMIT, |_| {})
                .await
                .unwrap()
                .settled
        );
        println!("{prefix}: all have followed after {:?}", begin.elapsed());
    }
    assert_eq!(operator.status().await.unwrap().plans.len(), PLANS);
    expect_little_traffic(&etcd, &members).await;
}

/// In two thirds of the TTL: a renewal in each for each member, and nothing for acquisitions, which
/// here are of the source alone.
async fn expect_little_traffic(etcd: &Server, members: &[MigratingLock]) {
    let counts = || ["LeaseKeepAlive", "Range", "Txn"].map(|method| received(etcd, method));
    let before = counts();
    let begin = Instant::now();
    for turn in 0..ACQUISITIONS {
        let locks = &members[turn % members.len()];
        let guard = locks.acquire(&*format!("p001/{turn}")).await.unwrap();
        guard.release().await.unwrap();
    }
    let thirds = 2;
    let window = MEMBERSHIP / 3 * thirds;
    tokio::time::sleep(window.saturating_sub(begin.elapsed())).await;
    let thirds = begin.elapsed().as_secs_f64() / (MEMBERSHIP / 3).as_secs_f64();
    let after = counts();
    let [renewals, reads, writes] = [0, 1, 2].map(|at| after[at] - before[at]);
    println!(
        "in {thirds:.2} thirds of the TTL: {renewals} renewals, {reads} reads and {writes} writes, with {ACQUISITIONS} acquisitions"
    );
    let sessions = (CONNECTIONS + 1) as f64;
    // Renewals come up to a tenth sooner, and the window may begin just before one.
    let most = (MEMBERS as f64 + sessions) * (thirds / 0.9 + 1.0);
    assert!((renewals as f64) < most, "{renewals} renewals");
    let own = 10 * (CONNECTIONS + 1) as u64;
    assert!(reads + writes < own, "{reads} reads, {writes} writes");
}
