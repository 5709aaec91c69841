//! `lockctl doctor` and `lockctl bench` on servers with something wrong, and on good ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::process::Command;

use etcd_client::{Client, ConnectOptions, Permission};
use lock_conformance::servers::{self, EtcdOptions, RedisOptions};
use redis::cmd;
use serde_json::Value;

fn lockctl(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockctl"))
        .args(arguments)
        .arg("--json")
        .env_remove("LOCK_URL")
        .output()
        .unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), value)
}

/// The findings of a level about something.
fn findings(report: &Value, level: &str, about: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let matching = findings
        .filter(|it| it["level"] == level && it["check"].as_str().unwrap().starts_with(about));
    matching
        .map(|it| it["message"].as_str().unwrap().to_owned())
        .collect()
}

fn has_one(report: &Value, level: &str, about: &str, says: &str) {
    let found = findings(report, level, about);
    assert!(
        found.iter().any(|it| it.contains(says)),
        "{level} {about}: {report:#}"
    );
}

#[test]
fn a_good_redis_has_no_failure_and_is_measured() {
    let Ok(server) = servers::redis(RedisOptions::new().own()) else {
        return;
    };
    let (code, report) = lockctl(&["doctor", server.url()]);
    assert_eq!(code, 0, "{report:#}");
    for about in [
        "reach",
        "connect",
        "acquire",
        "renew",
        "hand-over",
        "clock",
        "permissions",
    ] {
        has_one(&report, "good", about, "");
    }
    has_one(&report, "good", "latency", "median");
    has_one(&report, "note", "encryption", "rediss");
    assert_eq!(report["declared"]["consistency"], "best-effort");
    let (code, figures) = lockctl(&["bench", server.url(), "--duration", "200ms"]);
    assert_eq!(code, 0);
    for figure in figures.as_array().unwrap() {
        assert!(figure["count"].as_u64().unwrap() > 0);
        // A round trip takes more than ten microseconds, and less than all of them.
        let [median, worst] = ["p50_ms", "max_ms"].map(|it| figure[it].as_f64().unwrap());
        assert!(median > 0.01 && worst < 10_000.0, "{figure}");
    }
}

#[test]
fn a_redis_that_evicts_is_a_failure() {
    let evicting = RedisOptions::new()
        .own()
        .with_argument("--maxmemory")
        .with_argument("100mb")
        .with_argument("--maxmemory-policy")
        .with_argument("allkeys-lru");
    let Ok(server) = servers::redis(evicting) else {
        return;
    };
    let (code, report) = lockctl(&["doctor", server.url()]);
    assert_eq!(code, 1);
    has_one(&report, "failure", "settings", "allkeys-lru");
}

#[test]
fn each_permission_that_is_missing_in_redis_is_named() {
    let Ok(server) = servers::redis(RedisOptions::new().own()) else {
        return;
    };
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let rules = [
        "on",
        ">pw",
        "~app:*",
        "&*",
        "+@all",
        "-client|tracking",
        "-zpopmin",
    ];
    let () = cmd("ACL")
        .arg("SETUSER")
        .arg("app")
        .arg(&rules)
        .query(&mut connection)
        .unwrap();
    let url = |namespace: &str| {
        let url = server.url().replace("redis://", "redis://app:pw@");
        format!("{url}?namespace={namespace}")
    };
    let (code, report) = lockctl(&["doctor", &url("app")]);
    assert_eq!(code, 1);
    let missing = &findings(&report, "failure", "permissions")[0];
    assert!(
        missing.contains("missing: +zpopmin, +client|tracking;"),
        "{missing}"
    );
    let (_, report) = lockctl(&["doctor", &url("other")]);
    has_one(&report, "failure", "permissions", "the keys ~other:*");
    has_one(&report, "failure", "acquire", "missing permission");
    let wrong = server.url().replace("redis://", "redis://app:s3cret@");
    let (code, report) = lockctl(&["doctor", &wrong]);
    assert_eq!(code, 1);
    has_one(&report, "failure", "connect", "permission denied");
    assert!(!report.to_string().contains("s3cret"));
}

#[test]
fn an_etcd_with_a_tiny_quota_that_is_never_compacted_is_warned_of() {
    let tiny = EtcdOptions::new()
        .own()
        .with_argument("--quota-backend-bytes=33554432");
    let Ok(server) = servers::etcd(tiny) else {
        return;
    };
    let (code, report) = lockctl(&["doctor", server.url()]);
    assert_eq!(code, 0, "{report:#}");
    has_one(&report, "warning", "quota", "32 MiB");
    has_one(
        &report,
        "warning",
        "compaction",
        "--auto-compaction-retention",
    );
    has_one(&report, "good", "may write", "");
    let tended = EtcdOptions::new()
        .own()
        .with_argument("--auto-compaction-retention=1");
    let Ok(server) = servers::etcd(tended) else {
        return;
    };
    let (_, report) = lockctl(&["doctor", server.url()]);
    has_one(&report, "good", "quota", "2048 MiB");
    has_one(&report, "good", "compaction", "automatic");
}

#[tokio::test]
async fn the_permission_that_is_missing_in_etcd_is_named() {
    let Ok(server) = servers::etcd(EtcdOptions::new().own().with_root_password("root-pw")) else {
        return;
    };
    let options = ConnectOptions::new().with_user("root", "root-pw");
    let client = Client::connect([server.endpoint()], Some(options)).await;
    let mut auth = client.unwrap().auth_client();
    auth.role_add("reader").await.unwrap();
    let permission = Permission::read("app/").with_prefix();
    auth.role_grant_permission("reader", permission)
        .await
        .unwrap();
    auth.user_add("app", "pw", None).await.unwrap();
    auth.user_grant_role("app", "reader").await.unwrap();
    let url = format!("etcd://app:pw@{}/app", server.endpoint());
    let (code, report) = lockctl(&["doctor", &url]);
    assert_eq!(code, 1);
    has_one(&report, "good", "may read", "app/");
    has_one(&report, "failure", "may write", "missing permission: write");
    has_one(&report, "failure", "acquire", "missing permission");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let (code, report) = lockctl(&["doctor", "redis://127.0.0.1:1"]);
    assert_eq!(code, 1);
    has_one(&report, "failure", "reach 127.0.0.1:1", "refused");
}
