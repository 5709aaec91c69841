//! Locks of other libraries on the same keys, with the real redis-py and rslock.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{process::Stdio, time::Duration};

use lock_conformance::servers::{Server, tools};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, LossReason};
use redis::AsyncCommands;
use rslock::LockManager;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

mod common;
use common::{NEVER, Operator, client, name, own, promptly, quorum, ttl, until, waiter};

/// One `redis.lock.Lock`, driven line by line.
const SCRIPT: &str = r#"
import sys, redis
from redis.lock import Lock
port, name, timeout = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) or None
lock = Lock(redis.Redis(port=port), name, timeout=timeout, sleep=0.01)
commands = {
    "try": lambda: lock.acquire(blocking=False),
    "acquire": lambda: lock.acquire(blocking=True, blocking_timeout=10),
    "release": lock.release,
    "owned": lock.owned,
    "token": lambda: lock.local.token.decode(),
}
for line in sys.stdin:
    try:
        print(commands[line.strip()](), flush=True)
    except redis.exceptions.LockError as error:
        print(type(error).__name__, flush=True)
"#;

struct Python {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Python {
    /// A lock of redis-py; without a time limit if `ttl` is zero.
    fn lock(python: &std::path::Path, server: &Server, name: &str, ttl: Duration) -> Self {
        let port = common::address(server).port().to_string();
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &port, name, &ttl.as_secs_f64().to_string()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        Self {
            _child: child,
            input,
            output: BufReader::new(output).lines(),
        }
    }

    async fn tell(&mut self, command: &str) {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
    }

    async fn answer(&mut self) -> String {
        promptly("python's answer", self.output.next_line())
            .await
            .unwrap()
            .expect("python ended")
    }

    async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.answer().await
    }
}

#[tokio::test]
async fn python_excludes_us_and_its_release_wakes_our_waiter() {
    let server = or_skip!(own());
    let python = or_skip!(tools::python_with_redis());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let mut theirs = Python::lock(&python, &server, "a", NEVER);
    assert_eq!(theirs.ask("acquire").await, "True");
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let waiter = waiter(&locks, "a");
    until("our waiter is registered with the server", || async {
        operator.tracked_keys().await > 0
    })
    .await;
    assert_eq!(theirs.ask("release").await, "None");
    // Neither a TTL nor a poll can have helped: both take ten minutes.
    let guard = promptly("our waiter", waiter).await.unwrap().unwrap();
    assert_eq!(theirs.ask("try").await, "False");
    guard.release().await.unwrap();
}

#[tokio::test]
async fn our_release_lets_python_in() {
    let server = or_skip!(own());
    let python = or_skip!(tools::python_with_redis());
    let locks = client(&server).await;
    let guard = locks.acquire("a").await.unwrap();
    let mut theirs = Python::lock(&python, &server, "a", NEVER);
    assert_eq!(theirs.ask("try").await, "False");
    theirs.tell("acquire").await;
    guard.release().await.unwrap();
    assert_eq!(theirs.answer().await, "True");
    let info = locks.inspect(&name("a")).await.unwrap().unwrap();
    assert_eq!(info.holder().owner.as_str(), theirs.ask("token").await);
    assert_eq!(
        (
            info.holder().token,
            &info.holder().metadata,
            info.holder().since
        ),
        (None, &None, None),
        "ours of before, not theirs"
    );
    assert!(info.holder().expires_in.is_some_and(|left| left <= NEVER));
}

