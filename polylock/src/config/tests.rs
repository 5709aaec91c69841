use super::*;
use serde_json::{Value, from_value, json, to_value};

fn read(value: Value) -> Result<LockConfig, serde_json::Error> {
    from_value(value)
}

fn url(value: Value) -> Result<LockUrl, LockError> {
    read(value).unwrap().to_url()
}

#[test]
fn parts_and_a_url_amount_to_the_same() {
    let parts = url(json!({
        "scheme": "redis+sentinel", "hosts": "s1:26379,s2", "path": "main/0", "username": "app",
        "password": "p@ss/w?rd&", "namespace": "prod", "ttl": "1m 30s", "background_thread": true,
        "parameters": "replicas=1&replica_timeout=2s"
    }))
    .unwrap();
    let whole = url(json!({
        "url": "redis+sentinel://app:p%40ss%2Fw%3Frd%26@s1:26379,s2/main/0?namespace=prod&ttl=90s\
                &background_thread=true&replicas=1&replica_timeout=2s"
    }))
    .unwrap();
    assert_eq!(parts.endpoints(), whole.endpoints());
    assert_eq!(
        parts.credentials("LOCK_TEST"),
        whole.credentials("LOCK_TEST")
    );
    assert_eq!(parts.path(), whole.path());
    assert_eq!(
        parts.duration("ttl").unwrap(),
        whole.duration("ttl").unwrap()
    );
    for parameter in [
        "namespace",
        "background_thread",
        "replicas",
        "replica_timeout",
    ] {
        assert_eq!(parts.param(parameter), whole.param(parameter));
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    for (value, hint) in [
        (json!({ "urll": "mem://" }), "did you mean `url`?"),
        (
            json!({ "pasword_file": "x" }),
            "did you mean `password_file`?",
        ),
        (
            json!({ "layers": { "traces": true } }),
            "did you mean `trace`?",
        ),
        (json!({ "zookeeper": 1 }), "known are: url, scheme"),
    ] {
        let error = read(value).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn secrets_are_read_and_never_written() {
    for value in [
        json!({ "url": "redis://app:s3cret@h/0" }),
        json!({ "url": "redis://app:a@b/s3cret@h/0" }),
        json!({ "url": "redis://:s3cret@h" }),
        json!({ "url": "redis://app:12?s3cret@h" }),
        json!({ "scheme": "redis", "hosts": "h", "password": "s3cret" }),
        json!({ "url": "redis+sentinel://h/main?ttl=1s&sentinel_password=s3cret" }),
        json!({ "url": "redis+sentinel://h/main", "parameters": "sentinel_password=a&s3cret=" }),
    ] {
        let config = read(value).unwrap();
        let written = to_value(&config).unwrap();
        assert!(!written.to_string().contains("s3cret"), "{written}");
        assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        assert!(written.to_string().contains("redis"), "{written}");
    }
    let config = read(json!({ "url": "redis://app:s3cret@h/0?ttl=1s", "ttl": null })).unwrap();
    assert_eq!(to_value(&config).unwrap()["url"], "redis://app@h/0?ttl=1s");
}

#[test]
fn a_password_comes_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let config = json!({ "url": "etcd://h/prod", "username": "app", "password_file": file.path() });
    let (user, password) = url(config.clone()).unwrap().credentials("LOCK_TEST");
    assert_eq!(user.as_deref(), Some("app"));
    assert_eq!(password, Some(Secret::new("s3cret")));
    std::fs::write(file.path(), "\n").unwrap();
    assert!(url(config).unwrap_err().to_string().contains("empty"));
}

#[test]
fn what_does_not_go_together_says_what_to_do() {
    for (value, hint) in [
        (json!({}), "set `url`"),
        (json!({ "url": "mem://", "scheme": "redis" }), "leave out"),
        (json!({ "url": "redis://a:b@h", "username": "c" }), "once"),
        (json!({ "scheme": "redis", "hosts": "a@h" }), "`username`"),
        (
            json!({ "url": "redis://h", "password": "a", "password_env": "B" }),
            "twice",
        ),
        (
            json!({ "url": "redis://h", "password_env": "LOCK_TEST_UNSET" }),
            "LOCK_TEST_UNSET",
        ),
        (
            json!({ "url": "redis://h", "password_file": "/no/such" }),
            "/no/such",
        ),
    ] {
        let error = url(value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[test]
fn changes_name_what_needs_a_new_connection() {
    let old = LockConfig::of_url("redis://h");
    assert!(old.changes(&old).is_empty());
    let mut new = old.clone();
    new.layers.metrics = true;
    let changes = old.changes(&new);
    assert!(!changes.need_reconnect() && changes.layers == ["layers"]);
    new.ttl = Some(Duration::from_secs(9));
    new.password = Some(Secret::new("x"));
    assert_eq!(old.changes(&new).reconnect, ["password", "ttl"]);
}

#[test]
fn what_is_written_is_read_again() {
    let mut config = LockConfig::of_url("redis://h?ttl=5s");
    config.connect_timeout = Some(Duration::from_millis(1500));
    config.layers.wait = Some(Duration::from_secs(2));
    let written = to_value(&config).unwrap();
    assert_eq!(read(written).unwrap(), config);
}

#[cfg(all(feature = "mem", feature = "layers"))]
#[tokio::test(start_paused = true)]
async fn defaults_of_the_configuration_hold() {
    use lock_core::DistributedLockExt;

    let config = json!({ "url": "mem://", "layers": { "wait": "2s", "local_queue": true } });
    let locks = read(config).unwrap().connect().await.unwrap();
    let _guard = locks.acquire("a").await.unwrap();
    let error = locks.acquire("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let none = json!({ "url": "mem://", "layers": { "concurrency_limit": 0 } });
    let error = read(none).unwrap().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}
