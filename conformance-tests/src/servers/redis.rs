use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use super::{
    Certificates,
    service::{About, Service, Site, Tls},
    tools::ClockAhead,
};

static ABOUT: About = About {
    name: "redis",
    url_variable: "LOCK_TEST_REDIS",
    program: "redis-server",
    program_variable: "LOCK_TEST_REDIS_BIN",
    image_variable: "LOCK_TEST_REDIS_IMAGE",
    package: "redis-server",
};

const ASK_LIMIT: Duration = Duration::from_secs(1);

/// Options of a Redis server. By default it has neither authentication nor TLS, and every write is
/// on disk before its reply.
#[derive(Clone, Default)]
pub struct RedisOptions {
    volatile: bool,
    password: Option<String>,
    tls: Option<Tls>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    own: bool,
}

impl RedisOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps nothing on disk: a restarted server is empty.
    #[must_use]
    pub fn without_persistence(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// Demands this password from the default user.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Serves clients over TLS only.
    #[must_use]
    pub fn with_tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(Tls {
            certificates: certificates.clone(),
            is_mutual: false,
        });
        self
    }

    /// Serves clients over TLS only, and only those that have a certificate of the same authority.
    #[must_use]
    pub fn with_mutual_tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(Tls {
            certificates: certificates.clone(),
            is_mutual: true,
        });
        self
    }

    /// Adds one argument of the command line.
    #[must_use]
    pub fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets the server's wall clock ahead by this many seconds, with the library from
    /// [`tools::clock_ahead`](super::tools::clock_ahead).
    #[must_use]
    pub fn with_clock_ahead(mut self, clock: &ClockAhead, seconds: u32) -> Self {
        let library = clock.library().display().to_string();
        self.environment = vec![
            ("LD_PRELOAD".to_owned(), library),
            ("CLOCK_AHEAD".to_owned(), seconds.to_string()),
        ];
        self
    }

    /// Never uses a server from the environment, for tests that freeze, kill or restart it.
    #[must_use]
    pub fn own(mut self) -> Self {
        self.own = true;
        self
    }

    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Arguments for the ports that the server listens on, and for its certificates.
    pub(super) fn port_arguments(&self, site: &Site<'_>) -> Vec<String> {
        let client = site.ports.client.number().to_string();
        let plain = site.ports.plain.number().to_string();
        let Some(tls) = &self.tls else {
            return words(["--port", &client]);
        };
        let clients = if tls.is_mutual { "yes" } else { "no" };
        let mut arguments = words([
            "--port",
            &plain,
            "--tls-port",
            &client,
            "--tls-auth-clients",
            clients,
        ]);
        let files = &tls.certificates;
        for (option, file) in [
            ("--tls-ca-cert-file", files.ca()),
            ("--tls-cert-file", files.server_cert()),
            ("--tls-key-file", files.server_key()),
        ] {
            arguments.extend(words([option, &file.display().to_string()]));
        }
        arguments
    }

    /// Uses TLS between servers too, if clients must use it. The servers of a cluster demand
    /// certificates of each other.
    pub(super) fn peer_arguments(&self) -> Vec<String> {
        let Some(Tls { certificates, .. }) = &self.tls else {
            return Vec::new();
        };
        let cert = certificates.client_cert().display().to_string();
        let key = certificates.client_key().display().to_string();
        let files = words([
            "--tls-client-cert-file",
            &cert,
            "--tls-client-key-file",
            &key,
        ]);
        [
            words(["--tls-replication", "yes", "--tls-cluster", "yes"]),
            files,
        ]
        .concat()
    }

    fn persistence_arguments(&self) -> Vec<String> {
        let append = if self.volatile { "no" } else { "yes" };
        // No snapshot and no rewrite: both fork a child that could outlive a killed server.
        let forks = words(["--save", "", "--auto-aof-rewrite-percentage", "0"]);
        [
            forks,
            words(["--appendonly", append, "--appendfsync", "always"]),
        ]
        .concat()
    }
}

impl Service for RedisOptions {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn is_default(&self) -> bool {
        !self.own
            && !self.volatile
            && self.password.is_none()
            && self.tls.is_none()
            && self.arguments.is_empty()
            && self.environment.is_empty()
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        }
    }

    fn certificates(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.certificates.directory())
    }

    fn arguments(&self, site: &Site<'_>) -> Vec<String> {
        let mut arguments = self.port_arguments(site);
        arguments.extend(words([
            "--bind",
            &site.listen.to_string(),
            "--protected-mode",
            "no",
        ]));
        arguments.extend(words(["--dir", &site.data.display().to_string()]));
        arguments.extend(self.persistence_arguments());
        if let Some(password) = &self.password {
            arguments.extend(words(["--requirepass", password]));
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }

    fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        // A server that asks for a password first has loaded its data, too.
        ping(address).is_ok_and(|reply| reply.starts_with("+PONG") || reply.starts_with("-NOAUTH"))
    }

    fn set_up(&self, _address: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("volatile", &self.volatile)
            .field("authentication", &self.password.is_some())
            .field("tls", &self.tls)
            .field("arguments", &self.arguments)
            .field("environment", &self.environment)
            .field("own", &self.own)
            .finish()
    }
}

fn ping(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ASK_LIMIT)?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 64];
    let length = stream.read(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
