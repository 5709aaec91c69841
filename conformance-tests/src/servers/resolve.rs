use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
};

/// Prefers an IPv4 address: Docker may publish a container's ports on IPv4 only.
pub(super) fn resolve(endpoint: &str) -> io::Result<SocketAddr> {
    let failed = |why: String| io::Error::other(format!("no address for {endpoint}: {why}"));
    let addresses: Vec<_> = endpoint
        .to_socket_addrs()
        .map_err(|error| failed(error.to_string()))?
        .collect();
    let found = addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first());
    found
        .copied()
        .ok_or_else(|| failed("the name has none".to_owned()))
}
