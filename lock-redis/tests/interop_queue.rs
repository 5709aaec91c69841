//! Locks of other libraries on a key for which clients of ours stand in a queue: they know no
//! queue, take what they find free, exclude us and are excluded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{path::PathBuf, process::Stdio, time::Duration};

use futures_util::future::join_all;
use lock_conformance::servers::{Server, tools};
use lock_core::DistributedLockExt;
use redis::{AsyncCommands, Script, aio::MultiplexedConnection};
use rslock::LockManager;
use tokio::{process::Command, task::JoinSet};

mod common;
use common::{Operator, client, own, promptly, until, until_within, waiter};

/// The key of the lock `job` as python-redis-lock writes it.
const KEY: &str = "lock:job";
const SIGNAL: &str = "lock-signal:job";
const QUEUE: &str = "lock:job\u{1f}q{lock:job}";

/// How often everybody adds one.
const EACH: usize = 40;

/// For all of them.
const LIMIT: Duration = Duration::from_secs(120);

async fn connection(server: &Server) -> MultiplexedConnection {
    redis::Client::open(format!("redis://{}", server.endpoint()))
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap()
}

/// Adds to a number that nothing guards but the lock.
async fn add_one(store: &mut MultiplexedConnection) {
    let sum: Option<u64> = store.get("sum").await.unwrap();
    let () = store.set("sum", sum.unwrap_or(0) + 1).await.unwrap();
}

/// The release of redsync, and of most that follow the documentation of `SET`.
const REDSYNC: &str = r#"
local val = redis.call("GET", KEYS[1])
if val == ARGV[1] then
    return redis.call("DEL", KEYS[1])
elseif val == false then
    return -1
else
    return 0
end
"#;

/// That of python-redis-lock, whose own waiters sleep on the second key.
const PYTHON_REDIS_LOCK: &str = r#"
if redis.call("get", KEYS[1]) ~= ARGV[1] then
    return 1
else
    redis.call("del", KEYS[2])
    redis.call("lpush", KEYS[2], 1)
    redis.call("pexpire", KEYS[2], ARGV[2])
    redis.call("del", KEYS[1])
    return 0
end
"#;

/// A client that tries until it finds the lock free, and releases by a script whose answer to a
/// release in time is `released`.
async fn tries(mut store: MultiplexedConnection, owner: &str, release: &str, released: i64) {
    let release = Script::new(release);
    for _ in 0..EACH {
        let mut set = redis::cmd("SET");
        set.arg(KEY).arg(owner).arg("NX").arg("PX").arg(60_000);
        while set
            .query_async::<Option<String>>(&mut store)
            .await
            .unwrap()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        add_one(&mut store).await;
        let mut release = release.prepare_invoke();
        release.key(KEY).key(SIGNAL).arg(owner).arg(1000);
        let answer: i64 = release.invoke_async(&mut store).await.unwrap();
        assert_eq!(answer, released, "{owner} lost the lock");
    }
}

/// Libraries of Python by their module, and how often each adds one: the second is told of its own
/// releases alone, and otherwise looks once a second.
const PYTHON: [(&str, &str, usize); 2] = [
    (
        "redis",
        "client.lock('lock:job', timeout=60, sleep=0.002)",
        EACH,
    ),
    ("redis_lock", "redis_lock.Lock(client, 'job', expire=1)", 5),
];

/// Adds as often to the number, and says how often; nothing where the module is missing.
async fn python(program: PathBuf, port: u16, (module, lock, times): (&str, &str, usize)) -> usize {
    let import = format!("import redis, {module}");
    let mut probe = Command::new(&program);
    probe.args(["-c", &import]).stderr(Stdio::null());
    if !probe.status().await.unwrap().success() {
        eprintln!(
            "not against {module}: {} does not have it",
            program.display()
        );
        return 0;
    }
    let script = format!(
        "{import}
client = redis.Redis(port={port})
for _ in range({times}):
    with {lock}:
        client.set('sum', int(client.get('sum') or 0) + 1)"
    );
    let status = Command::new(&program)
        .args(["-c", &script])
        .kill_on_drop(true)
        .status()
        .await;
    assert!(status.unwrap().success(), "{module} failed");
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_while_others_take_what_they_find_free() {
    const CLIENTS: usize = 8;
    let server = or_skip!(own());
    let program = or_skip!(tools::python_with_redis());
    let operator = Operator::of(&server);
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let locks = client(&server).await;
        let mut store = connection(&server).await;
        tasks.spawn(async move {
            for _ in 0..EACH {
                let guard = locks.acquire(KEY).await.unwrap();
                add_one(&mut store).await;
                guard.release().await.unwrap();
            }
        });
    }
    let store = connection(&server).await;
    tasks.spawn(async move { tries(store, "redsync", REDSYNC, 1).await });
    let store = connection(&server).await;
    tasks.spawn(async move { tries(store, "python-redis-lock", PYTHON_REDIS_LOCK, 0).await });
    let manager = LockManager::new(vec![format!("redis://{}", server.endpoint())]);
    let mut store = connection(&server).await;
    tasks.spawn(async move {
        for _ in 0..EACH {
            let held = manager.acquire_no_guard(KEY, LIMIT).await.unwrap();
            add_one(&mut store).await;
            manager.unlock(&held).await;
        }
    });
    let port = common::address(&server).port();
    let theirs = join_all(PYTHON.map(|library| python(program.clone(), port, library)));
    let all = async { (tasks.join_all().await, theirs.await) };
    let (_, theirs) = tokio::time::timeout(LIMIT, all)
        .await
        .expect("all had their turns");
    let sum: usize = operator.run(&["GET", "sum"]).await;
    assert_eq!(sum, (CLIENTS + 3) * EACH + theirs.iter().sum::<usize>());
    until_within(Duration::from_secs(10), "the queue is gone", || async {
        let mut keys: Vec<String> = operator.run(&["KEYS", "*"]).await;
        keys.retain(|key| key != SIGNAL);
        keys.sort();
        keys == ["lock:job\u{1f}{lock:job}", "sum"]
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_another_library_takes_first_leaves_the_queue_as_it_is() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let guard = client(&server).await.acquire(KEY).await.unwrap();
    let mut waiting = Vec::new();
    for place in 1..=3 {
        waiting.push(waiter(&client(&server).await, KEY));
        until("it is in the queue", || async {
            operator
                .run::<usize>(&["ZCOUNT", QUEUE, "-inf", "7e15"])
                .await
                == place
        })
        .await;
    }
    let queue: Vec<String> = operator.run(&["ZRANGE", QUEUE, "0", "2"]).await;
    // In one step with the end of the holder, before any of ours can have it.
    let theirs = "redis.call('SET', KEYS[1], 'theirs', 'PX', 60000)";
    let () = operator.run(&["EVAL", theirs, "1", KEY]).await;
    until("the first waiter looks again", || async {
        operator.tracked_keys().await > 0 && guard.is_lost()
    })
    .await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    assert_eq!(
        operator
            .run::<Vec<String>>(&["ZRANGE", QUEUE, "0", "2"])
            .await,
        queue
    );
    let _: usize = operator.run(&["DEL", KEY]).await;
    for next in waiting {
        let granted = promptly("the next in the queue", next)
            .await
            .unwrap()
            .unwrap();
        granted.release().await.unwrap();
    }
}
