use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, CompactionOptions, ConnectOptions, GetOptions, Permission, RoleRevokePermissionOptions,
};
use lock_conformance::servers::{self, EtcdCluster, EtcdOptions, Trouble, tools};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use super::Store;
use crate::{
    BoxError,
    schedule::{Act, Cut, Return, Side},
};

pub(super) const SIZE: usize = 3;
const LEASES: Duration = Duration::from_secs(60);
/// The user of the clients, and their role.
const USER: &str = "soak";
const ROOT: &str = "root";
const PASSWORD: &str = "pw-s0ak";
/// The keys that clients need to read and write.
const NAMESPACE: &str = "soak/";
const SNAPSHOT: &str = "snapshot";
/// The member that is left behind, and then leads.
const SURVIVOR: usize = 0;
/// Time for a joining member to come up, so that there is a majority again.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// True for every other seed, which then has authentication, so that clients with users and clients
/// without see it change.
fn has_users(seed: u64) -> bool {
    seed % 2 == 1
}

pub(super) fn acts(seed: u64) -> &'static [Act] {
    const ALL: &[Act] = &[
        Act::Compact,
        Act::Defragment,
        Act::MoveLeader,
        Act::Authentication,
        Act::Permission,
    ];
    if has_users(seed) { ALL } else { &ALL[..4] }
}

/// A store that goes back to nothing has no users.
pub(super) fn returns(seed: u64) -> &'static [Return] {
    const ALL: &[Return] = &[
        Return::Copy,
        Return::Snapshot,
        Return::Forced,
        Return::Nothing,
    ];
    if has_users(seed) { &ALL[..3] } else { ALL }
}

/// A cluster of etcd members on this machine.
#[derive(Debug)]
pub(super) struct Etcd {
    cluster: EtcdCluster,
    has_users: bool,
    thawed_leader_revokes: bool,
}

impl Etcd {
    pub(super) async fn start(seed: u64) -> Result<Self, BoxError> {
        // Members join directly after one another.
        let options = EtcdOptions::new()
            .with_argument("--bcrypt-cost=4")
            .with_argument("--strict-reconfig-check=false");
        let cluster =
            tokio::task::spawn_blocking(|| servers::etcd_cluster(options, SIZE)).await??;
        let thawed_leader_revokes = cluster.thawed_leader_revokes().await?;
        if thawed_leader_revokes {
            println!(
                "this etcd revokes live leases when a paused leader goes on (mended in 3.4.31 and 3.5.13): leaders are paused briefly"
            );
        }
        let store = Self {
            cluster,
            has_users: has_users(seed),
            thawed_leader_revokes,
        };
        store.make_users().await?;
        Ok(store)
    }

