use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::pump::{Direction, pump};

/// A TCP proxy in front of a server, which puts the network between them into trouble.
///
/// It lives in the runtime that started it, and ends with all its connections when it is dropped.
///
/// ```
/// # use conformance_tests::servers::{TcpProxy, Trouble};
/// # async fn example(server: std::net::SocketAddr) -> std::io::Result<()> {
/// let proxy = TcpProxy::start(server).await?;
/// // ... connect a client to proxy.address() ...
/// proxy.set(Trouble::Blackhole);
/// // ... the client hears nothing, and its connection stays open ...
/// proxy.set(Trouble::None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    trouble: watch::Sender<Trouble>,
    cuts: mpsc::UnboundedSender<oneshot::Sender<()>>,
    _task: JoinSet<()>,
}

/// What a [`TcpProxy`] does to all connections, old and new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Forwards at once.
    #[default]
    None,
    /// Keeps and accepts connections, but forwards nothing until the trouble ends, as a partition that drops packets.
    Blackhole,
    /// Forwards what arrives this much later, in both directions; in tokio's time.
    Delay(Duration),
    /// Forwards what clients send and throws away what the server answers: requests take effect, replies are lost. As a
    /// stream cannot go on after a gap, a connection that lost bytes is closed when the trouble ends.
    DropReplies,
    /// Closes every connection, at once and when it arrives.
    Refuse,
}

impl TcpProxy {
    /// Forwards from a free port of the loopback address to `server`, which need not listen yet.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let trouble = watch::Sender::default();
        let (cuts, orders) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(listener, server, trouble.subscribe(), orders));
        Ok(Self { address, trouble, cuts, _task: task })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the trouble of all connections.
    pub fn set(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// Closes all connections, and returns when they are closed; later ones are served.
    ///
    /// # Cancel safety
    ///
    /// The connections are closed all the same.
    pub async fn cut(&self) {
        let (done, is_done) = oneshot::channel();
        // Fails only when the runtime ends, and then no connection is left.
        let _ = self.cuts.send(done);
        let _ = is_done.await;
    }
}

async fn run(
    listener: TcpListener,
    server: SocketAddr,
    trouble: watch::Receiver<Trouble>,
    mut cuts: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // A client that connected before a cut is cut.
            biased;
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(serve(client, server, trouble.clone()));
                }
            }
            Some(done) = cuts.recv() => {
                connections.shutdown().await;
                let _ = done.send(());
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection; closed on return.
pub(super) async fn serve(client: TcpStream, server: SocketAddr, mut trouble: watch::Receiver<Trouble>) {
    let refused = trouble.clone();
    let forwarding = async {
        trouble.wait_for(|&now| now != Trouble::Blackhole).await.map_err(io::Error::other)?;
        forward(client, server, &trouble).await
    };
    tokio::select! {
        biased;
        () = until_refused(refused) => {}
        _ = forwarding => {}
    }
}

async fn until_refused(mut trouble: watch::Receiver<Trouble>) {
    let _ = trouble.wait_for(|&now| now == Trouble::Refuse).await;
}

async fn forward(client: TcpStream, server: SocketAddr, trouble: &watch::Receiver<Trouble>) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(from_client, to_server, Direction::Requests, trouble.clone()),
        pump(from_server, to_client, Direction::Replies, trouble.clone()),
    )?;
    Ok(())
}