#[tokio::test]
async fn a_lock_of_python_without_a_time_limit_is_waited_for() {
    let server = or_skip!(own());
    let python = or_skip!(tools::python_with_redis());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let mut theirs = Python::lock(&python, &server, "a", Duration::ZERO);
    assert_eq!(theirs.ask("acquire").await, "True");
    assert_eq!(operator.run::<i64>(&["PTTL", "a"]).await, -1);
    assert_eq!(
        locks
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .expires_in,
        None
    );
    let waiter = waiter(&locks, "a");
    until("our waiter is registered with the server", || async {
        operator.tracked_keys().await > 0
    })
    .await;
    assert_eq!(theirs.ask("release").await, "None");
    promptly("our waiter", waiter)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn stale_releases_change_nothing_either_way() {
    let server = or_skip!(own());
    let python = or_skip!(tools::python_with_redis());
    let locks = client(&server).await;
    let short = Duration::from_millis(300);
    let guard = locks
        .acquire_with(&name("a"), ttl(short).without_renewal())
        .await
        .unwrap();
    let mut theirs = Python::lock(&python, &server, "a", NEVER);
    assert_eq!(theirs.ask("acquire").await, "True");
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Expired
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(theirs.ask("owned").await, "True");

    let mut brief = Python::lock(&python, &server, "b", short);
    assert_eq!(brief.ask("acquire").await, "True");
    let guard = promptly("their expiry", locks.acquire("b")).await.unwrap();
    assert_eq!(brief.ask("release").await, "LockNotOwnedError");
    assert!(!guard.is_lost());
    guard.release().await.unwrap();
}

/// The manager of rslock, which asks once.
fn rslock(server: &Server) -> LockManager {
    let mut manager = LockManager::new(vec![format!("redis://{}", server.endpoint())]);
    manager.set_retry(1, Duration::from_millis(1));
    manager
}

#[tokio::test]
async fn rslock_excludes_us_and_its_release_wakes_our_waiter() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let theirs = rslock(&server);
    let held = theirs.lock("a", NEVER).await.unwrap();
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let owner: String = held.val.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        locks
            .inspect(&name("a"))
            .await
            .unwrap()
            .unwrap()
            .holder()
            .owner
            .as_str(),
        owner,
        "20 bytes that are not text"
    );
    let waiter = waiter(&locks, "a");
    until("our waiter is registered with the server", || async {
        operator.tracked_keys().await > 0
    })
    .await;
    theirs.unlock(&held).await;
    let guard = promptly("our waiter", waiter).await.unwrap().unwrap();
    assert!(matches!(
        theirs.lock("a", NEVER).await,
        Err(rslock::LockError::Unavailable)
    ));
    guard.release().await.unwrap();
    theirs.unlock(&theirs.lock("a", NEVER).await.unwrap()).await;
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn rslock_is_removed_by_the_owner_that_is_shown_and_by_no_other() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let theirs = rslock(&server);
    let first = theirs.lock("a", NEVER).await.unwrap();
    let shown = async || {
        locks
            .inspect("a")
            .await
            .unwrap()
            .unwrap()
            .holder()
            .owner
            .clone()
    };
    let seen = shown().await;
    theirs.unlock(&first).await;
    let second = theirs.lock("a", NEVER).await.unwrap();
    assert!(
        locks
            .force_release_from("a", &seen)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(operator.get("a").await.as_deref(), Some(&*second.val));
    let seen = shown().await;
    assert_eq!(
        locks
            .force_release_from("a", &seen)
            .await
            .unwrap()
            .map(|removed| removed.owner),
        Some(seen)
    );
    assert_eq!(operator.get("a").await, None);
}

#[tokio::test]
async fn a_list_leaves_out_what_no_lock_wrote() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = common::builder(common::address(&server))
        .with_namespace("p*:")
        .connect()
        .await
        .unwrap();
    let _ours = locks.acquire("ours").await.unwrap();
    for command in [
        ["SET", "p*:theirs", "somebody", "PX", "600000"].as_slice(),
        &["SET", "p*:application", "for ever"],
        &["SET", "px:other", "somebody", "PX", "600000"],
        &["SET", "p*:", "somebody", "PX", "600000"],
    ] {
        let () = operator.run(command).await;
    }
    let _: usize = operator.run(&["SADD", "p*:set", "1"]).await;
    let mut list = locks.list("").await.unwrap();
    let mut names = Vec::new();
    while let Some(info) = list.next().await {
        names.push(info.unwrap().name.to_string());
    }
    names.sort();
    assert_eq!(names, ["ours", "theirs"]);
}

#[tokio::test]
async fn stale_releases_change_nothing_to_rslock_or_to_us() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let theirs = rslock(&server);
    let short = Duration::from_millis(300);
    let guard = locks
        .acquire_with(&name("a"), ttl(short).without_renewal())
        .await
        .unwrap();
    let held = promptly("our expiry", theirs.acquire_no_guard("a", NEVER))
        .await
        .unwrap();
    assert_eq!(
        promptly("the loss", guard.lost()).await,
        LossReason::Expired
    );
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(!theirs.is_freed(&held).await.unwrap());

    let brief = theirs.lock("b", short).await.unwrap();
    let guard = promptly("their expiry", locks.acquire("b")).await.unwrap();
    theirs.unlock(&brief).await;
    assert!(!guard.is_lost());
    guard.release().await.unwrap();
}

