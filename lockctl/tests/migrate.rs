//! The program on a real Redis and a real etcd.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    net::TcpListener,
    process::{Command, Output},
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, EtcdOptions, RedisOptions, Server};
use polylock::prelude::*;
use serde_json::Value;

struct World {
    redis: Server,
    etcd: Server,
}

/// The exit code, and all that was printed.
type Said = (i32, String);

impl World {
    /// None where there are no servers.
    fn start() -> Option<Self> {
        let redis = servers::redis(RedisOptions::new().own()).ok()?;
        let etcd = servers::etcd(EtcdOptions::new().own()).ok()?;
        Some(Self { redis, etcd })
    }

    fn url(&self) -> String {
        let target = self.etcd.url().replace('&', "%26");
        format!(
            "migrate+{}?phase=coordinated&target={target}",
            self.redis.url()
        )
    }

    fn says(&self, arguments: &[&str]) -> Said {
        said(run(&self.url(), arguments))
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let (code, said) = self.says(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    }

    fn is_refused(&self, arguments: &[&str], because: &str) {
        let (code, said) = self.says(arguments);
        assert!(
            code == 3 && said.contains(because),
            "{arguments:?}: {code}: {said}"
        );
    }

    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = run(&self.url(), &[arguments, &["--json"]].concat());
        let value = serde_json::from_slice(&output.stdout);
        (output.status.code().unwrap(), value.unwrap())
    }

    fn await_status(&self, is_reached: impl Fn(&Value) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, status) = self.json(&["status"]);
            if is_reached(&status) {
                return;
            }
            assert!(Instant::now() < until, "{status}");
        }
    }
}

fn run(url: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockctl"))
        .arg("migrate")
        .args(arguments)
        .env("LOCK_URL", url)
        .env("USER", "bob")
        .output()
        .unwrap()
}

fn said(output: Output) -> Said {
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap();
    (code, String::from_utf8(said).unwrap())
}

