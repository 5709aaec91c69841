use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo};

/// Address on which a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// Without brackets, even of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// An IPv6 address may have brackets.
    pub(crate) fn new(host: &str, port: u16) -> Self {
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Self {
            host: host.to_owned(),
            port,
        }
    }

    /// As a server of a cluster writes it: `host:port`, where the host may be missing if it is the
    /// one that was asked.
    pub(crate) fn parse(text: &str, asked: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Self::new(
            if host.is_empty() { asked } else { host },
            port.parse().ok()?,
        ))
    }

    /// The same credentials and TLS settings, for this server.
    pub(crate) fn with_settings_of(&self, like: &ConnectionInfo) -> ConnectionInfo {
        let host = self.host.clone();
        let port = self.port;
        let address = match like.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        like.clone().set_addr(address)
    }
}

/// Returns where to connect to, for messages: a path or an [`Address`].
pub(crate) fn shown(info: &ConnectionInfo) -> String {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Address::new(host, *port).to_string()
        }
        other => other.to_string(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_write_is_read() {
        let parse = |text| Address::parse(text, "asked").map(|address| address.to_string());
        assert_eq!(parse("10.0.0.1:6379").as_deref(), Some("10.0.0.1:6379"));
        assert_eq!(parse(":6379").as_deref(), Some("asked:6379"));
        assert_eq!(parse("fe80::1:6379").as_deref(), Some("[fe80::1]:6379"));
        for wrong in ["", "6379", "h:", "h:65536"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(Address::new("[::1]", 1), Address::new("::1", 1));
        for (url, address) in [
            ("redis://[::1]:1", "[::1]:1"),
            ("rediss://h", "h:6379"),
            ("unix:///tmp/r", "/tmp/r"),
        ] {
            assert_eq!(
                shown(redis::Client::open(url).unwrap().get_connection_info()),
                address
            );
        }
    }
}
