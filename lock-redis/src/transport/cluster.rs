use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_core::backend::{Tasks, locked};
use rand::seq::SliceRandom;
use redis::{ConnectionInfo, Value};
use tokio::sync::watch;

use crate::{
    error::{Failure, Redirection},
    keys::slot,
    transport::address::Address,
    transport::breaker::Breaker,
    transport::reconnect::{Link, Listener, Timeouts},
    transport::routing::Node,
    transport::slots::SlotMap,
    transport::upstream::Upstream,
};

/// The masters of a cluster, each with connections of its own, and which of them keeps which slot.
///
/// The map of the slots is read when the first request needs it. Afterwards servers correct it
/// (`MOVED`), and it is read again in the background whenever a server fails or a correction shows
/// that there is news: then first from the server that has got the slot, for others may not have
/// heard of it.
pub(crate) struct Cluster {
    seeds: Vec<Address>,
    /// Settings of all servers.
    servers: ConnectionInfo,
    pub(crate) timeouts: Timeouts,
    tasks: Tasks,
    listener: Arc<dyn Listener>,
    map: watch::Sender<SlotMap>,
    nodes: Mutex<Nodes>,
    /// Of all servers, also those that are asked for the map alone.
    breakers: Mutex<HashMap<Address, Arc<Breaker>>>,
    /// Who has got the slot of the last correction, until it is asked for the map. Locked while the
    /// map is changed.
    named: Mutex<Option<Address>>,
    /// Who has failed since the last reading: a server that is cut off may answer, and not know who
    /// has taken over.
    failed: Mutex<HashSet<Address>>,
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
        let map = watch::Sender::new(SlotMap::new());
        let refreshing = AtomicBool::new(false);
        let nodes = Mutex::default();
        let named = Mutex::default();
        let failed = Mutex::default();
        Arc::new(Self {
            seeds,
            servers,
            timeouts,
            tasks,
            listener,
            map,
            nodes,
            breakers: Mutex::default(),
            named,
            failed,
            refreshing,
        })
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
        let _ = self
            .map
            .subscribe()
            .wait_for(|map| map.master(slot) != from.as_ref())
            .await;
    }

    /// Takes a redirection from a server at `asked`; returns where to send the request.
    pub(crate) fn redirect(
        self: &Arc<Self>,
        redirection: Redirection<'_>,
        asked: &str,
    ) -> Option<Arc<Node>> {
        let to = Address::parse(redirection.address, asked)?;
        if !redirection.once {
            let is_news = self.map.send_if_modified(|map| {
                let is_news = map.moved(redirection.slot, to.clone());
                if is_news {
                    *locked(&self.named) = Some(to.clone());
                }
                is_news
            });
            if is_news {
                // Slots rarely move alone.
                self.refresh_soon();
                self.listener.missed(&|key| slot(key) == redirection.slot);
            }
        }
        Some(self.node(&to))
    }

    /// The map may be out of date: it is read again soon, in the background.
    pub(crate) fn refresh_soon(self: &Arc<Self>) {
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let refreshing = Refreshing(Arc::clone(self));
        self.tasks.spawn(async move {
            let cluster = &refreshing.0;
            loop {
                if let Err(failure) = cluster.refresh(cluster.timeouts.response).await {
                    tracing::debug!(
                        ?failure,
                        "no server of the cluster tells which slots it has at the moment"
                    );
                }
                tokio::time::sleep(REFRESH_PAUSE).await;
                if locked(&cluster.named).is_none() {
                    break;
                }
            }
        });
    }

    /// The same after the failure of a server, which is then asked last.
    pub(crate) fn refresh_after_failure_of(self: &Arc<Self>, server: Option<&Address>) {
        locked(&self.failed).extend(server.cloned());
        self.refresh_soon();
    }

    /// Reads the map for the first time.
    pub(crate) async fn open(&self) -> Result<(), Failure> {
        self.refresh(self.timeouts.connect).await
    }

    /// All masters, by what the servers say now.
    pub(crate) async fn masters(&self) -> Result<VecDeque<Arc<Node>>, Failure> {
        self.refresh(self.timeouts.response).await?;
        let masters: Vec<_> = self.map.borrow().masters().into_iter().cloned().collect();
        Ok(masters.iter().map(|master| self.node(master)).collect())
    }

    /// Reads the map from the first server that answers, each within `limit`.
    async fn refresh(&self, limit: Duration) -> Result<(), Failure> {
        let mut failure = None;
        let named = locked(&self.named).take();
        for (address, link) in self.links_to_ask(named.as_ref()) {
            match read(&link, &address, limit).await {
                Ok(map) => {
                    self.replace(map);
                    return Ok(());
                }
                // Why the cluster as a whole cannot be used is what its servers say, rather than
                // that one is down.
                Err(other)
                    if failure
                        .as_ref()
                        .is_none_or(|failure: &Failure| !failure.is_refusal()) =>
                {
                    failure = Some(other);
                }
                Err(_) => {}
            }
        }
        Err(failure
            .unwrap_or_else(|| Failure::unsent(io::Error::from(io::ErrorKind::NotConnected))))
    }

    pub(crate) fn close(&self) {
        let known = {
            let mut nodes = locked(&self.nodes);
            nodes.closed = true;
            std::mem::take(&mut nodes.known)
        };
        known.values().for_each(|node| node.close());
    }

    /// The servers that are known, the `named` one first, then those with a connection, then the
    /// seeds, and last those that failed. A master that nothing was sent to yet may be the only one
    /// that knows more.
    fn links_to_ask(&self, named: Option<&Address>) -> Vec<(Address, Arc<Link>)> {
        let masters: Vec<_> = self
            .map
            .borrow()
            .masters()
            .into_iter()
            .chain(named)
            .cloned()
            .collect();
        masters.iter().for_each(|master| drop(self.node(master)));
        let mut known: Vec<_> = locked(&self.nodes)
            .known
            .iter()
            .map(|(address, node)| (address.clone(), Arc::clone(&node.commands)))
            .collect();
        known.shuffle(&mut rand::rng());
        known.sort_by_key(|(address, link)| (named != Some(address), !link.is_connected()));
        let seed = |seed: &Address| {
            let upstream = Upstream::Fixed(seed.with_settings_of(&self.servers));
            (
                seed.clone(),
                Arc::new(Link::new(
                    upstream,
                    self.timeouts,
                    self.tasks.clone(),
                    None,
                    self.breaker(seed),
                )),
            )
        };
        let is_new = |seed: &&Address| known.iter().all(|(address, _)| address != *seed);
        let seeds: Vec<_> = self.seeds.iter().filter(is_new).map(seed).collect();
        let failed = std::mem::take(&mut *locked(&self.failed));
        let mut all: Vec<_> = known.into_iter().chain(seeds).collect();
        all.sort_by_key(|(address, _)| failed.contains(address));
        all
    }

    /// Unless a correction has come since the map was asked for: then it may be older, and is read
    /// again.
    fn replace(&self, map: SlotMap) {
        let masters: HashSet<Address> = map.masters().into_iter().cloned().collect();
        let mut old = None;
        self.map.send_if_modified(|known| {
            if locked(&self.named).is_some() {
                return false;
            }
            let changed = known.differs_from(&map);
            old = Some(std::mem::replace(known, map));
            changed
        });
        let Some(old) = old else { return };
        let gone: Vec<_> = locked(&self.nodes)
            .known
            .extract_if(|address, _| !masters.contains(address))
            .collect();
        locked(&self.breakers)
            .retain(|address, _| masters.contains(address) || self.seeds.contains(address));
        // What was tracked on a server that lost the slot is reported no more; nor is what was
        // asked of one that was to get it.
        let was_asked = gone
            .iter()
            .any(|(address, _)| !old.masters().contains(address));
        let map = self.map.borrow();
        self.listener
            .missed(&|key| was_asked || old.master(slot(key)) != map.master(slot(key)));
    }

    fn breaker(&self, server: &Address) -> Arc<Breaker> {
        Arc::clone(locked(&self.breakers).entry(server.clone()).or_default())
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = locked(&self.nodes);
        if let Some(node) = nodes.known.get(address) {
            return Arc::clone(node);
        }
        let upstream = Upstream::Fixed(address.with_settings_of(&self.servers));
        let listener = Arc::clone(&self.listener);
        let node = Arc::new(Node::new(
            &upstream,
            Some(address.clone()),
            self.timeouts,
            &self.tasks,
            listener,
            &self.breaker(address),
        ));
        match nodes.closed {
            true => node.close(),
            false => drop(nodes.known.insert(address.clone(), Arc::clone(&node))),
        }
        node
    }
}

async fn read(link: &Link, from: &Address, limit: Duration) -> Result<SlotMap, Failure> {
    let reading = async {
        let answer: Value = link
            .connection()
            .await?
            .run(redis::cmd("CLUSTER").arg("SLOTS"))
            .await
            .map_err(Failure::without_effect)?;
        SlotMap::parse(&answer, &from.host)
    };
    let trying = format!("cannot read the slots from {from}");
    match tokio::time::timeout(limit, reading).await {
        Ok(outcome) => outcome.map_err(|failure| failure.while_trying(trying)),
        Err(_) => Err(Failure::timed_out()
            .without_effect()
            .while_trying(format!("{trying} within {limit:?}"))),
    }
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
        f.debug_struct("Cluster")
            .field("seeds", &seeds)
            .field("nodes", &nodes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