/// Clients of three libraries add to a number in the store that nothing else guards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_among_three_libraries() {
    const EACH: usize = 100;
    let server = or_skip!(own());
    let python = or_skip!(tools::python_with_redis());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let mut command = Command::new(python);
    command
        .args([
            "-c",
            ADDER,
            &common::address(&server).port().to_string(),
            &EACH.to_string(),
        ])
        .kill_on_drop(true);
    let mut theirs = command.spawn().unwrap();
    let raw = redis::Client::open(format!("redis://{}", server.endpoint())).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let locks = locks.clone();
        let mut store = raw.get_multiplexed_async_connection().await.unwrap();
        tasks.spawn(async move {
            for _ in 0..EACH {
                let guard = locks.acquire("lock").await.unwrap();
                add_one(&mut store).await;
                guard.release().await.unwrap();
            }
        });
    }
    let manager = rslock(&server);
    let mut store = raw.get_multiplexed_async_connection().await.unwrap();
    tasks.spawn(async move {
        for _ in 0..EACH {
            let held = manager.acquire_no_guard("lock", NEVER).await.unwrap();
            add_one(&mut store).await;
            manager.unlock(&held).await;
        }
    });
    tokio::time::timeout(Duration::from_secs(120), tasks.join_all())
        .await
        .expect("all had their turns");
    assert!(
        tokio::time::timeout(Duration::from_secs(120), theirs.wait())
            .await
            .expect("python had its turns")
            .unwrap()
            .success()
    );
    assert_eq!(
        operator.get("sum").await,
        Some((4 * EACH).to_string().into_bytes())
    );
}

