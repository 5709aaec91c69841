use std::{
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{Certificates, ports::Ports};

/// A kind of server, with the options of one server: all that the harness must know to run it
/// anywhere.
pub(super) trait Service: Debug + Send + Sync + 'static {
    fn about(&self) -> &'static About;

    /// True if a server that somebody else configured would do.
    fn is_default(&self) -> bool;

    /// The URL scheme that clients use.
    fn scheme(&self) -> &'static str;

    /// The directory of the certificates if [`Ports::client`] accepts TLS only, in which case the
    /// harness needs [`Ports::plain`].
    fn certificates(&self) -> Option<&Path>;

    /// The command line without the program.
    fn arguments(&self, site: &Site<'_>) -> Vec<String>;

    /// Environment variables for the server, besides those of this process.
    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// True once the server that listens at this address, without TLS, serves requests.
    fn is_ready(&self, address: SocketAddr) -> bool;

    /// Sets up a server that has just been started for the first time.
    fn set_up(&self, address: SocketAddr) -> io::Result<()>;
}

/// Names of a kind of server, and the variables that say where to find it.
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

/// Place for a server to run.
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
    /// True if clients must present a certificate of the same authority.
    pub(super) is_mutual: bool,
}