    /// Addresses that clients connect to.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.cluster.endpoints()
    }

    /// URL of clients that reach the members at these addresses.
    pub(super) fn url_at(&self, endpoints: &[String], ttl: Duration) -> String {
        let user = if self.has_users {
            format!("{USER}:{PASSWORD}@")
        } else {
            String::new()
        };
        let namespace = NAMESPACE.trim_end_matches('/');
        format!(
            "etcd://{user}{}/{namespace}?ttl={}s",
            endpoints.join(","),
            ttl.as_secs()
        )
    }

    /// Connects on a path that no fault touches, unlike the clients under test. With authentication
    /// only root may do everything; without it, a server refuses users.
    async fn operator(&self, member: usize) -> Result<Client, BoxError> {
        let endpoint = [self.cluster.direct_endpoint(member)];
        let root = ConnectOptions::new().with_user(ROOT, PASSWORD);
        match Client::connect(&endpoint, Some(root)).await {
            Ok(operator) => Ok(operator),
            Err(_) => Ok(Client::connect(&endpoint, None).await?),
        }
    }

    async fn make_users(&self) -> Result<(), BoxError> {
        let mut auth = self.operator(0).await?.auth_client();
        for name in [ROOT, USER] {
            auth.user_add(name, PASSWORD, None).await?;
            auth.role_add(name).await?;
            auth.user_grant_role(name, name).await?;
        }
        auth.role_grant_permission(USER, permission()).await?;
        if self.has_users {
            auth.auth_enable().await?;
        }
        Ok(())
    }

    async fn compact(&self) -> Result<(), BoxError> {
        let mut operator = self.operator(0).await?;
        let now = operator.get("\0", None).await?;
        let revision = now
            .header()
            .map_or(1, etcd_client::ResponseHeader::revision);
        operator
            .compact(revision, Some(CompactionOptions::new().with_physical()))
            .await?;
        Ok(())
    }

    async fn move_leader(&self) -> Result<(), BoxError> {
        let leader = self.cluster.leader().await?;
        let heir = self.operator((leader + 1) % SIZE).await?.status().await?;
        let heir = heir
            .header()
            .ok_or("a member does not say its id")?
            .member_id();
        self.operator(leader).await?.move_leader(heir).await?;
        Ok(())
    }

    async fn switch_authentication(&self, lasts: Duration) -> Result<(), BoxError> {
        if !self.has_users {
            // The users exist unless the store has gone back to nothing.
            let _ = self.make_users().await;
        }
        self.set_authentication(!self.has_users).await?;
        sleep(lasts).await;
        self.set_authentication(self.has_users).await
    }

    async fn set_authentication(&self, on: bool) -> Result<(), BoxError> {
        let mut auth = self.operator(0).await?.auth_client();
        if on {
            auth.auth_enable().await?;
        } else {
            auth.auth_disable().await?;
        }
        Ok(())
    }

    async fn revoke_permission(&self, lasts: Duration) -> Result<(), BoxError> {
        let mut auth = self.operator(0).await?.auth_client();
        auth.role_revoke_permission(
            USER,
            NAMESPACE,
            Some(RoleRevokePermissionOptions::new().with_prefix()),
        )
        .await?;
        sleep(lasts).await;
        auth.role_grant_permission(USER, permission()).await?;
        Ok(())
    }

    /// Copies the data as a crash would leave it: nobody writes meanwhile.
    async fn copy_data(&self) -> Result<(), BoxError> {
        (0..SIZE).try_for_each(|at| self.cluster.freeze(at))?;
        for member in 0..SIZE {
            run("rm", &["-rf", &self.path(member, "copy")]).await?;
            run(
                "cp",
                &["-r", &self.path(member, "etcd"), &self.path(member, "copy")],
            )
            .await?;
        }
        Ok((0..SIZE).try_for_each(|at| self.cluster.thaw(at))?)
    }

    async fn save_snapshot(&self) -> Result<(), BoxError> {
        let mut snapshot = self.operator(0).await?.snapshot().await?;
        let mut blob = Vec::new();
        while let Some(part) = snapshot.message().await? {
            blob.extend_from_slice(part.blob());
        }
        Ok(std::fs::write(self.path(0, SNAPSHOT), blob)?)
    }

    /// Restores a member of the same cluster as before, as far as names and addresses make one.
    async fn restore_snapshot(&self, member: usize) -> Result<(), BoxError> {
        let etcdctl = tools::etcdctl()?;
        let name = format!("--name={}", name(member));
        let advertised = format!("--initial-advertise-peer-urls={}", peer(member));
        let cluster = initial_cluster(SIZE);
        let data = format!("--data-dir={}", self.path(member, "etcd"));
        // Without a check, because the checksum is something that only the client program adds.
        let options = [
            "--skip-hash-check=true",
            &name,
            &advertised,
            &cluster,
            &data,
        ];
        run(
            &etcdctl.display().to_string(),
            &[
                &["snapshot", "restore", &self.path(0, SNAPSHOT)],
                &options[..],
            ]
            .concat(),
        )
        .await
    }

    /// Lets the survivor lead alone with its data; the others start with none and join it.
    async fn lead_alone(&self) -> Result<(), BoxError> {
        self.heal(SURVIVOR);
        self.cluster
            .start_with(SURVIVOR, &["--force-new-cluster"])?;
        for joins in (0..SIZE).filter(|at| *at != SURVIVOR) {
            run("rm", &["-rf", &self.path(joins, "etcd")]).await?;
            timeout(JOIN_LIMIT, self.add_member(joins)).await?;
            self.cluster.start_with(
                joins,
                &[
                    "--initial-cluster-state=existing",
                    &initial_cluster(joins + 1),
                ],
            )?;
        }
        Ok(())
    }

    /// Adds a member as soon as the members that are there serve.
    async fn add_member(&self, member: usize) {
        let add = async || -> Result<(), BoxError> {
            let mut operator = self.operator(SURVIVOR).await?;
            // A member that was added although the answer was lost is not added again.
            let members = operator.member_list().await?;
            if !members
                .members()
                .iter()
                .any(|other| other.peer_urls().contains(&peer(member)))
            {
                operator.member_add([peer(member)], None).await?;
            }
            Ok(())
        };
        while add().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn path(&self, member: usize, name: &str) -> String {
        self.cluster
            .directory(member)
            .join(name)
            .display()
            .to_string()
    }
}

