use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc};

#[cfg(feature = "docker")]
use super::docker::Container;
use super::{process::Process, resolve::resolve};

/// A server that already serves requests when the caller gets it.
///
/// Clones are handles of the same server. Unless it came from the environment, the server ends and
/// its files vanish with the last handle, and also when this process ends in any other way: by a
/// panic, `exit`, or a signal.
///
/// The methods block: [`freeze`](Self::freeze), [`thaw`](Self::thaw) and [`kill`](Self::kill) for
/// milliseconds. [`start`](Self::start) and [`restart`](Self::restart) block a thread of their own
/// until the server is ready.
#[derive(Clone)]
pub struct Server {
    url: String,
    endpoint: String,
    runner: Runner,
}

#[derive(Clone, Debug)]
enum Runner {
    External,
    Process(Arc<Process>),
    #[cfg(feature = "docker")]
    Container(Arc<Container>),
}

impl Server {
    pub(super) fn external(scheme: &str, url: &str) -> Self {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (scheme, rest),
            Some((own, rest)) => (own, rest),
            None => (scheme, url),
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let endpoint = authority
            .rsplit_once('@')
            .map_or(authority, |(_, endpoint)| endpoint);
        Self {
            url: format!("{scheme}://{rest}"),
            endpoint: endpoint.to_owned(),
            runner: Runner::External,
        }
    }

    pub(super) fn process(process: Process) -> Self {
        let endpoint = format!("127.0.0.1:{}", process.port());
        let url = format!("{}://{endpoint}", process.service().scheme());
        Self {
            url,
            endpoint,
            runner: Runner::Process(Arc::new(process)),
        }
    }

    #[cfg(feature = "docker")]
    pub(super) fn container(container: Container) -> Self {
        let endpoint = container.endpoint();
        let url = format!("{}://{endpoint}", container.service().scheme());
        Self {
            url,
            endpoint,
            runner: Runner::Container(Arc::new(container)),
        }
    }

    /// The URL for clients: `etcd://`, `redis://` or, with TLS, `rediss://`. It contains no user,
    /// password or certificates, unless it came from the environment.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `host:port`; the host may be a name if the server is a container or came from the
    /// environment.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of its [`endpoint`](Self::endpoint), for code that does not look up names.
    ///
    /// # Errors
    ///
    /// If the host has no address, or if the environment names several endpoints.
    pub fn address(&self) -> io::Result<SocketAddr> {
        resolve(&self.endpoint)
    }

    /// The name of the container that the server runs in, if any.
    #[must_use]
    pub fn container_name(&self) -> Option<&str> {
        match &self.runner {
            #[cfg(feature = "docker")]
            Runner::Container(container) => Some(container.name()),
            _ => None,
        }
    }

    /// True if the server can be frozen, killed and restarted; false if it came from the
    /// environment.
    #[must_use]
    pub fn is_own(&self) -> bool {
        !matches!(self.runner, Runner::External)
    }

    /// The process id of the server, if it runs on this machine and was not killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.runner {
            Runner::Process(process) => process.pid(),
            _ => None,
        }
    }

    /// Directory of the server's files and its `log`, if they are on this machine.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        match &self.runner {
            Runner::Process(process) => Some(process.directory()),
            _ => None,
        }
    }

    /// Stops it from answering, with all connections open (SIGSTOP).
    ///
    /// # Errors
    ///
    /// If it is not our own, or does not run.
    pub fn freeze(&self) -> io::Result<()> {
        match &self.runner {
            Runner::External => Err(not_ours()),
            Runner::Process(process) => process.freeze(),
            #[cfg(feature = "docker")]
            Runner::Container(container) => container.freeze(),
        }
    }

    /// Resumes a frozen server (SIGCONT).
    ///
    /// # Errors
    ///
    /// If it is not our own, or does not run.
    pub fn thaw(&self) -> io::Result<()> {
        match &self.runner {
            Runner::External => Err(not_ours()),
            Runner::Process(process) => process.thaw(),
            #[cfg(feature = "docker")]
            Runner::Container(container) => container.thaw(),
        }
    }

    /// Kills it at once (SIGKILL), even if it is frozen, and keeps its port and data for
    /// [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// If it is not our own.
    pub fn kill(&self) -> io::Result<()> {
        match &self.runner {
            Runner::External => Err(not_ours()),
            Runner::Process(process) => process.kill(),
            #[cfg(feature = "docker")]
            Runner::Container(container) => container.kill(),
        }
    }

    /// Starts the server again on the same port and data, after killing it if it runs, and returns
    /// when it serves requests.
    ///
    /// # Cancel safety
    ///
    /// The start goes on in the background.
    ///
    /// # Errors
    ///
    /// If it is not our own, or did not start; the error then has the end of its log.
    pub async fn start(&self) -> io::Result<()> {
        let server = self.clone();
        tokio::task::spawn_blocking(move || server.start_blocking())
            .await
            .map_err(io::Error::other)?
    }

    /// Does the same as [`start`](Self::start), on this thread.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start).
    pub fn start_blocking(&self) -> io::Result<()> {
        match &self.runner {
            Runner::External => Err(not_ours()),
            Runner::Process(process) => process.start(),
            #[cfg(feature = "docker")]
            Runner::Container(container) => container.start(),
        }
    }

    /// [`kill`](Self::kill), then [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// The start goes on in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start).
    pub async fn restart(&self) -> io::Result<()> {
        self.start().await
    }

    /// Ends this handle. The last one ends the server, which is gone with its files when this
    /// returns.
    pub fn stop(self) {
        drop(self);
    }
}

/// Leaves out the URL: one from the environment may hold a password.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("endpoint", &self.endpoint)
            .field("runner", &self.runner)
            .finish_non_exhaustive()
    }
}

fn not_ours() -> io::Error {
    io::Error::other(
        "the server came from the environment: only one that was started here can be disturbed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_environment_names() {
        for (given, url, endpoint) in [
            ("127.0.0.1:1", "etcd://127.0.0.1:1", "127.0.0.1:1"),
            ("http://h:2379", "etcd://h:2379", "h:2379"),
            (
                "etcd://a:1,b:2/ns?ttl=3s",
                "etcd://a:1,b:2/ns?ttl=3s",
                "a:1,b:2",
            ),
        ] {
            let server = Server::external("etcd", given);
            assert_eq!(
                (server.url(), server.endpoint()),
                (url, endpoint),
                "{given}"
            );
        }
        let server = Server::external("redis", "rediss://:pw@h:1/0");
        assert_eq!(
            (server.url(), server.endpoint()),
            ("rediss://:pw@h:1/0", "h:1")
        );
        assert!(!format!("{server:?}").contains("pw"), "{server:?}");
    }

    #[test]
    fn looks_up_the_name_of_its_host() {
        for host in ["localhost", "127.0.0.1"] {
            let server = Server::external("redis", &format!("redis://:pw@{host}:1/0"));
            assert_eq!(
                server.address().unwrap(),
                SocketAddr::from(([127, 0, 0, 1], 1)),
                "{host}"
            );
        }
        for endpoint in ["a:1,b:2", "h", "no-such-host.invalid:1"] {
            let error = Server::external("etcd", endpoint)
                .address()
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!("no address for {endpoint}")),
                "{error}"
            );
        }
    }

    #[test]
    fn leaves_a_server_from_the_environment_alone() {
        let server = Server::external("etcd", "h:1");
        assert!(!server.is_own());
        for outcome in [
            server.freeze(),
            server.thaw(),
            server.kill(),
            server.start_blocking(),
        ] {
            assert!(outcome.unwrap_err().to_string().contains("environment"));
        }
    }
}