/// One thread of redis-py.
const ADDER: &str = r#"
import sys, redis
client = redis.Redis(port=int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    with client.lock("lock", timeout=600, sleep=0.001):
        client.set("sum", int(client.get("sum") or 0) + 1)
"#;

async fn add_one(store: &mut redis::aio::MultiplexedConnection) {
    let sum: Option<u64> = store.get("sum").await.unwrap();
    let () = store.set("sum", sum.unwrap_or(0) + 1).await.unwrap();
}

#[tokio::test]
async fn values_of_every_kind_are_respected() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let raw = redis::Client::open(format!("redis://{}", server.endpoint())).unwrap();
    let mut raw = raw.get_multiplexed_async_connection().await.unwrap();
    let () = raw
        .pset_ex("bytes", [0xff_u8, 0x00, 0x9f].as_slice(), 600_000)
        .await
        .unwrap();
    // redis-py's, which has no TTL unless asked for.
    let () = raw
        .set("hex", "0123456789abcdef0123456789abcdef")
        .await
        .unwrap();
    for (key, owner, ends) in [
        ("bytes", "ff009f", true),
        ("hex", "0123456789abcdef0123456789abcdef", false),
    ] {
        assert!(locks.try_acquire(key).await.unwrap().is_none(), "{key}");
        let info = locks.inspect(&name(key)).await.unwrap().unwrap();
        assert_eq!(
            (
                info.holder().owner.as_str(),
                info.holder().expires_in.is_some(),
                info.holder().token
            ),
            (owner, ends, None)
        );
        let waiter = waiter(&locks, key);
        until("our waiter is registered with the server", || async {
            operator.tracked_keys().await > 0
        })
        .await;
        assert!(!locks.force_release(&name(key)).await.unwrap().is_empty());
        promptly("our waiter", waiter)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

/// Every kind of value that is no string, and how to make it.
const FOREIGN: [(&str, &[&str]); 4] = [
    ("hash", &["HSET", "a", "field", "1"]),
    ("list", &["RPUSH", "a", "1"]),
    ("set", &["SADD", "a", "1"]),
    ("zset", &["ZADD", "a", "1", "1"]),
];

async fn assert_foreign(locks: &dyn DistributedLock, operators: &[Operator]) {
    let a = name("a");
    let options = || ttl(NEVER);
    for (kind, make) in FOREIGN {
        for operator in operators {
            let _: usize = operator.run(make).await;
        }
        for error in [
            promptly("acquire", locks.acquire_with(&a, options()))
                .await
                .unwrap_err(),
            locks.try_acquire_with(&a, options()).await.unwrap_err(),
            locks.inspect(&a).await.unwrap_err(),
            locks.force_release(&a).await.unwrap_err(),
        ] {
            // Of several servers one may not have answered yet.
            assert!(
                error.kind() == ErrorKind::Protocol
                    && error.is_indeterminate() <= (operators.len() > 1),
                "{error:?}"
            );
            assert!(
                error
                    .to_string()
                    .contains(&format!("the key holds a {kind}")),
                "{error}"
            );
        }
        for operator in operators {
            assert_eq!(
                operator.run::<usize>(&["DEL", "a"]).await,
                1,
                "a {kind} was removed"
            );
        }
    }
}

/// A string is waited for, whatever it says, and without a TTL it is not taken for a lock.
async fn assert_blocks_for_ever(locks: &impl DistributedLock, operators: &[Operator]) {
    for operator in operators {
        let () = operator.run(&["SET", "a", "of an application"]).await;
    }
    assert!(locks.try_acquire("a").await.unwrap().is_none());
    let error = promptly(
        "the end",
        locks.acquire_timeout("a", Duration::from_secs(1)),
    )
    .await
    .unwrap_err();
    let told = "held by a key without a TTL, which no lock wrote, \"of an application\"";
    assert!(
        error.kind() == ErrorKind::TimedOut && error.to_string().contains(told),
        "{error}"
    );
    for error in [
        locks.inspect(&name("a")).await.unwrap_err(),
        locks.force_release(&name("a")).await.unwrap_err(),
    ] {
        assert!(
            error.kind() == ErrorKind::Protocol
                && error
                    .to_string()
                    .contains("a string without a TTL, which no lock wrote"),
            "{error}"
        );
    }
    for operator in operators {
        assert_eq!(
            operator.get("a").await.as_deref(),
            Some(b"of an application".as_slice())
        );
    }
}

#[tokio::test]
async fn what_no_lock_wrote_is_named_and_not_removed() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operators = [Operator::of(&server)];
    assert_foreign(&locks, &operators).await;
    assert_blocks_for_ever(&locks, &operators).await;
}

#[tokio::test]
async fn what_no_lock_wrote_is_named_by_a_quorum_and_not_removed() {
    let servers = or_skip!(quorum::three());
    let locks = quorum::of(&servers).connect().await.unwrap();
    let operators = quorum::operators(&servers);
    assert_foreign(&locks, &operators).await;
    assert_blocks_for_ever(&locks, &operators).await;
    until("no residue", || async { locks.residue()() == 0 }).await;
}

#[tokio::test]
async fn the_key_is_the_name_and_the_value_the_owner_id() {
    let server = or_skip!(own());
    let operator = Operator::of(&server);
    let locks = common::builder(common::address(&server))
        .with_namespace("prod:")
        .with_database(0)
        .connect()
        .await
        .unwrap();
    for each in ["a", "{tag}a", "a}b", "{}x", "長い/名前", "{"] {
        let guard = locks.acquire(each).await.unwrap();
        let value = operator.get(&format!("prod:{each}")).await;
        assert_eq!(
            value.as_deref(),
            Some(guard.owner().as_str().as_bytes()),
            "{each}"
        );
        assert_eq!(guard.owner().as_str().len(), 32);
        guard.release().await.unwrap();
        assert_eq!(operator.get(&format!("prod:{each}")).await, None);
    }
}

#[tokio::test]
async fn a_release_makes_no_companion_that_would_stay_for_ever() {
    let server = or_skip!(own());
    let locks = client(&server).await;
    let operator = Operator::of(&server);
    let guard = locks
        .acquire_with(&name("a"), ttl(NEVER).with_metadata("note"))
        .await
        .unwrap();
    let keys: Vec<String> = operator.run(&["KEYS", "*"]).await;
    let companion = keys.iter().find(|key| *key != "a").unwrap();
    let () = operator.run(&["DEL", companion]).await;
    guard.release().await.unwrap();
    assert_eq!(
        operator.run::<Vec<String>>(&["KEYS", "*"]).await,
        Vec::<String>::new()
    );
}
