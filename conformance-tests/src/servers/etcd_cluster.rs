use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use lock_core::backend::locked;

use super::{
    EtcdOptions, Trouble,
    etcd_member::EtcdMember,
    http,
    peer_network::PeerNetwork,
    poll::poll,
    process::{Process, START_LIMIT},
    process_state::{ProcessState, process_state},
    service::Service,
};

/// Several etcd servers that form one cluster. Each can be killed, frozen, and cut off from the
/// others or from its clients.
///
/// Members are numbered from 0. Clones are handles of the same cluster, which ends like a
/// [`Server`](super::Server): with its last handle, and however this process ends.
///
/// ```no_run
/// use lock_conformance::servers::{self, EtcdOptions, Trouble};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = servers::etcd_cluster(EtcdOptions::new(), 3)?;
/// let leader = cluster.leader().await?;
/// cluster.trouble_with_peers(leader, Trouble::Blackhole);
/// // ... the other two elect another leader ...
/// cluster.heal(leader);
/// cluster.wait_healthy().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EtcdCluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // Dropped before the network, so that no member sees it fail.
    members: Vec<Member>,
    network: PeerNetwork,
}

#[derive(Debug)]
struct Member {
    process: Process,
    /// The member's id in the cluster when it was last asked; a member that joins anew gets another
    /// one.
    id: Mutex<Option<String>>,
}

/// Status that a member reports of itself.
#[derive(Debug)]
struct Status {
    leader: String,
    term: u64,
    version: String,
}

/// A member that does not answer within this time is not asked again for a moment.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

impl EtcdCluster {
    pub(super) fn start_new(
        options: &EtcdOptions,
        size: usize,
        program: &Path,
    ) -> io::Result<Self> {
        let mut network = PeerNetwork::new(size)?;
        let mut members = Vec::new();
        for at in 0..size {
            let service = EtcdMember {
                options: options.clone(),
                at,
                size,
                gate: network.gate(at),
            };
            members.push(Member {
                process: Process::prepare(Box::new(service), program)?,
                id: Mutex::default(),
            });
        }
        let peers = members
            .iter()
            .map(|member| member.process.peer_address())
            .collect();
        let clients = members
            .iter()
            .map(|member| ([127, 0, 0, 1], member.process.port()).into())
            .collect();
        network.plug_in(peers, clients)?;
        let cluster = Self(Arc::new(Inner { members, network }));
        for at in 0..size {
            cluster.start(at)?;
        }
        cluster.wait_healthy_blocking()?;
        options.set_up(cluster.member(0).process.plain_address())?;
        Ok(cluster)
    }

