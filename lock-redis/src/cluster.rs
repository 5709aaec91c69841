use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_core::backend::Tasks;
use rand::seq::SliceRandom;
use redis::{ConnectionInfo, Value};
use tokio::sync::watch;

use crate::{
    address::Address,
    error::{Failure, Redirection},
    link::{Link, Listener, Timeouts},
    servers::Node,
    slots::SlotMap,
    sync::locked,
    upstream::Upstream,
};

/// The masters of a cluster, each with connections of its own, and which of them keeps which slot.
///
/// The map of the slots is read when the first request needs it. Afterwards servers correct it (`MOVED`), and it is read again
/// in the background whenever a server fails or a correction shows that there is news.
pub(crate) struct Cluster {
    seeds: Vec<Address>,
    /// Settings of all servers.
    servers: ConnectionInfo,
    timeouts: Timeouts,
    tasks: Tasks,
    listener: Arc<dyn Listener>,
    map: watch::Sender<SlotMap>,
    nodes: Mutex<Nodes>,
    refreshing: AtomicBool,
}

#[derive(Default)]
struct Nodes {
    known: HashMap<Address, Arc<Node>>,
    closed: bool,
}

/// Between two looks at the map in the background.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);

impl Cluster {
    pub(crate) fn new(
        seeds: Vec<Address>,
        servers: ConnectionInfo,
        timeouts: Timeouts,
        tasks: Tasks,
        listener: Arc<dyn Listener>,
    ) -> Arc<Self> {
        let (map, nodes, refreshing) = (watch::Sender::new(SlotMap::new()), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { seeds, servers, timeouts, tasks, listener, map, nodes, refreshing })
    }

    /// The master of the slot, and its address; `None` if the map has none.
    pub(crate) fn master(&self, slot: u16) -> Option<Arc<Node>> {
        let master = self.map.borrow().master(slot).cloned();
        master.map(|master| self.node(&master))
    }

    /// Until the map has another master of the slot.
    pub(crate) async fn until_moved(&self, slot: u16, from: &Node) {
        let from = &from.address;
        // Its sender is in `self`.
        let _ = self.map.subscribe().wait_for(|map| map.master(slot) != from.as_ref()).await;
    }

    /// Takes a redirection from a server at `asked`; returns where to send the request.
    pub(crate) fn redirect(self: &Arc<Self>, redirection: Redirection<'_>, asked: &str) -> Option<Arc<Node>> {
        let to = Address::parse(redirection.address, asked)?;
        if !redirection.once {
            let is_news = self.map.send_if_modified(|map| map.moved(redirection.slot, to.clone()));
            if is_news {
                // Slots rarely move alone.
                self.doubt();
                self.listener.missed();
            }
        }
        Some(self.node(&to))
    }

    /// The map may be out of date: it is read again soon, in the background.
    pub(crate) fn doubt(self: &Arc<Self>) {
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let refreshing = Refreshing(Arc::clone(self));
        self.tasks.spawn(async move {
            let cluster = &refreshing.0;
            if let Err(failure) = cluster.refresh(cluster.timeouts.response).await {
                tracing::debug!(?failure, "no server of the cluster tells which slots it has at the moment");
            }
            tokio::time::sleep(REFRESH_PAUSE).await;
        });
    }

    /// Reads the map for the first time.
    pub(crate) async fn open(&self) -> Result<(), Failure> {
        self.refresh(self.timeouts.connect).await
    }

    /// Reads the map from the first server that answers, each within `limit`.
    async fn refresh(&self, limit: Duration) -> Result<(), Failure> {
        let mut failure = None;
        for (address, link) in self.links_to_ask() {
            match read(&link, &address.host, limit).await {
                Ok(map) => {
                    self.replace(map);
                    return Ok(());
                }
                // Why the cluster as a whole cannot be used is what its servers say, rather than that one is down.
                Err(other) if failure.as_ref().is_none_or(|failure: &Failure| !failure.is_refusal()) => failure = Some(other),
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| Failure::unsent(io::Error::from(io::ErrorKind::NotConnected))))
    }

    pub(crate) fn close(&self) {
        let known = {
            let mut nodes = locked(&self.nodes);
            nodes.closed = true;
            std::mem::take(&mut nodes.known)
        };
        known.values().for_each(|node| node.close());
    }

    /// The servers that are known, those with a connection first, then the seeds.
    fn links_to_ask(&self) -> Vec<(Address, Arc<Link>)> {
        let mut known: Vec<_> =
            locked(&self.nodes).known.iter().map(|(address, node)| (address.clone(), Arc::clone(&node.commands))).collect();
        known.shuffle(&mut rand::rng());
        known.sort_by_key(|(_, link)| !link.is_connected());
        let seed = |seed: &Address| {
            let upstream = Upstream::Fixed(seed.with_settings_of(&self.servers));
            (seed.clone(), Arc::new(Link::new(upstream, self.timeouts, self.tasks.clone(), None)))
        };
        let is_new = |seed: &&Address| known.iter().all(|(address, _)| address != *seed);
        let seeds: Vec<_> = self.seeds.iter().filter(is_new).map(seed).collect();
        known.into_iter().chain(seeds).collect()
    }

    fn replace(&self, map: SlotMap) {
        let masters: HashSet<Address> = map.masters().into_iter().cloned().collect();
        let changed = self.map.send_if_modified(|known| {
            let changed = known.differs_from(&map);
            *known = map;
            changed
        });
        let gone: Vec<_> = locked(&self.nodes).known.extract_if(|address, _| !masters.contains(address)).collect();
        if changed || !gone.is_empty() {
            // What was tracked on a server that lost the slot is reported no more.
            self.listener.missed();
        }
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = locked(&self.nodes);
        if let Some(node) = nodes.known.get(address) {
            return Arc::clone(node);
        }
        let upstream = Upstream::Fixed(address.with_settings_of(&self.servers));
        let listener = Arc::clone(&self.listener);
        let node = Arc::new(Node::new(&upstream, Some(address.clone()), self.timeouts, &self.tasks, listener));
        match nodes.closed {
            true => node.close(),
            false => drop(nodes.known.insert(address.clone(), Arc::clone(&node))),
        }
        node
    }
}

async fn read(link: &Link, host: &str, limit: Duration) -> Result<SlotMap, Failure> {
    let reading = async {
        let answer: Value = link.connection().await?.run(redis::cmd("CLUSTER").arg("SLOTS")).await.map_err(Failure::without_effect)?;
        SlotMap::parse(&answer, host)
    };
    let timed_out = |_| Failure::unsent(io::Error::from(io::ErrorKind::TimedOut));
    tokio::time::timeout(limit, reading).await.map_err(timed_out)?
}

/// Ends the refresh however its task ends.
struct Refreshing(Arc<Cluster>);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.refreshing.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<_> = self.seeds.iter().map(ToString::to_string).collect();
        let nodes: Vec<_> = locked(&self.nodes).known.values().cloned().collect();
        f.debug_struct("Cluster").field("seeds", &seeds).field("nodes", &nodes).finish_non_exhaustive()
    }
}
