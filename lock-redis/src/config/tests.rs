use super::*;
use lock_core::TlsPem;

#[test]
fn settings_out_of_range_say_so() {
    let new = RedisLockBuilder::new;
    assert!(new().check().is_ok());
    for (builder, hint) in [
        (new().with_ttl(Duration::ZERO), "TTL"),
        (new().with_namespace("a\u{1f}"), "namespace"),
        (
            new().with_connect_timeout(Duration::ZERO),
            "connect timeout",
        ),
        (new().with_request_timeout(Duration::MAX), "request timeout"),
        (new().with_poll_interval(Duration::ZERO), "poll interval"),
        (
            new().with_counter_ttl(Duration::from_millis(999)),
            "1 s and 365 days",
        ),
        (new().with_counter_ttl(Duration::MAX), "counter_ttl"),
        (
            new().with_max_clock_offset(Duration::from_secs(3601)),
            "max_clock_offset",
        ),
        (
            new().with_max_clock_offset(Duration::from_secs(30)),
            "at least 30.1s",
        ),
        (
            new()
                .with_cluster([("h", 1)])
                .with_ttl(Duration::from_millis(500)),
            "max_clock_offset of 500ms",
        ),
        (new().with_sentinel_credentials("", "x"), "no sentinels"),
        (new().with_replicas(0, Duration::from_secs(1)), "1 to 1000"),
        (new().with_replicas(1, Duration::ZERO), "1 ms and 1 h"),
        (
            new()
                .with_cluster([("h", 1)])
                .with_replicas(1, Duration::from_secs(1)),
            "cluster",
        ),
    ] {
        let error = builder.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[test]
fn guards_make_allowance_for_clocks_where_another_server_may_take_over() {
    let new = RedisLockBuilder::new;
    let second = Duration::from_secs(1);
    let allowance = |builder: RedisLockBuilder| second - builder.validity().of(second);
    assert_eq!(allowance(new()), Duration::ZERO);
    for builder in [
        new().with_sentinels([("h", 1)], "s"),
        new().with_cluster([("h", 1)]),
        new().with_replicas(1, second),
    ] {
        assert_eq!(allowance(builder.clone()), DEFAULT_OFFSET);
        assert_eq!(
            allowance(builder.with_max_clock_offset(Duration::ZERO)),
            Duration::ZERO
        );
    }
    assert_eq!(
        allowance(new().with_max_clock_offset(Duration::from_millis(7))),
        Duration::from_millis(7)
    );
}

type Setter = fn(RedisLockBuilder) -> RedisLockBuilder;

/// All but those that replace each other.
const SETTERS: [Setter; 15] = [
    |builder| builder.with_sentinels([("h", 1)], "service"),
    |builder| builder.with_sentinel_credentials("watcher", "s4cret"),
    |builder| builder.with_database(7),
    |builder| builder.with_credentials("app", "s3cret"),
    |builder| builder.with_tls(TlsPem::new().with_ca("authority")),
    |builder| builder.with_namespace("namespace"),
    |builder| builder.with_ttl(Duration::from_secs(11)),
    |builder| builder.with_connect_timeout(Duration::from_secs(12)),
    |builder| builder.with_request_timeout(Duration::from_secs(13)),
    |builder| builder.with_poll_interval(Duration::from_secs(14)),
    |builder| builder.with_replicas(15, Duration::from_secs(16)),
    |builder| builder.with_max_clock_offset(Duration::from_secs(17)),
    |builder| builder.with_counter_ttl(Duration::from_secs(18)),
    |builder| builder.with_background_thread(true),
    |builder| builder.with_release_at_exit(false),
];

#[test]
fn setters_mean_the_same_in_every_order() {
    let built = |order: &[usize]| {
        format!(
            "{:?}",
            order
                .iter()
                .fold(RedisLockBuilder::new(), |builder, at| SETTERS[*at](builder))
        )
    };
    let all: Vec<_> = (0..SETTERS.len()).collect();
    for left_out in &all {
        let others: Vec<_> = all.iter().copied().filter(|at| at != left_out).collect();
        assert_ne!(
            built(&others),
            built(&all),
            "number {left_out} has no effect"
        );
    }
    for first in &all {
        for last in all.iter().filter(|last| *last != first) {
            let between = all.iter().filter(|at| *at != first && *at != last);
            let order: Vec<_> = [first]
                .into_iter()
                .chain(between)
                .chain([last])
                .copied()
                .collect();
            assert_eq!(
                built(&order),
                built(&all),
                "number {first} before number {last}"
            );
        }
    }
}

fn info_of(builder: &RedisLockBuilder) -> Result<ConnectionInfo, LockError> {
    let Topology::Server(address) = &builder.topology else {
        panic!("not one server")
    };
    builder.info(address)
}

#[test]
fn credentials_and_address_reach_the_client_and_no_output() {
    let builder = RedisLockBuilder::new()
        .with_address("[::1]", 1)
        .with_credentials("app", "s3cret")
        .with_database(7);
    let info = info_of(&builder).unwrap();
    assert_eq!(info.addr(), &ConnectionAddr::Tcp("::1".into(), 1));
    let settings = info.redis_settings();
    assert_eq!(
        (settings.username(), settings.password(), settings.db()),
        (Some("app"), Some("s3cret"), 7)
    );
    assert!(!format!("{builder:?}").contains("s3cret"));
}

#[test]
fn an_empty_user_is_the_default_one() {
    let builder = RedisLockBuilder::new().with_credentials("", "s3cret");
    let info = info_of(&builder).unwrap();
    let settings = info.redis_settings();
    assert_eq!(
        (settings.username(), settings.password()),
        (None, Some("s3cret"))
    );
}

#[test]
fn a_namespace_is_separated_from_names() {
    for (namespace, prefix) in [
        ("", ""),
        ("prod", "prod:"),
        ("prod:", "prod:"),
        ("prod/eu-", "prod/eu-"),
        ("größe", "größe:"),
    ] {
        let builder = RedisLockBuilder::new().with_namespace(namespace);
        assert_eq!(builder.prefix(), prefix);
    }
}

#[test]
fn a_broken_certificate_is_a_bad_setting() {
    // Fails if another test has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let files = TlsPem::new().with_identity("-----BEGIN CERTIFICATE-----", "s3cret");
    let error = info_of(&RedisLockBuilder::new().with_tls(files)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}
