use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use lock_conformance::servers::{TcpProxy, Trouble};

use super::{Store, etcd, etcd::Etcd, redis::Redis};
use crate::{
    BoxError,
    live::Live,
    migration::{self, Migration},
    schedule::{Act, Cut, Link, Return, Side},
};

/// A Redis server, and an etcd cluster that its locks move to and back. The cluster's members have
/// the first numbers, the server the last one. Each worker has links of its own to both.
#[derive(Debug)]
pub(super) struct Migrate {
    source: Redis,
    target: Etcd,
    links: Vec<Links>,
}

/// The links of one worker.
#[derive(Debug)]
struct Links {
    source: TcpProxy,
    target: Vec<TcpProxy>,
}

const SOURCE: usize = etcd::SIZE;

/// Those of both stores' own soaks, without changes of etcd's users.
pub(super) const ACTS: &[Act] = &[
    Act::Compact,
    Act::Defragment,
    Act::MoveLeader,
    Act::KillConnections,
    Act::FlushScripts,
    Act::User,
    Act::Configure,
    Act::Reload,
];

impl Links {
    async fn start(source: &Redis, target: &Etcd) -> Result<Self, BoxError> {
        let mut members = Vec::new();
        for endpoint in target.endpoints() {
            members.push(TcpProxy::start(endpoint.parse()?).await?);
        }
        Ok(Self {
            source: TcpProxy::start(source.address()).await?,
            target: members,
        })
    }
}

impl Migrate {
    pub(super) async fn start(seed: u64, workers: usize) -> Result<Self, BoxError> {
        let target = Etcd::start(seed).await?;
        let source = Redis::start().await?;
        let mut links = Vec::new();
        for _ in 0..workers {
            links.push(Links::start(&source, &target).await?);
        }
        Ok(Self {
            source,
            target,
            links,
        })
    }

    fn url_at(&self, source: SocketAddr, target: &[String], ttl: Duration) -> String {
        let source = Redis::url_at(source, ttl);
        let target = self.target.url_at(target, ttl).replace('@', "%40");
        format!("migrate+{source}&phase=coordinated&target={target}")
    }

    /// The store of a member, and its number there.
    fn of(&self, member: usize) -> (&dyn Store, usize) {
        if member == SOURCE {
            (&self.source, 0)
        } else {
            (&self.target, member)
        }
    }
}

#[async_trait]
impl Store for Migrate {
    fn url(&self, ttl: Duration) -> String {
        self.url_at(self.source.address(), &self.target.endpoints(), ttl)
    }

    fn url_of_worker(&self, worker: usize, ttl: Duration) -> String {
        let Links { source, target } = &self.links[worker];
        let target: Vec<_> = target.iter().map(|it| it.address().to_string()).collect();
        self.url_at(source.address(), &target, ttl)
    }

    fn cut_worker_off(&self, worker: usize, link: Option<Link>) {
        let trouble = |is_cut| match is_cut {
            true => Trouble::Blackhole,
            false => Trouble::None,
        };
        let Links { source, target } = &self.links[worker];
        source.set(trouble(matches!(link, Some(Link::Source | Link::Both))));
        for member in target {
            member.set(trouble(matches!(link, Some(Link::Target | Link::Both))));
        }
    }

    async fn migrate(&self, terms: &Migration) -> Result<(), BoxError> {
        migration::drive(&self.url(terms.ttl), terms).await
    }

    async fn show(&self, terms: &Migration) -> Result<(), BoxError> {
        let source = Redis::url_at(self.source.address(), terms.ttl);
        let target = self.target.url_at(&self.target.endpoints(), terms.ttl);
        let live = Live {
            operator: migration::operator(&self.url(terms.ttl)).await?,
            source: polylock::connect(&source).await?,
            target: polylock::connect(&target).await?,
            home: terms.home.clone(),
        };
        live.show().await
    }

    async fn end_migration(&self, terms: &Migration) -> Result<(), BoxError> {
        migration::take_back(&self.url(terms.ttl), terms).await
    }

    async fn leader(&self) -> Result<usize, BoxError> {
        self.target.leader().await
    }

    fn kill(&self, member: usize) -> Result<(), BoxError> {
        let (store, member) = self.of(member);
        store.kill(member)
    }

    fn start(&self, member: usize) -> Result<(), BoxError> {
        let (store, member) = self.of(member);
        store.start(member)
    }

    fn pause(&self, member: usize) -> Result<(), BoxError> {
        let (store, member) = self.of(member);
        store.pause(member)
    }

    fn resume(&self, member: usize) -> Result<(), BoxError> {
        let (store, member) = self.of(member);
        store.resume(member)
    }

    fn cut(&self, member: usize, side: Side, cut: Cut) {
        let (store, member) = self.of(member);
        store.cut(member, side, cut);
    }

    fn delay(&self, member: usize, by: Duration) {
        let (store, member) = self.of(member);
        store.delay(member, by);
    }

    fn heal(&self, member: usize) {
        let (store, member) = self.of(member);
        store.heal(member);
    }

    async fn wait_healthy(&self) -> Result<(), BoxError> {
        self.source.wait_healthy().await?;
        self.target.wait_healthy().await
    }

    fn longest_leader_pause(&self, ttl: Duration) -> Option<Duration> {
        self.target.longest_leader_pause(ttl)
    }

    async fn serves(&self) -> Option<bool> {
        self.target.serves().await
    }

    async fn term(&self) -> Option<u64> {
        self.target.term().await
    }

    async fn act(&self, act: Act, lasts: Duration) -> Result<(), BoxError> {
        match act {
            Act::Compact | Act::Defragment | Act::MoveLeader => self.target.act(act, lasts).await,
            act => self.source.act(act, lasts).await,
        }
    }

    async fn back_up(&self, _: Return) -> Result<(), BoxError> {
        Err("a migration does not survive a store that goes back".into())
    }

    async fn put_back(&self, to: Return) -> Result<(), BoxError> {
        self.back_up(to).await
    }

    fn forgets_tokens(&self) -> bool {
        false
    }

    /// A lock needs both stores, and is given up on the way if one of them does not answer.
    fn wait_limit(&self) -> fn(Duration) -> Duration {
        |ttl| ttl + PATIENCE
    }

    fn prompt(&self) -> bool {
        false
    }

    fn settles(&self, ttl: Duration) -> (Duration, Duration) {
        self.target.settles(ttl)
    }

    /// Leaves out the record of all plans, which has their history.
    async fn contents(&self) -> Result<Vec<String>, BoxError> {
        let mut contents = self.source.contents().await?;
        let target = self.target.contents().await?;
        contents.extend(target.into_iter().filter(|it| !it.ends_with(PLANS)));
        Ok(contents)
    }
}

/// A request to the source that times out, after one to the target that did nearly.
const PATIENCE: Duration = Duration::from_secs(2);
/// The end of the key of the coordinator's only record that outlives its plans.
const PLANS: &str = "/lock-migrate/plans";
