use std::{
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{Certificates, ports::Ports};

/// A kind of server, with the options of one: what the harness must know to run it anywhere.
pub(super) trait Service: Debug + Send + Sync + 'static {
    fn about(&self) -> &'static About;

    /// Whether a server that somebody else configured would do.
    fn is_default(&self) -> bool;

    /// The URL scheme that clients use.
    fn scheme(&self) -> &'static str;

    /// The directory of the certificates, if [`Ports::client`] takes TLS only, so that the harness needs [`Ports::plain`].
    fn certificates(&self) -> Option<&Path>;

    /// The command line without the program.
    fn arguments(&self, site: &Site<'_>) -> Vec<String>;

    /// Environment variables that the server is to have besides this process's.
    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether the server that listens there, without TLS, serves requests by now.
    fn is_ready(&self, address: SocketAddr) -> bool;

    /// Sets up a server that has just been started for the first time.
    fn set_up(&self, address: SocketAddr) -> io::Result<()>;
}

/// How a kind of server is called and found.
#[derive(Debug)]
pub(super) struct About {
    pub(super) name: &'static str,
    /// Variable with the URL of a running server.
    pub(super) url_variable: &'static str,
    pub(super) program: &'static str,
    /// Variable with the path of the program.
    pub(super) program_variable: &'static str,
    /// Variable with the name of a Docker image.
    pub(super) image_variable: &'static str,
    /// Debian's package.
    pub(super) package: &'static str,
}

/// Where a server is to run.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) listen: IpAddr,
    pub(super) ports: &'a Ports,
    /// An existing directory for its files.
    pub(super) data: &'a Path,
}

/// TLS of a server.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) certificates: Certificates,
    /// Whether clients must present a certificate of the same authority.
    pub(super) is_mutual: bool,
}
