use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::watch,
};

use super::{TcpProxy, Trouble, tcp_proxy::serve};

/// The network of a cluster: one link for each ordered pair of members, and one for the clients of
/// each member.
///
/// Every member dials through a SOCKS gate of its own. The gate therefore knows who calls whom,
/// which a proxy in front of the callee cannot tell, and a member can be cut off in both directions
/// while the others go on. The network runs on a thread of its own, so that the members talk to
/// each other even while a test blocks.
#[derive(Debug)]
pub(super) struct PeerNetwork {
    gates: Vec<SocketAddr>,
    links: Arc<Vec<Vec<watch::Sender<Trouble>>>>,
    /// Address at which each member listens for its peers, once it is known.
    peers: Arc<OnceLock<Vec<SocketAddr>>>,
    clients: Vec<TcpProxy>,
    isolation: Mutex<Vec<Trouble>>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl PeerNetwork {
    pub(super) fn new(size: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd-network")
            .enable_all()
            .build()?;
        let row = || (0..size).map(|_| watch::Sender::default()).collect();
        let links: Arc<Vec<Vec<_>>> = Arc::new((0..size).map(|_| row()).collect());
        let peers = Arc::new(OnceLock::new());
        let mut gates = Vec::new();
        for from in 0..size {
            let listener = block_on(&runtime, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
            gates.push(listener.local_addr()?);
            runtime.spawn(gate(listener, from, Arc::clone(&links), Arc::clone(&peers)));
        }
        let isolation = Mutex::new(vec![Trouble::None; size]);
        Ok(Self {
            gates,
            links,
            peers,
            clients: Vec::new(),
            isolation,
            runtime: Some(runtime),
        })
    }

    /// The SOCKS proxy that a member is to use.
    pub(super) fn gate(&self, member: usize) -> SocketAddr {
        self.gates[member]
    }

    /// Connects the members: `peers` and `clients` are the addresses at which each of them listens.
    pub(super) fn plug_in(
        &mut self,
        peers: Vec<SocketAddr>,
        clients: Vec<SocketAddr>,
    ) -> io::Result<()> {
        let runtime = self
            .runtime
            .as_ref()
            .ok_or_else(|| io::Error::other("the network is down"))?;
        self.clients = clients
            .into_iter()
            .map(|client| block_on(runtime, TcpProxy::start(client)))
            .collect::<Result<_, _>>()?;
        let _ = self.peers.set(peers);
        Ok(())
    }

    /// The link of a member's clients.
    pub(super) fn clients(&self, member: usize) -> &TcpProxy {
        &self.clients[member]
    }

    /// Disturbs all links between a member and its peers, in both directions. A link is as bad as
    /// the worse of its ends.
    pub(super) fn isolate(&self, member: usize, trouble: Trouble) {
        let mut isolation = self
            .isolation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        isolation[member] = trouble;
        for (from, row) in self.links.iter().enumerate() {
            for (to, link) in row.iter().enumerate() {
                let ends = [isolation[from], isolation[to]];
                let trouble = ends
                    .into_iter()
                    .find(|end| *end != Trouble::None)
                    .unwrap_or_default();
                link.send_if_modified(|now| std::mem::replace(now, trouble) != trouble);
            }
        }
    }
}

impl Drop for PeerNetwork {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not block, so it may be called inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Runs a future that takes only a moment, from any thread, even one that belongs to another
/// runtime.
fn block_on<T: Send + 'static>(
    runtime: &Runtime,
    future: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = sender.send(future.await);
    });
    receiver.recv().map_err(io::Error::other)?
}

type Links = Arc<Vec<Vec<watch::Sender<Trouble>>>>;

async fn gate(
    listener: TcpListener,
    from: usize,
    links: Links,
    peers: Arc<OnceLock<Vec<SocketAddr>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let links = Arc::clone(&links);
        let peers = Arc::clone(&peers);
        tokio::spawn(async move {
            let Ok((stream, to)) = greet(stream).await else {
                return;
            };
            let peer = peers.get().and_then(|peers| peers.get(to)).copied();
            let link = links[from].get(to).map(watch::Sender::subscribe);
            if let (Some(peer), Some(link)) = (peer, link) {
                serve(stream, peer, link).await;
            }
        });
    }
}

/// Plays the server's part of SOCKS 5 without authentication (RFC 1928); returns the member that is
/// called.
///
/// Succeeds before the callee is connected, because it is the link behind it that may be in
/// trouble.
async fn greet(mut stream: TcpStream) -> io::Result<(TcpStream, usize)> {
    stream.set_nodelay(true)?;
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let mut methods = vec![0; usize::from(head[1])];
    stream.read_exact(&mut methods).await?;
    stream.write_all(&[5, 0]).await?;
    // Version, CONNECT, reserved, IPv4, address, port.
    let mut request = [0; 10];
    stream.read_exact(&mut request).await?;
    if request[..4] != [5, 1, 0, 1] {
        return Err(io::Error::other(
            "only CONNECT to an IPv4 address is served",
        ));
    }
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok((stream, usize::from(request[7])))
}
