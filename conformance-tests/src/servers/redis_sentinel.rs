use std::{io, path::Path, sync::Arc, time::Duration};

use super::{
    RedisOptions, Trouble,
    poll::poll,
    process::START_LIMIT,
    redis_group::{RedisGroup, RedisRole},
};

/// A Redis server with replicas, and sentinels that watch over them. Each server is behind a proxy,
/// and clients are sent to that proxy.
///
/// Servers are numbered from 0, which is the master at first; so are sentinels. Clones are handles
/// of the same servers, which end like a [`Server`](super::Server): with the last handle, and
/// however this process ends.
///
/// ```no_run
/// use lock_conformance::servers::{self, RedisOptions};
/// use std::time::Duration;
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let servers = servers::redis_sentinel(RedisOptions::new(), 1, 3, Duration::from_secs(1))?;
/// servers.kill(0)?;
/// // ... the sentinels make server 1 the master ...
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RedisSentinel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    group: RedisGroup,
    servers: usize,
    sentinels: usize,
}

impl RedisSentinel {
    /// Name of the servers, as the sentinels know them.
    pub const SERVICE: &str = "lock-test";

    /// The sentinels' own password, if the servers have one.
    pub const PASSWORD: &str = "pa55-of-the-sentinels";

    pub(super) fn start_new(
        options: &RedisOptions,
        replicas: usize,
        sentinels: usize,
        down_after: Duration,
        program: &Path,
    ) -> io::Result<Self> {
        let servers = replicas + 1;
        let roles = [
            vec![RedisRole::Server; servers],
            vec![RedisRole::Sentinel; sentinels],
        ]
        .concat();
        let quorum = sentinels / 2 + 1;
        let password = options.password();
        let settings = |group: &RedisGroup, at: usize| match at {
            0 => announced(group, 0),
            at if at < servers => format!(
                "{}replicaof 127.0.0.1 {}\n",
                announced(group, at),
                group.address(0).port()
            ),
            _ => watch(group.address(0).port(), quorum, down_after, password),
        };
        let group = RedisGroup::start_new(options, &roles, program, settings)?;
        let this = Self(Arc::new(Inner {
            group,
            servers,
            sentinels,
        }));
        this.wait_healthy_blocking()?;
        Ok(this)
    }

    /// Number of servers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.servers
    }

    /// `host:port` of a sentinel, for clients.
    #[must_use]
    pub fn sentinel(&self, sentinel: usize) -> String {
        self.0.group.address(self.0.servers + sentinel).to_string()
    }

    /// `host:port` of a sentinel for an observer that no trouble reaches and that needs no TLS.
    #[must_use]
    pub fn direct_sentinel(&self, sentinel: usize) -> String {
        self.0
            .group
            .process(self.0.servers + sentinel)
            .plain_address()
            .to_string()
    }

    /// The URL of the sentinels and the service, without passwords.
    #[must_use]
    pub fn url(&self) -> String {
        let sentinels: Vec<_> = (0..self.0.sentinels).map(|at| self.sentinel(at)).collect();
        format!(
            "{}+sentinel://{}/{}",
            self.0.group.scheme(),
            sentinels.join(","),
            Self::SERVICE
        )
    }

    /// `host:port` of a server as the sentinels name it.
    #[must_use]
    pub fn endpoint(&self, server: usize) -> String {
        self.0.group.address(server).to_string()
    }

    /// `host:port` of a server for an observer that no trouble reaches and that needs no TLS.
    #[must_use]
    pub fn direct_endpoint(&self, server: usize) -> String {
        self.0.group.process(server).plain_address().to_string()
    }

    /// The server that a sentinel considers the master.
    #[must_use]
    pub fn master_by(&self, sentinel: usize) -> Option<usize> {
        let answer = self.ask_sentinel(
            sentinel,
            &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::SERVICE],
        )?;
        let port = answer.lines().nth(1)?;
        (0..self.0.servers).find(|at| self.0.group.address(*at).port().to_string() == port)
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

    /// Disturbs the link between a server and its clients, which include its replicas and the
    /// sentinels.
    pub fn trouble(&self, server: usize, trouble: Trouble) {
        self.0.group.proxy(server).set(trouble);
    }

    /// Kills a server at once (SIGKILL), even if it is frozen; its port and data stay for
    /// [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// If its supervisor was killed.
    pub fn kill(&self, server: usize) -> io::Result<()> {
        self.0.group.process(server).kill()
    }

    /// Kills a sentinel.
    ///
    /// # Errors
    ///
    /// The errors of [`kill`](Self::kill).
    pub fn kill_sentinel(&self, sentinel: usize) -> io::Result<()> {
        self.0.group.process(self.0.servers + sentinel).kill()
    }

    /// Starts a server again on its port and data, after killing it if it runs, and returns when it
    /// serves requests.
    ///
    /// # Errors
    ///
    /// If it does not start.
    ///
    /// # Cancel safety
    ///
    /// The start goes on in the background.
    pub async fn start(&self, server: usize) -> io::Result<()> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.0.group.process(server).start())
            .await
            .map_err(io::Error::other)?
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

    fn wait_healthy_blocking(&self) -> io::Result<()> {
        let Inner {
            group,
            servers,
            sentinels,
        } = &*self.0;
        let replicates = |at| {
            group
                .field(at, &["INFO", "replication"], "master_link_status")
                .as_deref()
                == Some("up")
        };
        let healthy = poll(START_LIMIT, || {
            let ready =
                (1..*servers).all(replicates) && (0..*sentinels).all(|at| self.knows_all(at));
            ready.then_some(())
        });
        healthy.ok_or_else(|| {
            group
                .process(*servers)
                .complaint("did not find all servers and sentinels in time")
        })
    }

    fn knows_all(&self, sentinel: usize) -> bool {
        let Some(answer) = self.ask_sentinel(sentinel, &["SENTINEL", "MASTER", Self::SERVICE])
        else {
            return false;
        };
        let lines: Vec<_> = answer.lines().collect();
        let number = |field| {
            lines
                .iter()
                .position(|line| *line == field)
                .and_then(|at| lines.get(at + 1)?.parse().ok())
        };
        number("num-slaves") == Some(self.0.servers - 1)
            && number("num-other-sentinels") == Some(self.0.sentinels - 1)
    }

    fn ask_sentinel(&self, sentinel: usize, command: &[&str]) -> Option<String> {
        let at = self.0.servers + sentinel;
        self.0
            .group
            .ask_with(
                at,
                self.0.group.has_password().then_some(Self::PASSWORD),
                command,
            )
            .ok()
    }
}

/// Settings that make a server announce the address of its proxy.
fn announced(group: &RedisGroup, at: usize) -> String {
    format!(
        "replica-announce-ip 127.0.0.1\nreplica-announce-port {}\n",
        group.address(at).port()
    )
}

fn watch(master: u16, quorum: usize, down_after: Duration, password: Option<&str>) -> String {
    let name = RedisSentinel::SERVICE;
    let own = RedisSentinel::PASSWORD;
    let mut settings = format!(
        "sentinel monitor {name} 127.0.0.1 {master} {quorum}\n\
         sentinel down-after-milliseconds {name} {}\n\
         sentinel failover-timeout {name} 10000\n",
        down_after.as_millis()
    );
    if let Some(password) = password {
        settings += &format!(
            "sentinel auth-pass {name} {password}\nrequirepass {own}\nsentinel sentinel-pass {own}\n"
        );
    }
    settings
}
