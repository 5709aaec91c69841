use std::{fmt, io, net::SocketAddr, path::Path, time::Duration};

use super::{
    Certificates, http,
    poll::poll,
    service::{About, Service, Site, Tls},
};

static ABOUT: About = About {
    name: "etcd",
    url_variable: "LOCK_TEST_ETCD",
    program: "etcd",
    program_variable: "LOCK_TEST_ETCD_BIN",
    image_variable: "LOCK_TEST_ETCD_IMAGE",
    package: "etcd-server",
};

/// Options of an etcd server. By default it is one member without authentication or TLS.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    heartbeat: Option<Duration>,
    election: Option<Duration>,
    root_password: Option<String>,
    tls: Option<Tls>,
    arguments: Vec<String>,
    own: bool,
}

impl EtcdOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the interval of heartbeats and the election timeout, which also bounds the shortest
    /// TTL. By default 100 ms and 1 s.
    #[must_use]
    pub fn with_election(mut self, heartbeat: Duration, election: Duration) -> Self {
        (self.heartbeat, self.election) = (Some(heartbeat), Some(election));
        self
    }

    /// Turns authentication on, with a user `root` that has this password.
    #[must_use]
    pub fn with_root_password(mut self, password: impl Into<String>) -> Self {
        self.root_password = Some(password.into());
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

    /// Never uses a server from the environment, for tests that freeze, kill or restart it.
    #[must_use]
    pub fn own(mut self) -> Self {
        self.own = true;
        self
    }

    /// The command line of one member of a cluster, whose other members find it at `advertised`.
    pub(super) fn command_line(
        &self,
        site: &Site<'_>,
        name: &str,
        advertised: &str,
        cluster: &str,
    ) -> Vec<String> {
        let listen = self.listen_urls(site);
        let advertise = listen.replace(&site.listen.to_string(), "127.0.0.1");
        let mut arguments = vec![
            format!("--name={name}"),
            format!("--data-dir={}", site.data.join("etcd").display()),
            format!("--listen-client-urls={listen}"),
            format!("--advertise-client-urls={advertise}"),
            format!(
                "--listen-peer-urls=http://127.0.0.1:{}",
                site.ports.peer.number()
            ),
            format!("--initial-advertise-peer-urls={advertised}"),
            format!("--initial-cluster={cluster}"),
            "--logger=zap".to_owned(),
        ];
        arguments.extend(self.timing());
        arguments.extend(self.tls_arguments());
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }

    fn timing(&self) -> impl Iterator<Item = String> {
        let argument = |name: &str, value: Option<Duration>| {
            value.map(|value| format!("--{name}={}", value.as_millis()))
        };
        argument("heartbeat-interval", self.heartbeat)
            .into_iter()
            .chain(argument("election-timeout", self.election))
    }

    fn tls_arguments(&self) -> Vec<String> {
        let Some(tls) = &self.tls else {
            return Vec::new();
        };
        let files = &tls.certificates;
        let mut arguments = vec![
            format!("--cert-file={}", files.server_cert().display()),
            format!("--key-file={}", files.server_key().display()),
        ];
        // An authority alone makes etcd demand client certificates.
        if tls.is_mutual {
            arguments.extend([
                format!("--trusted-ca-file={}", files.ca().display()),
                "--client-cert-auth=true".to_owned(),
            ]);
        }
        arguments
    }

    fn listen_urls(&self, site: &Site<'_>) -> String {
        let client = site.ports.client.number();
        let plain = site.ports.plain.number();
        match self.tls {
            Some(_) => format!("https://{0}:{client},http://{0}:{plain}", site.listen),
            None => format!("http://{}:{client}", site.listen),
        }
    }
}

impl Service for EtcdOptions {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn is_default(&self) -> bool {
        !self.own
            && self.heartbeat.is_none()
            && self.election.is_none()
            && self.root_password.is_none()
            && self.tls.is_none()
            && self.arguments.is_empty()
    }

    fn scheme(&self) -> &'static str {
        "etcd"
    }

    fn certificates(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.certificates.directory())
    }

    fn arguments(&self, site: &Site<'_>) -> Vec<String> {
        let peer = format!("http://127.0.0.1:{}", site.ports.peer.number());
        self.command_line(site, "one", &peer, &format!("one={peer}"))
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        http::get(address, "/health").is_ok_and(|body| body.contains(r#""health":"true""#))
    }

    fn set_up(&self, address: SocketAddr) -> io::Result<()> {
        let Some(password) = &self.root_password else {
            return Ok(());
        };
        let user = serde_json::json!({ "name": "root", "password": password }).to_string();
        set_up_once(address, "/v3/auth/user/add", &user)?;
        set_up_once(address, "/v3/auth/role/add", r#"{"name":"root"}"#)?;
        let grant = r#"{"user":"root","role":"root"}"#;
        set_up_once(address, "/v3/auth/user/grant", grant)?;
        set_up_once(address, "/v3/auth/enable", "{}")
    }
}

/// Makes a request that takes effect once. The gateway's own connection may break when it is first
/// used, whether or not the request has been carried out.
fn set_up_once(address: SocketAddr, path: &str, json: &str) -> io::Result<()> {
    let mut outcome = Ok(());
    poll(SET_UP_LIMIT, || {
        outcome = match http::post(address, path, json) {
            Err(error) if error.to_string().contains("already exists") => Ok(()),
            answer => answer.map(drop),
        };
        let is_broken = |error: &io::Error| error.to_string().contains(" 503 ");
        outcome
            .as_ref()
            .err()
            .is_none_or(|error| !is_broken(error))
            .then_some(())
    });
    outcome
}

const SET_UP_LIMIT: Duration = Duration::from_secs(5);

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("heartbeat", &self.heartbeat)
            .field("election", &self.election)
            .field("authentication", &self.root_password.is_some())
            .field("tls", &self.tls)
            .field("arguments", &self.arguments)
            .field("own", &self.own)
            .finish()
    }
}
