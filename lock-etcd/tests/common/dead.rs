use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A port where nobody listens, and nobody else can while this exists: connections are refused.
pub(crate) struct DeadPort(TcpSocket);

impl DeadPort {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    pub(crate) fn endpoint(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
}

/// A port whose queue of connections is full: new ones get no answer at all, as behind a network
/// that drops packets.
pub(crate) struct FullPort {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl FullPort {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        // Loopback connections are there at once, unless the queue is full.
        while let Ok(connected) = tokio::time::timeout(
            std::time::Duration::from_millis(300),
            TcpStream::connect(address),
        )
        .await
        {
            queued.push(connected.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }
}