    /// Number of members.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.members.len()
    }

    /// `host:port` of every member for clients, through the links that
    /// [`trouble_with_clients`](Self::trouble_with_clients) disturbs.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.size())
            .map(|at| self.0.network.clients(at).address().to_string())
            .collect()
    }

    /// The URL of all [`endpoints`](Self::endpoints), without user and password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://{}", self.endpoints().join(","))
    }

    /// `host:port` of one member for an observer that no trouble reaches.
    #[must_use]
    pub fn direct_endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.member(member).process.port())
    }

    /// The process id of the member, unless it was killed.
    #[must_use]
    pub fn pid(&self, member: usize) -> Option<u32> {
        self.member(member).process.pid()
    }

    /// Directory of the member's files and its `log`.
    #[must_use]
    pub fn directory(&self, member: usize) -> PathBuf {
        self.member(member).process.directory()
    }

    /// Kills a member at once (SIGKILL), even if it is frozen; its ports and data stay for
    /// [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// If its supervisor was killed.
    pub fn kill(&self, member: usize) -> io::Result<()> {
        self.member(member).process.kill()
    }

    /// Starts a member again on its ports and data, after killing it if it runs. Does not wait,
    /// because a single member cannot serve.
    ///
    /// # Errors
    ///
    /// If its supervisor was killed.
    pub fn start(&self, member: usize) -> io::Result<()> {
        self.start_with(member, &[])
    }

    /// As [`start`](Self::start), with more arguments, which must not contain blanks. They count
    /// for this start only.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start).
    pub fn start_with(&self, member: usize, arguments: &[&str]) -> io::Result<()> {
        self.member(member).process.launch(arguments).map(drop)
    }

    /// Stops a member from doing anything, with all connections left open (SIGSTOP).
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn freeze(&self, member: usize) -> io::Result<()> {
        self.member(member).process.freeze()
    }

    /// Resumes a frozen member (SIGCONT).
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn thaw(&self, member: usize) -> io::Result<()> {
        self.member(member).process.thaw()
    }

    /// Disturbs all links between a member and its peers, whoever opened the connection.
    pub fn trouble_with_peers(&self, member: usize, trouble: Trouble) {
        self.0.network.isolate(member, trouble);
    }

    /// Disturbs the link between a member and its clients.
    pub fn trouble_with_clients(&self, member: usize, trouble: Trouble) {
        self.0.network.clients(member).set(trouble);
    }

    /// Ends all trouble of a member's links.
    pub fn heal(&self, member: usize) {
        self.trouble_with_peers(member, Trouble::None);
        self.trouble_with_clients(member, Trouble::None);
    }

    /// Waits until a majority of the members agrees on a leader, and returns that leader.
    ///
    /// # Errors
    ///
    /// If there is none within a minute.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn leader(&self) -> io::Result<usize> {
        self.leader_where(|_| true).await
    }

    /// Waits until a majority follows a leader other than this one.
    ///
    /// # Errors
    ///
    /// The errors of [`leader`](Self::leader).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn leader_other_than(&self, member: usize) -> io::Result<usize> {
        self.leader_where(move |leader| leader != member).await
    }

    /// True if a leader that was frozen for longer than the leases last revokes them once it
    /// resumes, even though another leader has kept them alive meanwhile. This defect of etcd
    /// before 3.4.31 and 3.5.13 takes locks away from live holders.
    ///
    /// # Errors
    ///
    /// If no member runs.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn thawed_leader_revokes(&self) -> io::Result<bool> {
        self.blocking(|cluster| {
            let version = poll(START_LIMIT, || {
                cluster
                    .statuses()
                    .into_iter()
                    .flatten()
                    .next()
                    .map(|status| status.version)
            });
            version
                .map(|version| revokes_when_thawed(&version))
                .ok_or_else(|| io::Error::other("no member says its version"))
        })
        .await
    }

    /// Waits until every member serves requests, all under one leader.
    ///
    /// # Errors
    ///
    /// If that does not happen within a minute, with the end of a member's log.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn wait_healthy(&self) -> io::Result<()> {
        self.blocking(Self::wait_healthy_blocking).await
    }

    /// True if any member answers at this moment that it can write. The members are asked directly,
    /// where no trouble reaches.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn serves(&self) -> bool {
        let (sender, mut answers) = tokio::sync::mpsc::channel(self.size());
        for at in 0..self.size() {
            let cluster = self.clone();
            let sender = sender.clone();
            tokio::task::spawn_blocking(move || {
                sender.blocking_send(cluster.member(at).is_ready())
            });
        }
        drop(sender);
        while let Some(answer) = answers.recv().await {
            if answer {
                return true;
            }
        }
        false
    }

    /// The latest term that any member knows of; every election increases it.
    ///
    /// # Errors
    ///
    /// If no member answers now.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn term(&self) -> io::Result<u64> {
        let term = |cluster: &Self| {
            cluster
                .statuses()
                .into_iter()
                .flatten()
                .map(|status| status.term)
                .max()
        };
        self.blocking(move |cluster| {
            term(cluster).ok_or_else(|| io::Error::other("no member says its term"))
        })
        .await
    }

    async fn leader_where(
        &self,
        wanted: impl Fn(usize) -> bool + Send + 'static,
    ) -> io::Result<usize> {
        self.blocking(move |cluster| {
            let found = poll(START_LIMIT, || {
                cluster.current_leader().filter(|leader| wanted(*leader))
            });
            found.ok_or_else(|| {
                cluster
                    .member(0)
                    .process
                    .complaint("found no leader in time")
            })
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let cluster = self.clone();
        tokio::task::spawn_blocking(move || run(&cluster))
            .await
            .map_err(io::Error::other)?
    }

    fn wait_healthy_blocking(&self) -> io::Result<()> {
        let mut sick = None;
        let healthy = poll(START_LIMIT, || {
            sick = self.0.members.iter().position(|member| !member.is_ready());
            let leader = self.current_leader();
            let id = leader.and_then(|leader| self.member(leader).id());
            let follows = |status: &Option<Status>| {
                status
                    .as_ref()
                    .is_some_and(|status| Some(&status.leader) == id.as_ref())
            };
            let all_follow = || self.statuses().iter().all(follows);
            (sick.is_none() && leader.is_some() && all_follow()).then_some(())
        });
        healthy.ok_or_else(|| {
            self.member(sick.unwrap_or(0))
                .process
                .complaint("did not get healthy in time")
        })
    }

    fn current_leader(&self) -> Option<usize> {
        let statuses = self.statuses();
        let votes = |id: &String| {
            statuses
                .iter()
                .flatten()
                .filter(|status| status.leader == *id)
                .count()
        };
        // The followers of a killed leader name it until they miss it.
        let elected = |member: &Member| {
            member.runs() && member.id().is_some_and(|id| votes(&id) > self.size() / 2)
        };
        self.0.members.iter().position(elected)
    }

    fn statuses(&self) -> Vec<Option<Status>> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = self
                .0
                .members
                .iter()
                .map(|member| scope.spawn(|| member.status()))
                .collect();
            asked
                .into_iter()
                .map(|status| status.join().ok().flatten())
                .collect()
        })
    }

    fn member(&self, at: usize) -> &Member {
        &self.0.members[at]
    }
}

impl Member {
    fn runs(&self) -> bool {
        self.process
            .pid()
            .is_some_and(|pid| process_state(pid) == ProcessState::Alive)
    }

    fn id(&self) -> Option<String> {
        locked(&self.id).clone()
    }

    fn is_ready(&self) -> bool {
        self.runs()
            && self
                .process
                .service()
                .is_ready(self.process.plain_address())
    }

    fn status(&self) -> Option<Status> {
        if !self.runs() {
            return None;
        }
        let answer = http::post_within(
            STATUS_LIMIT,
            self.process.plain_address(),
            "/v3/maintenance/status",
            "{}",
        )
        .ok()?;
        let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        if let Some(id) = text(&answer["header"]["member_id"]) {
            *locked(&self.id) = Some(id);
        }
        let term = text(&answer["raftTerm"])?.parse().ok()?;
        Some(Status {
            leader: text(&answer["leader"])?,
            term,
            version: text(&answer["version"])?,
        })
    }
}

fn revokes_when_thawed(version: &str) -> bool {
    let mut numbers = version
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (major, minor, patch): (u32, u32, u32) = (next(), next(), next());
    match (major, minor) {
        (3, 4) => patch < 31,
        (3, 5) => patch < 13,
        branch => branch < (3, 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_versions_with_the_defect() {
        for (version, has) in [
            ("3.3.25", true),
            ("3.4.23", true),
            ("3.4.31", false),
            ("3.5.12", true),
            ("3.5.16", false),
            ("3.6.0-rc.1", false),
        ] {
            assert_eq!(revokes_when_thawed(version), has, "{version}");
        }
    }
}
