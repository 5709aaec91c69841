//! A fleet on a real Redis and a real etcd goes through the phases by rolling deployments, forward
//! and back, under load.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};
use lock_core::{DistributedLock, DistributedLockExt, Registry};
use lock_etcd::EtcdLock;
use lock_migrate::{EtcdFloor, MigrateConnector, MigratingLock, Phase};
use lock_redis::{RedisConnector, RedisLock};
use tokio::task::JoinHandle;

use common::{HEAD_ROOM, Load, MEMBERS, Resource, start_servers};

struct Fleet {
    redis: Server,
    etcd: Server,
    load: Load,
    members: Vec<Member>,
}

/// One client, and tasks that lock through it until they are told to stop.
struct Member {
    phase: Phase,
    locks: MigratingLock,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Fleet {
    async fn start() -> Option<Self> {
        let (redis, etcd) = start_servers()?;
        let mut fleet = Self {
            redis,
            etcd,
            load: Load::default(),
            members: Vec::new(),
        };
        for _ in 0..MEMBERS {
            let member = fleet.member(Phase::SourceOnly, false).await;
            fleet.members.push(member);
        }
        Some(fleet)
    }

    async fn member(&self, phase: Phase, is_way_back: bool) -> Member {
        let source = RedisLock::connect(self.redis.url()).await.unwrap();
        let target = EtcdLock::builder([self.etcd.endpoint()])
            .connect()
            .await
            .unwrap();
        let floor = Arc::new(EtcdFloor::new(&target));
        let mut builder = MigratingLock::builder(phase).with_head_room(HEAD_ROOM);
        if phase.takes_source() {
            builder = builder.with_source(Arc::new(source));
        }
        if phase.takes_target() || is_way_back {
            builder = builder.with_target(Arc::new(target), floor);
        }
        let locks = builder.build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let workers = (0..2).map(|_| self.load.worker(&locks, &stop)).collect();
        Member {
            phase,
            locks,
            stop,
            workers,
        }
    }

    /// Each member in turn is stopped, and started anew.
    async fn deploy(&mut self, phase: Phase) {
        for at in 0..MEMBERS {
            let is_way_back = self.members[at].phase > phase;
            self.members.remove(at).stop().await;
            let member = self.member(phase, is_way_back).await;
            self.members.insert(at, member);
            self.goes_on().await;
        }
        println!(
            "{phase}: {:?}",
            self.load.resources.each_ref().map(Resource::last_token)
        );
    }

    /// Waits until every name has been locked some more.
    async fn goes_on(&self) {
        let workers = self.members.iter().flat_map(|member| &member.workers);
        let limit = Duration::from_secs(60);
        let all_run = || workers.clone().all(|worker| !worker.is_finished());
        self.load.goes_on(limit, all_run).await;
    }

    async fn end(self) {
        for member in self.members {
            member.stop().await;
        }
        self.load.expect_no_failures();
    }
}

impl Member {
    async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers {
            worker.await.unwrap();
        }
        self.locks.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_url_with_a_phase_is_all_that_an_application_changes() {
    let redis = servers::redis(RedisOptions::new());
    let etcd = servers::etcd(EtcdOptions::new());
    let (Ok(redis), Ok(etcd)) = (redis, etcd) else {
        return;
    };
    let registry = Registry::new()
        .with(RedisConnector)
        .with(MigrateConnector::new(Registry::new().with(RedisConnector)));
    let name = format!("url/{:x}", rand::random::<u64>());
    let mut last = None;
    for phase in Phase::ALL {
        let target = etcd.url().replace('&', "%26");
        let url = format!("migrate+{}?phase={phase}&target={target}", redis.url());
        let declared = registry.capabilities(&url.parse().unwrap()).unwrap();
        let locks = registry.connect(&url).await.unwrap();
        assert_eq!(locks.capabilities(), declared);
        let guard = locks.acquire(&*name).await.unwrap();
        assert!(guard.token() > last, "{phase}");
        last = guard.token();
        let seen = locks.inspect(&*name).await.unwrap().unwrap();
        assert_eq!(
            (&seen.holder().owner, seen.holder().token),
            (guard.owner(), last),
            "{phase}"
        );
        guard.release().await.unwrap();
        locks.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_deployments_and_three_back_under_load() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    fleet.goes_on().await;
    for phase in [Phase::Dual, Phase::TargetOnly, Phase::Final] {
        fleet.deploy(phase).await;
    }
    for phase in [
        Phase::TargetOnly,
        Phase::Dual,
        Phase::SourceOnly,
        Phase::Dual,
    ] {
        fleet.deploy(phase).await;
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_emptied_in_dual_takes_no_token_back() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    fleet.deploy(Phase::Dual).await;
    let mut operator = redis::Client::open(fleet.redis.url())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    for _ in 0..3 {
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut operator)
            .await
            .unwrap();
        fleet.goes_on().await;
    }
    fleet.redis.restart().await.unwrap();
    fleet.goes_on().await;
    fleet.deploy(Phase::TargetOnly).await;
    fleet.end().await;
}
