use std::{io, net::SocketAddr, path::Path};

use super::{
    EtcdOptions,
    service::{About, Service, Site},
};

/// One member of a cluster. The addresses of its peers exist only behind its gate, so that the
/// harness owns every link.
#[derive(Clone, Debug)]
pub(super) struct EtcdMember {
    pub(super) options: EtcdOptions,
    pub(super) at: usize,
    pub(super) size: usize,
    /// The SOCKS proxy that stands for the network as this member sees it.
    pub(super) gate: SocketAddr,
}

/// Any port will do: the gate looks at the address alone.
const PEER_PORT: u16 = 2380;

impl EtcdMember {
    fn name(at: usize) -> String {
        format!("member-{at}")
    }

    /// An address in a range that is reserved for documentation: Go bypasses proxies for loopback
    /// addresses, and nobody else uses this range.
    fn advertised(at: usize) -> String {
        format!("http://192.0.2.{at}:{PEER_PORT}")
    }
}

impl Service for EtcdMember {
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
        let member = |at| format!("{}={}", Self::name(at), Self::advertised(at));
        let cluster: Vec<_> = (0..self.size).map(member).collect();
        self.options.command_line(
            site,
            &Self::name(self.at),
            &Self::advertised(self.at),
            &cluster.join(","),
        )
    }

    fn environment(&self) -> Vec<(String, String)> {
        let gate = format!("socks5://{}", self.gate);
        // The lower-case spellings count where the upper-case ones are empty or absent.
        [
            ("HTTP_PROXY", gate.as_str()),
            ("http_proxy", gate.as_str()),
            ("NO_PROXY", ""),
            ("no_proxy", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn is_ready(&self, address: SocketAddr) -> bool {
        self.options.is_ready(address)
    }

    fn set_up(&self, address: SocketAddr) -> io::Result<()> {
        self.options.set_up(address)
    }
}
