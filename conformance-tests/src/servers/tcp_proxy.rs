use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::pump::{Direction, pump};

/// A TCP proxy in front of a server, which can make the network between them fail.
///
/// The proxy lives in the runtime that started it. When it is dropped, it ends with all its
/// connections.
///
/// ```
/// # use lock_conformance::servers::{TcpProxy, Trouble};
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
    accepted: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

/// Behaviour of a [`TcpProxy`] towards all connections, old and new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Forwards at once.
    #[default]
    None,
    /// Keeps and accepts connections, but forwards nothing until the trouble ends, like a partition
    /// that drops packets.
    Blackhole,
    /// Forwards everything this much later, in both directions; in tokio's time.
    Delay(Duration),
    /// Forwards what clients send and discards what the server answers: requests take effect,
    /// replies are lost. A stream cannot go on after a gap, so a connection that lost bytes is
    /// closed when the trouble ends.
    DropReplies,
    /// Closes every connection: the present ones at once, later ones on arrival.
    Refuse,
}

impl TcpProxy {
    /// Forwards from a free port of the loopback address to `server`, which need not be listening
    /// yet.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let trouble = watch::Sender::default();
        let (cuts, orders) = mpsc::unbounded_channel();
        let accepted = Arc::<AtomicUsize>::default();
        let mut task = JoinSet::new();
        task.spawn(run(
            listener,
            server,
            trouble.subscribe(),
            orders,
            Arc::clone(&accepted),
        ));
        Ok(Self {
            address,
            trouble,
            cuts,
            accepted,
            _task: task,
        })
    }

    /// Address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of connections that have arrived, whatever became of them.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Replaces the trouble of all connections.
    pub fn set(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// Closes all connections, and returns once they are closed; later connections are served.
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
    count: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // A client that connected before the cut is cut off.
            biased;
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    count.fetch_add(1, Ordering::Relaxed);
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

/// Serves one connection; it is closed on return.
pub(super) async fn serve(
    client: TcpStream,
    server: SocketAddr,
    mut trouble: watch::Receiver<Trouble>,
) {
    let refused = trouble.clone();
    let forwarding = async {
        trouble
            .wait_for(|&now| now != Trouble::Blackhole)
            .await
            .map_err(io::Error::other)?;
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

async fn forward(
    client: TcpStream,
    server: SocketAddr,
    trouble: &watch::Receiver<Trouble>,
) -> io::Result<()> {
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
