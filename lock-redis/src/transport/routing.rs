use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    sync::Arc,
    time::Duration,
};

use lock_core::backend::Tasks;

use crate::{
    error::Failure,
    keys::slot,
    transport::address::Address,
    transport::breaker::Breaker,
    transport::cluster::Cluster,
    transport::reconnect::{Connection, Link, Listener, Timeouts},
    transport::sentinel::Sentinels,
    transport::upstream::Upstream,
};

/// The servers of one client: says over which connection a request for a key goes.
#[derive(Debug)]
pub(crate) enum Servers {
    /// One keeps all keys: always the same, or the sentinels' master.
    One {
        node: Arc<Node>,
        sentinels: Option<Arc<Sentinels>>,
    },
    /// Each keeps some slots.
    Cluster(Arc<Cluster>),
}

/// The connections to one server.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) commands: Arc<Link>,
    /// The server reports changes of what was read over it.
    pub(crate) tracking: Arc<Link>,
    /// Apart from the commands: a renewal stands behind nobody's acquisitions.
    pub(crate) renewals: Arc<Link>,
    /// In a cluster.
    pub(crate) address: Option<Address>,
}

/// The way of one request, which may lead over several servers of a cluster.
pub(crate) struct Route<'a> {
    servers: &'a Servers,
    key: &'a str,
    /// Server to which the last answer sent it, and whether that has to be told.
    sent_to: Option<(Arc<Node>, bool)>,
    /// Server to which it went last.
    last: Option<Arc<Node>>,
    redirections: u32,
    tries: u32,
}

/// Servers that do not agree where a slot is would send a request back and forth for ever.
const MAX_REDIRECTIONS: u32 = 5;

/// Of a request for keys that are on their way to another server, with pauses that double from the
/// first one.
const MAX_TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(10);

/// While a server cannot be reached, how often to look whether another one has taken over.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// One of a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Commands,
    Tracking,
}

impl Servers {
    pub(crate) fn one(
        upstream: Upstream,
        timeouts: Timeouts,
        tasks: &Tasks,
        listener: Arc<dyn Listener>,
    ) -> Self {
        let sentinels = match &upstream {
            Upstream::Master(sentinels) => Some(Arc::clone(sentinels)),
            Upstream::Fixed(_) => None,
        };
        Self::One {
            node: Arc::new(Node::new(
                &upstream,
                None,
                timeouts,
                tasks,
                listener,
                &Arc::default(),
            )),
            sentinels,
        }
    }

    /// Connects for the first time.
    pub(crate) async fn open(&self, tasks: &Tasks) -> Result<(), Failure> {
        match self {
            Self::One { node, sentinels } => {
                node.commands.connection().await?;
                if let Some(sentinels) = sentinels {
                    sentinels.start(tasks);
                }
                Ok(())
            }
            Self::Cluster(cluster) => cluster.open().await,
        }
    }

    /// Returns why the server cannot be reached at the moment, where there is one and that is
    /// known.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::One { node, .. } => node.commands.failure(),
            Self::Cluster(_) => None,
        }
    }

    /// Returns whether another server takes over when one fails.
    pub(crate) fn fail_over(&self) -> bool {
        !matches!(
            self,
            Self::One {
                sentinels: None,
                ..
            }
        )
    }

    pub(crate) fn route<'a>(&'a self, key: &'a str) -> Route<'a> {
        Route {
            servers: self,
            key,
            sent_to: None,
            last: None,
            redirections: 0,
            tries: 0,
        }
    }

    /// Sends a request about a key to the server that keeps it.
    pub(crate) async fn at<T, F>(
        &self,
        key: &str,
        request: impl Fn(Connection) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut route = self.route(key);
        loop {
            match request(route.commands().await?).await {
                Err(failure) if route.follow(&failure).await => {}
                outcome => return outcome.map_err(|failure| self.given_up(failure)),
            }
        }
    }

    /// Has the connection made over which a key's lock will be renewed.
    pub(crate) fn prepare_renewals(&self, key: &str) {
        let node = match self {
            Self::One { node, .. } => Some(Arc::clone(node)),
            Self::Cluster(cluster) => cluster.master(slot(key)),
        };
        if let Some(node) = node {
            node.renewals.ready();
        }
    }

    /// All that keep locks at the moment.
    pub(crate) async fn masters(&self) -> Result<VecDeque<Arc<Node>>, Failure> {
        match self {
            Self::One { node, .. } => Ok([Arc::clone(node)].into()),
            Self::Cluster(cluster) => cluster.masters().await,
        }
    }

    /// Returns what a failure means when its redirection, if it is one, is not followed any more.
    pub(crate) fn given_up(&self, failure: Failure) -> Failure {
        match self {
            Self::Cluster(_) if failure.redirection().is_some() => failure.gone_astray(),
            _ => failure,
        }
    }

    /// The keys by the server that keeps them, each by its place: to be sent there in one batch.
    pub(crate) fn group<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Vec<Vec<usize>> {
        let keys = keys.enumerate();
        let Self::Cluster(cluster) = self else {
            return vec![keys.map(|(at, _)| at).collect()];
        };
        let mut groups: HashMap<Option<Address>, Vec<usize>> = HashMap::new();
        for (at, key) in keys {
            let master = cluster
                .master(slot(key))
                .and_then(|node| node.address.clone());
            groups.entry(master).or_default().push(at);
        }
        groups.into_values().collect()
    }

    /// Bounds what is asked of one server of a cluster while others are asked too, so that it does
    /// not hold up what they say; by `limit`, or the time for an answer if there is none.
    pub(crate) async fn in_cluster_within<T>(
        &self,
        limit: Option<Duration>,
        asked: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Self::Cluster(cluster) = self else {
            return asked.await;
        };
        let in_time = tokio::time::timeout(limit.unwrap_or(cluster.timeouts.response), asked).await;
        in_time.unwrap_or_else(|_| Err(Failure::timed_out()))
    }

    pub(crate) fn close(&self) {
        match self {
            Self::One { node, sentinels } => {
                if let Some(sentinels) = sentinels {
                    sentinels.stop();
                }
                node.close();
            }
            Self::Cluster(cluster) => cluster.close(),
        }
    }
}

