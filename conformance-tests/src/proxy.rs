//! A TCP proxy between one client and the store.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use lock_core::backend::locked;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Handle, Runtime},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Treatment of the bytes that go one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Forwarded, this much later.
    After(Duration),
    /// Forwarded at once.
    #[default]
    Free,
    /// Kept back until the flow changes.
    Held,
    /// Discarded. The connection is closed when the flow changes, for a stream has no gaps.
    Lost,
}

/// State of a link, for old connections and new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) requests: Flow,
    pub(crate) replies: Flow,
    /// Number of times that all connections have been cut.
    cuts: usize,
    /// Number of chunks of requests that may still pass before both ways are held.
    budget: Option<usize>,
}

/// Listens in front of one address of the store. Ends, with all connections, when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    requests: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Forwards from a free port of the loopback address to `store`, as `host:port`.
    pub(crate) async fn start(store: String) -> io::Result<Self> {
        let network = network()?;
        let bound = network.spawn(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = bound.await??;
        let address = listener.local_addr()?;
        let fault = Arc::new(watch::Sender::default());
        let requests = Arc::<AtomicUsize>::default();
        let mut task = JoinSet::new();
        let listening = listen(listener, store, Arc::clone(&fault), Arc::clone(&requests));
        task.spawn_on(listening, &network);
        Ok(Self {
            address,
            fault,
            requests,
            _task: task,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of chunks of requests that have passed.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    /// Replaces what happens to requests and replies.
    pub(crate) fn set(&self, requests: Flow, replies: Flow) {
        self.fault.send_modify(|fault| {
            fault.requests = requests;
            fault.replies = replies;
            fault.budget = None;
        });
    }

    /// Lets so many chunks of requests pass, and holds everything back after that.
    pub(crate) fn set_budget(&self, requests: usize) {
        self.fault
            .send_modify(|fault| fault.budget = Some(requests));
    }

    /// Closes all connections; later ones are served.
    pub(crate) fn cut(&self) {
        self.fault.send_modify(|fault| fault.cuts += 1);
    }
}

/// The runtime of all proxies of this process. A backend that blocks a case's runtime does not stop
/// the network too.
fn network() -> io::Result<Handle> {
    static NETWORK: Mutex<Option<Runtime>> = Mutex::new(None);
    let mut network = locked(&NETWORK);
    if network.is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        *network = Some(runtime);
    }
    let handle = network.as_ref().map(|runtime| runtime.handle().clone());
    handle.ok_or_else(|| io::Error::other("no runtime for the proxies"))
}

async fn listen(
    listener: TcpListener,
    store: String,
    fault: Arc<watch::Sender<Fault>>,
    requests: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let link = Link {
                    fault: Arc::clone(&fault),
                    requests: Arc::clone(&requests),
                };
                connections.spawn(link.serve(client, store.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection.
#[derive(Clone)]
struct Link {
    fault: Arc<watch::Sender<Fault>>,
    requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Requests,
    Replies,
}

impl Link {
    async fn serve(self, client: TcpStream, store: String) {
        let cuts = self.fault.borrow().cuts;
        let mut fault = self.fault.subscribe();
        tokio::select! {
            _ = fault.wait_for(|fault| fault.cuts != cuts) => {}
            _ = self.forward(client, store) => {}
        }
    }

    async fn forward(&self, client: TcpStream, store: String) -> io::Result<()> {
        self.passage(Way::Requests).await?;
        let store = TcpStream::connect(store).await?;
        client.set_nodelay(true)?;
        store.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_store, to_store) = store.into_split();
        tokio::try_join!(
            self.pump(from_client, to_store, Way::Requests),
            self.pump(from_store, to_client, Way::Replies),
        )?;
        Ok(())
    }

    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        way: Way,
    ) -> io::Result<()> {
        let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let read = async move {
            loop {
                let mut chunk = vec![0; 16 * 1024];
                let length = from.read(&mut chunk).await?;
                if length == 0 {
                    return Ok::<_, io::Error>(());
                }
                chunk.truncate(length);
                let delay = match self.flow(way) {
                    Flow::After(delay) => delay,
                    _ => Duration::ZERO,
                };
                // The writer ends only with an error, which ends the connection.
                let _ = queue.send((Instant::now() + delay, chunk));
            }
        };
        let write = async {
            while let Some((due, chunk)) = queued.recv().await {
                sleep_until(due).await;
                self.passage(way).await?;
                to.write_all(&chunk).await?;
                self.count(way);
            }
            to.shutdown().await
        };
        tokio::try_join!(read, write)?;
        Ok(())
    }

    fn flow(&self, way: Way) -> Flow {
        let fault = self.fault.borrow();
        match way {
            _ if fault.budget == Some(0) => Flow::Held,
            Way::Requests => fault.requests,
            Way::Replies => fault.replies,
        }
    }

    /// Waits while the flow is held. While bytes are lost it waits too, and ends the stream when the
    /// flow changes.
    async fn passage(&self, way: Way) -> io::Result<()> {
        let mut fault = self.fault.subscribe();
        while self.flow(way) == Flow::Held {
            fault.changed().await.map_err(io::Error::other)?;
        }
        if self.flow(way) != Flow::Lost {
            return Ok(());
        }
        while self.flow(way) == Flow::Lost {
            fault.changed().await.map_err(io::Error::other)?;
        }
        Err(io::Error::other("bytes of this stream were lost"))
    }

    fn count(&self, way: Way) {
        if way == Way::Requests {
            self.requests.fetch_add(1, SeqCst);
            self.fault.send_if_modified(|fault| {
                let budget = fault.budget.as_mut();
                budget.map(|left| *left = left.saturating_sub(1)).is_some()
            });
        }
    }
}
