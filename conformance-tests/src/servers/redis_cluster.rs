use std::{io, path::Path, sync::Arc};

use super::{
    RedisOptions, Trouble,
    poll::poll,
    process::START_LIMIT,
    redis_group::{RedisGroup, RedisRole},
    service::Service,
};

/// Redis servers that form one cluster. Each is behind a proxy, and clients are sent to that proxy.
///
/// Servers are numbered from 0: first the masters, then the replicas, in the order of their
/// masters. Clones are handles of the same cluster, which ends like a [`Server`](super::Server):
/// with its last handle, and however this process ends.
///
/// ```no_run
/// use lock_conformance::servers::{self, RedisOptions};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = servers::redis_cluster(RedisOptions::new(), 3, 3)?;
/// cluster.kill(0)?;
/// // ... server 3, its replica, takes over ...
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RedisCluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    group: RedisGroup,
    masters: usize,
    size: usize,
}

const SLOTS: usize = 16384;

impl RedisCluster {
    pub(super) fn start_new(
        options: &RedisOptions,
        masters: usize,
        replicas: usize,
        program: &Path,
    ) -> io::Result<Self> {
        let size = masters + replicas;
        let announced = |group: &RedisGroup, at: usize| {
            let bus = group.process(at).peer_address().port();
            let client = group.address(at).port();
            let tls = if options.certificates().is_some() {
                "tls-"
            } else {
                ""
            };
            format!(
                "cluster-announce-ip 127.0.0.1\ncluster-announce-{tls}port {client}\ncluster-announce-bus-port {bus}\n"
            )
        };
        let group = RedisGroup::start_new(
            options,
            &vec![RedisRole::Clustered; size],
            program,
            announced,
        )?;
        let cluster = Self(Arc::new(Inner {
            group,
            masters,
            size,
        }));
        cluster.join()?;
        cluster.wait_healthy_blocking()?;
        Ok(cluster)
    }

    /// Number of servers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// `host:port` of a server as clients know it, through the proxy that
    /// [`trouble`](Self::trouble) disturbs.
    #[must_use]
    pub fn endpoint(&self, server: usize) -> String {
        self.0.group.address(server).to_string()
    }

    /// `host:port` of a server for an observer that no trouble reaches and that needs no TLS.
    #[must_use]
    pub fn direct_endpoint(&self, server: usize) -> String {
        self.0.group.process(server).plain_address().to_string()
    }

    /// The URL of the masters that the cluster started with, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        let seeds: Vec<_> = (0..self.0.masters).map(|at| self.endpoint(at)).collect();
        format!("{}+cluster://{}", self.0.group.scheme(), seeds.join(","))
    }

    /// The server's id in the cluster.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn id(&self, server: usize) -> io::Result<String> {
        self.0.group.ask(server, &["CLUSTER", "MYID"])
    }

    /// True if the server considers itself a master.
    #[must_use]
    pub fn is_master(&self, server: usize) -> bool {
        self.0
            .group
            .field(server, &["INFO", "replication"], "role")
            .as_deref()
            == Some("master")
    }

    /// True if the server considers itself a replica.
    #[must_use]
    pub fn is_replica(&self, server: usize) -> bool {
        self.0
            .group
            .field(server, &["INFO", "replication"], "role")
            .as_deref()
            == Some("slave")
    }

    /// Disturbs the link between a server and its clients, which include its replicas.
    pub fn trouble(&self, server: usize, trouble: Trouble) {
        self.0.group.proxy(server).set(trouble);
    }

    /// Kills a server at once (SIGKILL), even if it is frozen; its ports and data stay for
    /// [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// If its supervisor was killed.
    pub fn kill(&self, server: usize) -> io::Result<()> {
        self.0.group.process(server).kill()
    }

    /// Starts a server again on its ports and data, after killing it if it runs. Does not wait for
    /// the cluster.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(&self, server: usize) -> io::Result<()> {
        self.0.group.process(server).start()
    }

    /// Stops a server from doing anything, with all connections left open (SIGSTOP).
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn freeze(&self, server: usize) -> io::Result<()> {
        self.0.group.process(server).freeze()
    }

    /// Resumes a frozen server (SIGCONT).
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn thaw(&self, server: usize) -> io::Result<()> {
        self.0.group.process(server).thaw()
    }

    /// Kills and starts all servers, then waits as [`wait_healthy`](Self::wait_healthy) does.
    ///
    /// # Errors
    ///
    /// If a server does not start, or as for [`wait_healthy`](Self::wait_healthy).
    ///
    /// # Cancel safety
    ///
    /// The restart goes on in the background.
    pub async fn restart(&self) -> io::Result<()> {
        self.blocking(|cluster| {
            (0..cluster.size()).try_for_each(|at| cluster.start(at))?;
            cluster.wait_healthy_blocking()
        })
        .await
    }

    /// Waits until all running servers serve requests and their replicas are connected.
    ///
    /// # Errors
    ///
    /// If that takes more than a minute.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn wait_healthy(&self) -> io::Result<()> {
        self.blocking(Self::wait_healthy_blocking).await
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

    fn join(&self) -> io::Result<()> {
        let Inner {
            group,
            masters,
            size,
        } = &*self.0;
        for at in 0..*size {
            group.ask(at, &["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()])?;
        }
        for at in 0..*masters {
            let first = SLOTS * at / masters;
            let end = SLOTS * (at + 1) / masters;
            group.ask(
                at,
                &[
                    "CLUSTER",
                    "ADDSLOTSRANGE",
                    &first.to_string(),
                    &(end - 1).to_string(),
                ],
            )?;
        }
        for at in 1..*size {
            let process = group.process(at);
            let port = process.port().to_string();
            let bus = process.peer_address().port().to_string();
            group.ask(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
        }
        for replica in *masters..*size {
            let master = self.id((replica - masters) % masters)?;
            let joined = poll(START_LIMIT, || {
                group.ask(replica, &["CLUSTER", "REPLICATE", &master]).ok()
            });
            joined.ok_or_else(|| {
                group
                    .process(replica)
                    .complaint("could not become a replica in time")
            })?;
        }
        Ok(())
    }

    fn wait_healthy_blocking(&self) -> io::Result<()> {
        let mut sick = 0;
        let healthy = poll(START_LIMIT, || {
            let first_sick =
                (0..self.size()).find(|at| self.0.group.runs(*at) && !self.is_healthy(*at));
            sick = first_sick.unwrap_or(sick);
            first_sick.is_none().then_some(())
        });
        healthy.ok_or_else(|| {
            self.0
                .group
                .process(sick)
                .complaint("did not get healthy in time")
        })
    }

    fn is_healthy(&self, at: usize) -> bool {
        let group = &self.0.group;
        let info = |field| group.field(at, &["CLUSTER", "INFO"], field);
        let knows_all = info("cluster_known_nodes") == Some(self.size().to_string())
            && info("cluster_size") == Some(self.0.masters.to_string());
        let replicates = || {
            group
                .field(at, &["INFO", "replication"], "master_link_status")
                .is_none_or(|status| status == "up")
        };
        info("cluster_state").as_deref() == Some("ok") && knows_all && replicates()
    }
}