impl Node {
    pub(crate) fn new(
        upstream: &Upstream,
        address: Option<Address>,
        timeouts: Timeouts,
        tasks: &Tasks,
        listener: Arc<dyn Listener>,
        breaker: &Arc<Breaker>,
    ) -> Self {
        let link = |listener| {
            Arc::new(Link::new(
                upstream.clone(),
                timeouts,
                tasks.clone(),
                listener,
                Arc::clone(breaker),
            ))
        };
        Self {
            commands: link(None),
            tracking: link(Some(listener)),
            renewals: link(None),
            address,
        }
    }

    pub(crate) fn close(&self) {
        self.tracking.close();
        self.renewals.close();
        self.commands.close();
    }

    fn link(&self, kind: Kind) -> &Link {
        match kind {
            Kind::Commands => &self.commands,
            Kind::Tracking => &self.tracking,
        }
    }
}

impl Route<'_> {
    /// The connection to send it over.
    pub(crate) async fn commands(&mut self) -> Result<Connection, Failure> {
        self.connection(Kind::Commands).await
    }

    /// The same, so that the server reports the next change of what the request reads.
    pub(crate) async fn tracking(&mut self) -> Result<Connection, Failure> {
        self.connection(Kind::Tracking).await
    }

    /// The connection for renewals, or that for commands until there is one: a renewal waits for
    /// no connection that only it needs.
    pub(crate) async fn renewals(&mut self) -> Result<Connection, Failure> {
        let (node, asking) = match (self.servers, &self.sent_to) {
            (Servers::One { node, .. }, _) => (Some(Arc::clone(node)), false),
            (Servers::Cluster(_), Some((node, asking))) => (Some(Arc::clone(node)), *asking),
            (Servers::Cluster(cluster), None) => (cluster.master(slot(self.key)), false),
        };
        match node.as_ref().and_then(|node| node.renewals.ready()) {
            Some(own) => {
                (self.last, self.sent_to) = (node, None);
                Ok(if asking { own.asking() } else { own })
            }
            None => self.commands().await,
        }
    }

    /// Returns whether the request is to be sent again, to where it was redirected or once more to
    /// the same server.
    pub(crate) async fn follow(&mut self, failure: &Failure) -> bool {
        if !matches!(self.servers, Servers::Cluster(_)) {
            return false;
        }
        if failure.is_try_again() && self.tries < MAX_TRIES {
            tokio::time::sleep(TRY_PAUSE * 2_u32.pow(self.tries)).await;
            (self.tries, self.redirections) = (self.tries + 1, 0);
            return true;
        }
        let node = self.note(failure);
        let Some(redirection) = failure
            .redirection()
            .filter(|_| self.redirections < MAX_REDIRECTIONS)
        else {
            return false;
        };
        self.redirections += 1;
        self.sent_to = node.map(|node| (node, redirection.once));
        self.sent_to.is_some()
    }

    /// Takes from a failure what it says about where keys are; returns where its own request is to
    /// go.
    pub(crate) fn note(&self, failure: &Failure) -> Option<Arc<Node>> {
        let Servers::Cluster(cluster) = self.servers else {
            return None;
        };
        let asked = self.last.as_ref().and_then(|node| node.address.as_ref());
        if let Some(redirection) = failure.redirection() {
            return cluster.redirect(redirection, asked.map_or("", |address| &address.host));
        }
        if failure.is_doubtful() {
            cluster.refresh_after_failure_of(asked);
        }
        None
    }

    async fn connection(&mut self, kind: Kind) -> Result<Connection, Failure> {
        let (node, connection) = match (self.servers, &self.sent_to) {
            (Servers::One { node, .. }, _) => return node.link(kind).connection().await,
            (Servers::Cluster(_), Some((node, asking))) => {
                self.last = Some(Arc::clone(node));
                let connection = node.link(kind).connection().await?;
                (
                    Arc::clone(node),
                    if *asking {
                        connection.asking()
                    } else {
                        connection
                    },
                )
            }
            (Servers::Cluster(cluster), None) => in_cluster(cluster, slot(self.key), kind).await?,
        };
        // Not before: who is refused one kind of connection takes another one to the same server.
        (self.last, self.sent_to) = (Some(node), None);
        Ok(connection)
    }
}

/// The connection to the slot's master, also if that changes while it is being made.
async fn in_cluster(
    cluster: &Arc<Cluster>,
    slot: u16,
    kind: Kind,
) -> Result<(Arc<Node>, Connection), Failure> {
    loop {
        let Some(node) = cluster.master(slot) else {
            cluster.refresh_soon();
            return Err(Failure::unsent(io::Error::new(
                io::ErrorKind::NotConnected,
                "no server of the cluster keeps the slot",
            )));
        };
        let link = node.link(kind);
        let looking = async {
            while !link.is_connected() {
                cluster.refresh_soon();
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            std::future::pending::<()>().await;
        };
        let connected = tokio::select! {
            biased;
            connected = link.connection() => Some(connected),
            () = cluster.until_moved(slot, &node) => None,
            () = looking => None,
        };
        match connected {
            Some(connected) => {
                if connected.is_err() {
                    cluster.refresh_after_failure_of(node.address.as_ref());
                }
                return connected.map(|connection| (Arc::clone(&node), connection));
            }
            None => continue,
        }
    }
}
