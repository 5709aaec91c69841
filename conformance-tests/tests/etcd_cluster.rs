//! The cluster of the server harness, with real members.
#![cfg(feature = "servers")]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, EtcdCluster, EtcdOptions, Trouble};

const LIMIT: Duration = Duration::from_secs(60);
/// A link that forwards nothing never answers, so that a slow machine cannot make this too short.
const SILENCE: Duration = Duration::from_millis(300);
/// Set in the process of [`a_process_with_a_cluster`].
const CHILD: &str = "LOCK_TEST_CLUSTER_CHILD";
const MARK: &str = "member:";

fn cluster() -> Option<EtcdCluster> {
    servers::etcd_cluster(EtcdOptions::new(), 3)
        .inspect_err(|skip| eprintln!("{skip}"))
        .ok()
}

/// Makes a read that a majority must confirm.
fn serves(endpoint: &str, limit: Duration) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(endpoint)?;
        stream.set_read_timeout(Some(limit))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .map(|_| answer.contains(r#""health":"true""#))
    };
    ask().unwrap_or(false)
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_member_leads_alone_after_a_start_with_other_arguments() {
    let Some(cluster) = cluster() else { return };
    (0..cluster.size()).for_each(|at| cluster.kill(at).unwrap());
    cluster
        .start_with(1, &["--force-new-cluster", "--log-level=warn"])
        .unwrap();
    eventually("one serves alone", || {
        serves(&cluster.direct_endpoint(1), LIMIT)
    });
}

#[tokio::test]
async fn each_fault_of_a_leader_makes_another_one_and_ends_with_all_healthy() {
    let Some(cluster) = cluster() else { return };
    let leader = cluster.leader().await.unwrap();
    cluster.kill(leader).unwrap();
    assert!(cluster.pid(leader).is_none());
    cluster.leader_other_than(leader).await.unwrap();
    cluster.start(leader).unwrap();
    cluster.wait_healthy().await.unwrap();

    let leader = cluster.leader().await.unwrap();
    cluster.freeze(leader).unwrap();
    cluster.leader_other_than(leader).await.unwrap();
    cluster.thaw(leader).unwrap();
    cluster.wait_healthy().await.unwrap();

    for trouble in [Trouble::Blackhole, Trouble::Refuse] {
        let leader = cluster.leader().await.unwrap();
        cluster.trouble_with_peers(leader, trouble);
        let next = cluster.leader_other_than(leader).await.unwrap();
        // Cut off in both directions: it neither leads nor follows.
        eventually("the old leader has noticed", || {
            !serves(&cluster.direct_endpoint(leader), SILENCE)
        });
        eventually("the new one serves", || {
            serves(&cluster.direct_endpoint(next), LIMIT)
        });
        cluster.heal(leader);
        cluster.wait_healthy().await.unwrap();
    }
}

#[tokio::test]
async fn trouble_with_clients_leaves_the_members_alone() {
    let Some(cluster) = cluster() else { return };
    let leader = cluster.leader().await.unwrap();
    let endpoint = &cluster.endpoints()[leader];
    assert!(serves(endpoint, LIMIT));
    cluster.trouble_with_clients(leader, Trouble::Blackhole);
    assert!(!serves(endpoint, SILENCE) && serves(&cluster.direct_endpoint(leader), LIMIT));
    cluster.trouble_with_clients(leader, Trouble::Refuse);
    assert!(!serves(endpoint, LIMIT) && serves(&cluster.direct_endpoint(leader), LIMIT));
    cluster.heal(leader);
    assert!(serves(endpoint, LIMIT));

    let members: Vec<_> = (0..cluster.size())
        .map(|at| (cluster.pid(at).unwrap(), cluster.directory(at)))
        .collect();
    drop(cluster);
    assert!(
        members
            .iter()
            .all(|(pid, directory)| !exists(*pid) && !directory.exists())
    );
}

/// Not a test of its own: the next one runs it in a process of its own, and kills that process.
#[test]
#[ignore = "another test runs this one as a child process"]
fn a_process_with_a_cluster() {
    let Some(cluster) = env::var_os(CHILD).and_then(|_| cluster()) else {
        return;
    };
    for at in 0..cluster.size() {
        println!(
            "\n{MARK}{} {}",
            cluster.pid(at).unwrap(),
            cluster.directory(at).display()
        );
    }
    cluster.freeze(1).unwrap();
    println!("\n{MARK}");
    std::thread::park();
}

#[test]
fn gone_after_sigkill() {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "a_process_with_a_cluster",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD, "1");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let said = lines.filter_map(|line| line.strip_prefix(MARK).map(str::to_owned));
    let members: Vec<(u32, PathBuf)> = said.map_while(|line| parse(&line)).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(members.len() == 3 || cluster().is_none(), "{members:?}");
    for (pid, directory) in members {
        eventually("the member and its directory are gone", || {
            !exists(pid) && !directory.exists()
        });
    }
}

fn parse(line: &str) -> Option<(u32, PathBuf)> {
    let (pid, directory) = line.split_once(' ')?;
    Some((pid.parse().ok()?, directory.into()))
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