fn name(member: usize) -> String {
    format!("member-{member}")
}

fn peer(member: usize) -> String {
    format!("http://192.0.2.{member}:2380")
}

/// The argument that names the first `size` members.
fn initial_cluster(size: usize) -> String {
    let members: Vec<_> = (0..size)
        .map(|at| format!("{}={}", name(at), peer(at)))
        .collect();
    format!("--initial-cluster={}", members.join(","))
}

fn permission() -> Permission {
    Permission::read_write(NAMESPACE).with_prefix()
}

async fn run(program: &str, arguments: &[&str]) -> Result<(), BoxError> {
    let output = Command::new(program)
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .output()
        .await?;
    let failure = || {
        format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    };
    if output.status.success() {
        Ok(())
    } else {
        Err(failure().into())
    }
}

#[async_trait]
impl Store for Etcd {
    fn url(&self, ttl: Duration) -> String {
        self.url_at(&self.cluster.endpoints(), ttl)
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
        self.cluster
            .trouble_with_clients(member, Trouble::Delay(by));
    }

    fn heal(&self, member: usize) {
        self.cluster.heal(member);
    }

    async fn wait_healthy(&self) -> Result<(), BoxError> {
        Ok(self.cluster.wait_healthy().await?)
    }

    fn longest_leader_pause(&self, ttl: Duration) -> Option<Duration> {
        // Clients renew every third of a TTL, so no lease that the leader knows of has less than
        // two thirds left.
        self.thawed_leader_revokes.then_some(ttl / 3)
    }

    async fn serves(&self) -> Option<bool> {
        Some(self.cluster.serves().await)
    }

    async fn term(&self) -> Option<u64> {
        self.cluster.term().await.ok()
    }

    async fn act(&self, act: Act, lasts: Duration) -> Result<(), BoxError> {
        match act {
            Act::Compact => self.compact().await,
            Act::Defragment => {
                for member in 0..SIZE {
                    self.operator(member).await?.defragment().await?;
                }
                Ok(())
            }
            Act::MoveLeader => self.move_leader().await,
            Act::Authentication => self.switch_authentication(lasts).await,
            Act::Permission => self.revoke_permission(lasts).await,
            other => Err(format!("etcd has nothing to {other}").into()),
        }
    }

    async fn back_up(&self, to: Return) -> Result<(), BoxError> {
        match to {
            Return::Copy => self.copy_data().await,
            Return::Snapshot => self.save_snapshot().await,
            Return::Forced => {
                self.cluster
                    .trouble_with_peers(SURVIVOR, Trouble::Blackhole);
                Ok(())
            }
            Return::Nothing => Ok(()),
        }
    }

    async fn put_back(&self, to: Return) -> Result<(), BoxError> {
        if to == Return::Forced {
            return self.lead_alone().await;
        }
        for member in 0..SIZE {
            run("rm", &["-rf", &self.path(member, "etcd")]).await?;
            match to {
                Return::Copy => {
                    run(
                        "cp",
                        &["-r", &self.path(member, "copy"), &self.path(member, "etcd")],
                    )
                    .await?;
                }
                Return::Snapshot => self.restore_snapshot(member).await?,
                Return::Forced | Return::Nothing => {}
            }
            self.cluster.start(member)?;
        }
        Ok(())
    }

    fn forgets_tokens(&self) -> bool {
        true
    }

    /// A session, and whatever is under way on it, may end one TTL after the cause of the error.
    fn wait_limit(&self) -> fn(Duration) -> Duration {
        |ttl| ttl
    }

    fn prompt(&self) -> bool {
        false
    }

    /// Leases of acquisitions that were given up in an outage must expire, and a member may be slow
    /// to elect.
    fn settles(&self, ttl: Duration) -> (Duration, Duration) {
        (ttl + LEASES, ttl + LEASES)
    }

    async fn contents(&self) -> Result<Vec<String>, BoxError> {
        let mut operator = self.operator(0).await?;
        let keys = operator
            .get("", Some(GetOptions::new().with_all_keys().with_keys_only()))
            .await?;
        let leases = operator.leases().await?;
        let keys = keys
            .kvs()
            .iter()
            .map(|kv| format!("the key {}", String::from_utf8_lossy(kv.key())));
        Ok(keys
            .chain(
                leases
                    .leases()
                    .iter()
                    .map(|lease| format!("the lease {:x}", lease.id())),
            )
            .collect())
    }
}
