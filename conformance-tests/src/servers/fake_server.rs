use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Bytes that are no protocol's greeting or reply: neither HTTP/2, nor TLS, nor RESP, nor UTF-8.
const GARBAGE: &[u8] = b"\x00\xff\xfe220 garbage \x80\x81\r\n\x07\xc0\r\n\r\n";

/// A listener that is not the kind of server that clients expect.
///
/// It lives in the runtime that started it. When it is dropped, it ends with all its connections.
#[derive(Debug)]
pub struct FakeServer {
    address: SocketAddr,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Garbage,
    Silence,
}

impl FakeServer {
    /// Greets every connection with garbage, and answers whatever it receives with garbage.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn garbage() -> io::Result<Self> {
        Self::start(Manner::Garbage).await
    }

    /// Accepts every connection, reads what it receives, and never answers.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn silent() -> io::Result<Self> {
        Self::start(Manner::Silence).await
    }

    /// Address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn start(manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(run(listener, manner));
        Ok(Self {
            address,
            _task: task,
        })
    }
}

async fn run(listener: TcpListener, manner: Manner) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(answer(client, manner));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut client: TcpStream, manner: Manner) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        if manner == Manner::Garbage {
            client.write_all(GARBAGE).await?;
        }
        if client.read(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
