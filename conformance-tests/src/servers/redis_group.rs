use std::{fmt, fs, io, net::SocketAddr, path::Path};

use super::{
    RedisOptions, TcpProxy,
    peer_network::PeerNetwork,
    process::Process,
    resp,
    service::{About, Service, Site},
};

/// Redis servers that belong together. Clients and the other servers know each of them by the
/// address of a proxy in front of it.
pub(super) struct RedisGroup {
    // Dropped before the network, so that no server sees it fail.
    processes: Vec<Process>,
    network: PeerNetwork,
    password: Option<String>,
    scheme: &'static str,
}

/// One of the servers, with a file of settings that are known only once the proxies exist.
#[derive(Debug)]
struct RedisMember {
    options: RedisOptions,
    role: RedisRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RedisRole {
    Server,
    /// Has a bus of its own to the others.
    Clustered,
    Sentinel,
}

const SETTINGS: &str = "settings.conf";

impl RedisGroup {
    /// Starts one server for each role, with the settings that `settings` returns once all
    /// addresses are known.
    pub(super) fn start_new(
        options: &RedisOptions,
        roles: &[RedisRole],
        program: &Path,
        settings: impl Fn(&Self, usize) -> String,
    ) -> io::Result<Self> {
        let member = |role: &RedisRole| {
            Box::new(RedisMember {
                options: options.clone(),
                role: *role,
            })
        };
        let processes: Vec<_> = roles
            .iter()
            .map(|role| Process::prepare(member(role), program))
            .collect::<Result<_, _>>()?;
        let mut network = PeerNetwork::new(0)?;
        network.plug_in(
            Vec::new(),
            processes.iter().map(Process::client_address).collect(),
        )?;
        let password = options.password().map(str::to_owned);
        let scheme = options.scheme();
        let group = Self {
            processes,
            network,
            password,
            scheme,
        };
        for at in 0..roles.len() {
            fs::write(
                group.processes[at].directory().join(SETTINGS),
                settings(&group, at),
            )?;
            group.processes[at].start()?;
        }
        Ok(group)
    }

    pub(super) fn process(&self, at: usize) -> &Process {
        &self.processes[at]
    }

    pub(super) fn proxy(&self, at: usize) -> &TcpProxy {
        self.network.clients(at)
    }

    /// Address by which clients know the server.
    pub(super) fn address(&self, at: usize) -> SocketAddr {
        self.proxy(at).address()
    }

    /// `redis`, or `rediss` if clients need TLS.
    pub(super) fn scheme(&self) -> &'static str {
        self.scheme
    }

    pub(super) fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Asks a server, bypassing its proxy.
    pub(super) fn ask(&self, at: usize, command: &[&str]) -> io::Result<String> {
        self.ask_with(at, self.password.as_deref(), command)
    }

    pub(super) fn ask_with(
        &self,
        at: usize,
        password: Option<&str>,
        command: &[&str],
    ) -> io::Result<String> {
        resp::ask(self.processes[at].plain_address(), password, command)
    }

    /// The value of `field` in a server's report about itself.
    pub(super) fn field(&self, at: usize, command: &[&str], field: &str) -> Option<String> {
        let answer = self.ask(at, command).ok()?;
        answer.lines().find_map(|line| {
            Some(
                line.strip_prefix(field)?
                    .strip_prefix(':')?
                    .trim()
                    .to_owned(),
            )
        })
    }

    pub(super) fn runs(&self, at: usize) -> bool {
        self.processes[at].pid().is_some()
    }
}

/// Leaves out the password.
impl fmt::Debug for RedisGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisGroup")
            .field("processes", &self.processes)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

impl Service for RedisMember {
    fn about(&self) -> &'static About {
        self.options.about()
    }

    fn is_default(&self) -> bool {
        false
    }

    fn scheme(&self) -> &'static str {
        self.options.scheme()
    }

    fn certificates(&self) -> Option<&Path> {
        self.options.certificates()
    }

    fn arguments(&self, site: &Site<'_>) -> Vec<String> {
        let settings = site.data.join(SETTINGS).display().to_string();
        let mut arguments = [vec![settings], self.options.peer_arguments()].concat();
        if self.role == RedisRole::Sentinel {
            arguments.extend(self.options.port_arguments(site));
        }
        let mut add =
            |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        if self.role == RedisRole::Sentinel {
            let data = site.data.display().to_string();
            add(&[
                "--sentinel",
                "--bind",
                &site.listen.to_string(),
                "--protected-mode",
                "no",
                "--dir",
                &data,
            ]);
            return arguments;
        }
        self.options
            .arguments(site)
            .iter()
            .for_each(|word| add(&[word]));
        if let Some(password) = self.options.password() {
            add(&["--masterauth", password]);
        }
        if self.role == RedisRole::Clustered {
            add(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &site.ports.peer.number().to_string(),
            ]);
        }
        arguments
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        self.options.is_ready(address)
    }

    fn set_up(&self, _address: SocketAddr) -> io::Result<()> {
        Ok(())
    }
}