#[test]
fn a_plan_goes_forward_and_is_aborted() {
    let Some(world) = World::start() else { return };
    world.is_refused(&["advance", "orders/"], "no plan `orders/`");
    let said = world.succeeds(&["plan", "orders/", "--dry-run"]);
    assert!(said.contains("would be"), "{said}");
    assert_eq!(world.json(&["status"]).1["plans"], Value::Array(vec![]));
    world.succeeds(&["plan", "orders/", "--by", "alice"]);
    world.is_refused(&["plan", "orders/eu/"], "overlaps");
    world.succeeds(&["pause", "orders/"]);
    world.is_refused(&["advance", "orders/"], "paused");
    world.succeeds(&["resume", "orders/"]);
    world.is_refused(&["advance", "orders/"], "no live members");
    for phase in ["dual", "target-only"] {
        let step = ["advance", "orders/", "--no-members"];
        let said = world.succeeds(&[&step[..], &["--dry-run"]].concat());
        assert!(said.contains(&format!("would be in {phase}")), "{said}");
        let said = world.succeeds(&step);
        assert!(said.contains(&format!("is in {phase}")), "{said}");
    }
    world.is_refused(&["complete", "orders/"], "advance first");
    let plan = &world.json(&["status"]).1["plans"][0];
    assert_eq!(plan["phase"], "target-only");
    assert!(plan["floor"].as_u64().unwrap() > 0);
    let said = world.succeeds(&["abort", "orders/", "--dry-run"]);
    assert!(said.contains("would be removed"), "{said}");
    let (code, outcome) = world.json(&["abort", "orders/"]);
    assert!(
        code == 0 && outcome["plan"] == Value::Null,
        "one document: {outcome}"
    );
    let said = world.succeeds(&["history"]);
    for what in ["alice", "bob", "plan", "advance", "roll back", "remove"] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_waits_for_the_members_and_names_what_they_hold() {
    let Some(world) = World::start() else { return };
    let locks = polylock::connect(&world.url()).await.unwrap();
    world.succeeds(&["plan", ""]);
    let guard = locks.acquire("orders/1").await.unwrap();
    // A member that has only just joined is behind for a moment.
    let is_settled = |status: &Value| {
        status["members"].as_array().unwrap().len() == 1 && status["plans"][0]["settled"] == true
    };
    world.await_status(is_settled);
    let step = ["advance", "", "--drain-limit", "2s"];
    let (code, said) = world.says(&step);
    assert!(code == 4 && said.contains("not followed yet"), "{said}");
    world.await_status(|status| {
        status["plans"][0]["behind"]
            .to_string()
            .contains("orders/1")
    });
    let said = world.succeeds(&["status"]);
    assert!(said.contains("holds orders/1"), "{said}");
    world.is_refused(&step, "roll back");
    guard.release().await.unwrap();
    world.await_status(is_settled);
    for phase in ["target-only", "final"] {
        let (code, outcome) = world.json(&["advance", ""]);
        assert!(
            code == 0 && outcome["plan"]["phase"] == phase,
            "{code}: {outcome}"
        );
        assert_eq!(outcome["behind"], Value::Object(serde_json::Map::new()));
    }
    let said = world.succeeds(&["complete", ""]);
    assert!(said.contains("complete"), "{said}");
    world.is_refused(&["rollback", ""], "no way back");
    let guard = locks.acquire("orders/1").await.unwrap();
    let last = guard.token();
    guard.release().await.unwrap();
    // The last deployment needs no coordinator any more, and its tokens go on.
    let url = world.url().replace("coordinated", "final");
    let locks = polylock::connect(&url).await.unwrap();
    let guard = locks.acquire("orders/1").await.unwrap();
    assert!(guard.token() > last);
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_who_locks_in_the_source_alone() {
    let Some(world) = World::start() else { return };
    let locks = polylock::connect(&world.url()).await.unwrap();
    let guard = locks.acquire("orders/1").await.unwrap();
    world.succeeds(&["plan", "orders/"]);
    world.succeeds(&["plan", "invoices/"]);
    guard.release().await.unwrap();
    world.await_status(|status| status["plans"][1]["settled"] == true);
    world.succeeds(&["advance", "orders/"]);
    let guard = locks.acquire("orders/1").await.unwrap();
    let said = world.succeeds(&["verify"]);
    assert!(
        said.contains("invoices/") && said.contains("dual"),
        "{said}"
    );

    let other = polylock::connect(world.redis.url()).await.unwrap();
    let foreign = other.acquire("orders/2").await.unwrap();
    let owner = foreign.owner().to_string();
    for arguments in [
        &["verify", "orders/", "--dry-run"][..],
        &["verify", "--watch", "2s"],
    ] {
        let (code, said) = world.says(arguments);
        assert!(code == 5 && said.contains(&owner), "{code}: {said}");
    }
    let (code, found) = world.json(&["verify", "orders/"]);
    assert!(code == 5 && found[0]["pairs"] == 1, "{found}");
    assert_eq!(found[0]["findings"][0]["kind"], "foreign-in-source");
    world.is_refused(&["advance", "orders/", "--dry-run"], &owner);
    foreign.release().await.unwrap();
    world.is_refused(&["advance", "orders/"], "foreign window");
    let said = world.succeeds(&["status"]);
    assert!(said.contains(&owner) && said.contains("tokens"), "{said}");
    guard.release().await.unwrap();
    std::thread::sleep(Duration::from_secs(1));
    world.succeeds(&["advance", "orders/", "--foreign-window", "1s"]);
    let (code, said) = world.says(&["verify", "orders/eu/"]);
    assert!(code == 3 && said.contains("no plan"), "{said}");
}

/// Redis is not asked where nothing of it is needed.
#[test]
fn what_does_not_concern_the_source_does_without() {
    let Some(world) = World::start() else { return };
    let gone = world
        .url()
        .replace(world.redis.url(), "redis://127.0.0.1:1/0");
    for arguments in [
        &["plan", "orders/"][..],
        &["pause", "orders/"],
        &["resume", "orders/"],
        &["advance", "orders/", "--no-members"],
        &["status"],
        &["history"],
        &["rollback", "orders/"],
        &["abort", "orders/"],
    ] {
        let (code, said) = said(run(&gone, arguments));
        assert_eq!(code, 0, "{arguments:?}: {said}");
    }
    world.succeeds(&["plan", "orders/"]);
    world.succeeds(&["advance", "orders/", "--no-members"]);
    for arguments in [&["verify"][..], &["advance", "orders/", "--no-members"]] {
        let (code, said) = said(run(&gone, arguments));
        assert!(code == 1 && said.contains("redis"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_url_that_is_wrong_is_told_before_any_store_is_asked() {
    for (url, says) in [
        ("", "LOCK_URL"),
        ("redis://127.0.0.1:1", "migrate+redis://"),
        ("migrate+redis://127.0.0.1:1?phase=coordinated", "target="),
        (
            "migrate+redis://127.0.0.1:1?phase=coordinated&target=redis://h",
            "not etcd",
        ),
        (
            "migrate+redis://127.0.0.1:1?phase=dual&target=etcd://127.0.0.1:1",
            "phase=coordinated",
        ),
        ("no url", "URL"),
    ] {
        let (code, said) = said(run(url, &["status"]));
        assert!(code == 2 && said.contains(says), "{url}: {code}: {said}");
    }
}

#[test]
fn a_store_that_is_down_is_named() {
    // Nobody listens there any more.
    let port = |listener: TcpListener| listener.local_addr().unwrap().port();
    let port = port(TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!(
        "migrate+redis://127.0.0.1:{port}?phase=coordinated&target=etcd://127.0.0.1:{port}/prod?connect_timeout=1s"
    );
    let (code, said) = said(run(&url, &["status"]));
    assert!(
        code == 1 && said.contains("etcd") && said.contains("unavailable"),
        "{said}"
    );
}
