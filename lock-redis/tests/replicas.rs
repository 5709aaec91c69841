//! Locks that replicas must confirm, with real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use lock_conformance::servers::{self, RedisOptions, Server, Skip, TcpProxy, Trouble};
use lock_core::{DistributedLockExt, ErrorKind, FencingToken, LossReason};
use lock_redis::{RedisLock, RedisLockBuilder};
use tokio::task::JoinSet;

mod common;
use common::{
    Operator, address, assert_unconfirmed, builder, name, own, promptly, renewed, ttl, until,
    waiter,
};

struct Pair {
    primary: Server,
    replica: Server,
}

impl Pair {
    async fn start() -> Result<Self, Skip> {
        let primary = own()?;
        let host = address(&primary).ip().to_string();
        let port = address(&primary).port().to_string();
        let replica = RedisOptions::new()
            .own()
            .with_argument("--replicaof")
            .with_argument(host)
            .with_argument(port);
        let pair = Self {
            primary,
            replica: servers::redis(replica)?,
        };
        pair.in_step().await;
        Ok(pair)
    }

    async fn in_step(&self) {
        let replica = Operator::of(&self.replica);
        until("the replica follows", || async {
            replica
                .run::<String>(&["INFO", "replication"])
                .await
                .contains("master_link_status:up")
        })
        .await;
    }

    /// One confirmation, within a second unless the replica is in trouble.
    fn builder(&self) -> RedisLockBuilder {
        builder(address(&self.primary)).with_replicas(1, Duration::from_secs(1))
    }

    async fn client(&self) -> RedisLock {
        self.builder().connect().await.unwrap()
    }
}

#[tokio::test]
async fn what_is_granted_is_on_the_replica() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let replica = Operator::of(&pair.replica);
    for round in 0..50 {
        let guard = match round % 2 {
            0 => locks.acquire("a").await.unwrap(),
            _ => locks.try_acquire("a").await.unwrap().unwrap(),
        };
        assert_eq!(
            replica.get("a").await.as_deref(),
            Some(guard.owner().as_str().as_bytes())
        );
        guard.release().await.unwrap();
    }
    let url = format!("{}?replicas=1&replica_timeout=1s", pair.primary.url());
    RedisLock::connect(&url)
        .await
        .unwrap()
        .acquire("b")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn a_raised_token_is_on_the_replica() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let replica = Operator::of(&pair.replica);
    let guard = locks.acquire("a").await.unwrap();
    let ahead = |by| FencingToken::new(guard.token().unwrap().as_u64() + by);
    let raised = guard.raise_token(ahead(1_000_000_000_000)).await.unwrap();
    assert_eq!(
        replica.companion("a", "token").await,
        Some(raised.to_string())
    );
    pair.replica.freeze().unwrap();
    let error = promptly("an error", guard.raise_token(ahead(1)))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.is_indeterminate(),
        "{error:?}"
    );
    assert_eq!(guard.token(), Some(raised));
    pair.replica.thaw().unwrap();
    until("it works again", || async {
        guard.raise_token(ahead(1)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn what_no_replica_confirms_is_given_back() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let operator = Operator::of(&pair.primary);
    locks.acquire("a").await.unwrap().release().await.unwrap();
    for frozen in [true, false] {
        match frozen {
            true => pair.replica.freeze().unwrap(),
            false => pair.replica.kill().unwrap(),
        }
        assert_unconfirmed(&promptly("an error", locks.acquire("a")).await.unwrap_err());
        assert_unconfirmed(
            &promptly("an error", locks.try_acquire("a"))
                .await
                .unwrap_err(),
        );
        assert_eq!(operator.get("a").await, None);
        // A wait that was given up half-way blocks nobody else.
        let _ = tokio::time::timeout(Duration::from_millis(100), locks.acquire("a")).await;
        until("nothing is left", || async {
            operator.get("a").await.is_none() && locks.residue()() == 0
        })
        .await;
        match frozen {
            true => pair.replica.thaw().unwrap(),
            false => pair.replica.start().await.unwrap(),
        }
        pair.in_step().await;
        until("it works again", || async {
            locks
                .try_acquire("a")
                .await
                .is_ok_and(|guard| guard.is_some())
        })
        .await;
        until("it is free", || async { operator.get("a").await.is_none() }).await;
    }
}

#[tokio::test]
async fn a_waiter_whose_turn_is_not_confirmed_gives_it_to_the_next() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let unconfirmed = builder(address(&pair.primary)).connect().await.unwrap();
    let held = locks.acquire("a").await.unwrap();
    let waiting = waiter(&locks, "a");
    let other = waiter(&unconfirmed, "a");
    let operator = Operator::of(&pair.primary);
    until("both wait", || async {
        operator.clients().await > 4 && operator.tracked_keys().await > 0
    })
    .await;
    pair.replica.freeze().unwrap();
    held.release().await.unwrap();
    // Whoever of the two comes first.
    let guard = promptly("who waits for no replica", other)
        .await
        .unwrap()
        .unwrap();
    guard.release().await.unwrap();
    assert_unconfirmed(&promptly("an error", waiting).await.unwrap().unwrap_err());
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn a_guard_whose_renewals_are_not_confirmed_is_lost_at_its_deadline() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let guard = locks
        .acquire_with(&name("a"), ttl(Duration::from_secs(3)))
        .await
        .unwrap();
    renewed(&guard).await;
    pair.replica.freeze().unwrap();
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Expired
    );
}

