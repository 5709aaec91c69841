use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> LockUrl {
    text.parse().unwrap()
}

#[test]
fn endpoints_user_path_and_params() {
    let url = parse("etcd://us%40er:p%2Cw%23@h1:1,[::1]:2,h3/a%20b/c?ttl=1m&ca=/x");
    let authorities: Vec<_> = url
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.authority(2379))
        .collect();
    assert_eq!(authorities, ["h1:1", "[::1]:2", "h3:2379"]);
    let (username, password) = url.credentials("LOCK_TEST_UNSET");
    assert_eq!(
        (username.as_deref(), password.as_ref().map(Secret::expose)),
        (Some("us@er"), Some("p,w#"))
    );
    assert_eq!((url.path(), url.param("ca")), ("a b/c", Some("/x")));
    assert_eq!(url.duration("ttl").unwrap(), Some(Duration::from_secs(60)));
    assert!(parse("mem://").endpoints().is_empty());
}

#[test]
fn what_cannot_be_used_says_why_without_the_password() {
    for text in [
        "",
        "etcd",
        "etcd:h",
        "://h",
        "etcd://h:port",
        "etcd://a:s3cret@h:99999",
        "etcd://a:s3cret@h,,h",
        "etcd://u:s3cret#x@h",
        "1x://h",
        "etcd://u:s3cret@h1:1,h2:x",
        "etcd://u:12,s3cret:x/y@h",
        "redis://app:12?s3cret@h",
        "redis://app:12/s3cret@h",
        "redis://app@x:12?s3cret@h",
    ] {
        let error = text.parse::<LockUrl>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{text}");
        assert!(
            !format!("{error} {error:?}").contains("s3cret"),
            "{error:?}"
        );
    }
}

#[test]
fn a_rewritten_url_keeps_the_rest() {
    let url = parse("migrate+redis://u:s3cret@h:1/2?phase=dual&ttl=5s");
    let url = url.rewritten("redis", &["phase", "target"]);
    assert_eq!(url, parse("redis://u:s3cret@h:1/2?ttl=5s"));
}

#[test]
fn a_plus_is_a_plus() {
    let url = parse("redis://u+:p+w@h/a+b?sentinel_password=a+b%20c&ca=/x+y");
    let (username, password) = url.credentials("LOCK_TEST_UNSET");
    assert_eq!(
        (username.as_deref(), password.as_ref().map(Secret::expose)),
        (Some("u+"), Some("p+w"))
    );
    assert_eq!(
        (url.path(), url.param("sentinel_password"), url.param("ca")),
        ("a+b", Some("a+b c"), Some("/x+y"))
    );
}

proptest! {
    /// Reserved characters that are not encoded put parts of a secret anywhere.
    #[test]
    fn no_part_of_a_secret_is_shown(
        secret in r"[:/?#@,&=+%!; \\\[\]]{0,3}s3cret[0-9:/?#@,&=+%!; \\\[\]]{0,4}s3cret",
        before in "[a-z]{0,3}(:[0-9]{0,5})?[:/?#@,&=]{0,2}",
        place in 0..4,
        scheme in prop::sample::select(vec!["redis", "etcd", "http", "mem"]),
    ) {
        let text = match place {
            0 => format!("{scheme}://{before}{secret}@h1:1,h2/0?ttl=5s"),
            1 => format!("{scheme}://{before}:{secret}@h1"),
            2 => format!("{scheme}://h1/0?sentinel_password={before}{secret}"),
            _ => format!("{scheme}://{before}{secret}@"),
        };
        let shown = match text.parse::<LockUrl>() {
            Err(error) => vec![error],
            Ok(url) => {
                prop_assert!(!format!("{url:?}").contains("s3cret") || url.username.is_some() && url.password.is_some(), "{url:?}");
                let checked = [url.check_params(&["ttl", "sentinel_password"]), url.duration("ttl").map(drop)];
                checked.into_iter().filter_map(Result::err).collect()
            }
        };
        for error in &shown {
            let mut next: Option<&dyn std::error::Error> = Some(error);
            while let Some(cause) = next {
                prop_assert!(!format!("{cause} {cause:?}").contains("s3cret"), "{text}: {cause:?}");
                next = cause.source();
            }
        }
    }
}

#[test]
fn unknown_and_repeated_parameters_are_refused() {
    let known = ["ttl", "ca"];
    assert!(parse("etcd://h?ttl=1s").check_params(&known).is_ok());
    let error = parse("etcd://h?tll=1s").check_params(&known).unwrap_err();
    assert!(
        error.to_string().contains("`tll`") && error.to_string().contains("ttl, ca"),
        "{error}"
    );
    let error = parse("redis://h?namespace=x")
        .check_params(&["prefix"])
        .unwrap_err();
    assert!(error.to_string().contains("given as `prefix`"), "{error}");
    let error = parse("redis://h?password=a&s3cret")
        .check_params(&["password"])
        .unwrap_err();
    assert!(
        error.to_string().contains("%26") && !error.to_string().contains("s3cret"),
        "{error}"
    );
    assert!(
        parse("etcd://h?ttl=1s&ttl=2s")
            .check_params(&known)
            .is_err()
    );
    assert!(parse("etcd://h?ttl=soon").duration("ttl").is_err());
}

#[test]
fn certificate_and_key_belong_together() {
    let dir = env::temp_dir();
    let missing = format!("etcd://h?ca={}/no-such-file.pem", dir.display());
    let error = parse(&missing).tls_pem("LOCK_TEST_UNSET").unwrap_err();
    assert!(error.to_string().contains("no-such-file.pem"), "{error}");
    let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let error = parse(&format!("etcd://h?cert={this}"))
        .tls_pem("LOCK_TEST_UNSET")
        .unwrap_err();
    assert!(error.to_string().contains("key=FILE"), "{error}");
}
