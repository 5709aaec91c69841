use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

/// Below the ports that Linux gives to outgoing connections, so that none of these takes the port
/// of a server while it restarts.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A TCP port on the loopback address that was free. It stays reserved among all users of this
/// module.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    /// The UDP port of the same number marks the reservation: no other process can bind it, and it
    /// is freed when this process ends.
    _reservation: UdpSocket,
}

impl Port {
    pub(super) fn reserve() -> io::Result<Self> {
        let size = RANGE.end - RANGE.start;
        let first = (RandomState::new().build_hasher().finish() % u64::from(size)) as u16;
        (0..size)
            .find_map(|step| Self::reserve_number(RANGE.start + (first + step) % size))
            .ok_or_else(|| io::Error::other(format!("no free port in {RANGE:?}")))
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    fn reserve_number(number: u16) -> Option<Self> {
        let reservation = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self {
            number,
            _reservation: reservation,
        })
    }
}

/// Ports that one server listens on.
#[derive(Debug)]
pub(super) struct Ports {
    /// For clients; with TLS if it was asked for.
    pub(super) client: Port,
    /// For this harness where the clients' port has TLS.
    pub(super) plain: Port,
    /// For the other members of a cluster.
    pub(super) peer: Port,
}

impl Ports {
    pub(super) fn reserve() -> io::Result<Self> {
        Ok(Self {
            client: Port::reserve()?,
            plain: Port::reserve()?,
            peer: Port::reserve()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        thread,
        time::{Duration, Instant},
    };

    // Another test of this process may be starting a server: between fork and exec its child holds
    // copies of all sockets, even of those that were closed here since.

    #[test]
    fn a_reserved_port_is_not_handed_out_again() {
        let port = Port::reserve().unwrap();
        let number = port.number();
        assert!(Port::reserve_number(number).is_none());
        drop(port);
        until(|| Port::reserve_number(number));
    }

    #[test]
    fn a_port_in_use_is_not_handed_out() {
        let port = Port::reserve().unwrap();
        let number = port.number();
        let _listener = until(|| TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok());
        drop(port);
        assert!(Port::reserve_number(number).is_none());
    }

    fn until<T>(attempt: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match attempt() {
                Some(done) => return done,
                None => assert!(Instant::now() < deadline, "still refused after 10s"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