#[tokio::test]
async fn many_tasks_do_not_wait_for_each_others_replicas() {
    let pair = or_skip!(Pair::start().await);
    let locks = pair.client().await;
    let operator = Operator::of(&pair.primary);
    for frozen in [false, true] {
        if frozen {
            pair.replica.freeze().unwrap();
        }
        let mut tasks = JoinSet::new();
        for task in 0..200 {
            let locks = locks.clone();
            tasks.spawn(async move { locks.acquire(format!("k{task}")).await });
        }
        let outcomes = promptly("all", tasks.join_all()).await;
        for outcome in outcomes {
            match frozen {
                true => assert_unconfirmed(&outcome.unwrap_err()),
                false => outcome.unwrap().release().await.unwrap(),
            }
        }
        until("nothing is left", || async {
            operator
                .run::<Vec<String>>(&["KEYS", "k[0-9]*[0-9]"])
                .await
                .is_empty()
        })
        .await;
        assert!(operator.clients().await <= 40, "connections are bounded");
    }
    until("no residue", || async { locks.residue()() == 0 }).await;
}

/// Tasks that acquire and release, each a name of its own, until they are dropped.
fn busy(locks: &RedisLock, tasks: usize) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for task in 0..tasks {
        let locks = locks.clone();
        all.spawn(async move {
            loop {
                if let Ok(guard) = locks.acquire(format!("busy{task}")).await {
                    let _ = guard.release().await;
                }
            }
        });
    }
    all
}

#[tokio::test]
async fn renewals_are_confirmed_while_many_acquisitions_wait_for_replicas() {
    let pair = or_skip!(Pair::start().await);
    let proxy = TcpProxy::start(address(&pair.primary)).await.unwrap();
    let locks = builder(proxy.address())
        .with_replicas(1, Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    proxy.set(Trouble::Delay(Duration::from_millis(150)));
    let mut guards = Vec::new();
    for number in 0..20 {
        let short = ttl(Duration::from_secs(6));
        let held = name(&format!("held{number}"));
        guards.push(locks.acquire_with(&held, short).await.unwrap());
    }
    let busy = busy(&locks, 200);
    tokio::time::sleep(Duration::from_secs(9)).await;
    let lost = guards.iter().filter(|guard| guard.is_lost()).count();
    assert_eq!(lost, 0, "of {}", guards.len());
    drop(busy);
}
