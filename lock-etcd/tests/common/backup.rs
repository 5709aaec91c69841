use std::{path::Path, process::Command};

use etcd_client::Client;
use lock_conformance::servers::Server;

/// Backs up and restores the data of a server, as an operator does.
pub(crate) struct Backups<'s>(pub(crate) &'s Server);

impl Backups<'_> {
    /// Stops the server, copies its data directory, and starts it again.
    pub(crate) async fn copy(&self) {
        self.0.kill().unwrap();
        run("cp", &["-r", &self.path("etcd"), &self.path("copy")]);
        self.0.start().await.unwrap();
    }

    /// Puts the copy in the place of the data directory. The server does not run afterwards.
    pub(crate) fn put_back_the_copy(&self) {
        self.clear();
        run("cp", &["-r", &self.path("copy"), &self.path("etcd")]);
    }

    /// Stops the server and removes its data.
    pub(crate) fn clear(&self) {
        self.0.kill().unwrap();
        std::fs::remove_dir_all(self.path("etcd")).unwrap();
    }

    /// Starts the server again with the copied data directory.
    pub(crate) async fn restore_the_copy(&self) {
        self.put_back_the_copy();
        self.0.start().await.unwrap();
    }

    /// Saves a snapshot of the running server.
    pub(crate) fn snapshot(&self) {
        self.snapshot_with(&[]);
    }

    /// As [`snapshot`](Self::snapshot), by a user who may do so.
    pub(crate) fn snapshot_by(&self, user: &str, password: &str) {
        self.snapshot_with(&["--user", &format!("{user}:{password}")]);
    }

    fn snapshot_with(&self, options: &[&str]) {
        etcdctl(
            &[
                &[
                    "--endpoints",
                    self.0.endpoint(),
                    "snapshot",
                    "save",
                    &self.path("snapshot"),
                ],
                options,
            ]
            .concat(),
        );
    }

    /// Starts the server again with what the snapshot holds, as a cluster of this token.
    pub(crate) async fn restore_the_snapshot(&self, token: &str) {
        let mut client = Client::connect([self.0.endpoint()], None).await.unwrap();
        let peer = client.member_list().await.unwrap().members()[0].peer_urls()[0].clone();
        self.clear();
        let directory = format!("--data-dir={}", self.path("etcd"));
        let cluster = format!("--initial-cluster=one={peer}");
        let advertised = format!("--initial-advertise-peer-urls={peer}");
        let token = format!("--initial-cluster-token={token}");
        etcdctl(&[
            "snapshot",
            "restore",
            &self.path("snapshot"),
            "--name=one",
            &directory,
            &cluster,
            &advertised,
            &token,
        ]);
        self.0.start().await.unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0
            .directory()
            .unwrap()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }
}

/// The token that a server has by default.
pub(crate) const SAME_CLUSTER: &str = "etcd-cluster";

fn etcdctl(arguments: &[&str]) {
    run("etcdctl", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{} {arguments:?}: {text}",
        Path::new(program).display()
    );
}
