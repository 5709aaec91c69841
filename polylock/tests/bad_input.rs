//! A caller whose URL, or the server behind it, cannot be used sees an error that says what to do,
//! in time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use polylock::{ErrorKind, LockError, Operation};

async fn refused(url: &str) -> LockError {
    let error = polylock::connect(url).await.expect_err(url);
    assert_eq!(error.operation(), Some(Operation::Connect), "{url}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("s3cret"), "a secret in {shown}");
    assert!(!error.to_string().contains('\n'), "{shown}");
    error
}

#[tokio::test]
async fn an_unknown_scheme_lists_all_that_there_are() {
    for url in [
        "zookeeper://h:2181",
        "http://127.0.0.1:2379",
        "redis+tls://u:s3cret@h",
    ] {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::UnknownScheme, "{error}");
        for scheme in ["mem://", "etcd://", "redis://", "rediss://"] {
            assert!(error.to_string().contains(scheme), "{error}");
        }
    }
}

#[tokio::test]
async fn a_malformed_url_shows_the_right_shape() {
    for url in [
        "",
        "mem",
        "mem:",
        "://",
        "etcd//h:1",
        "1mem://",
        "etcd://u:s3cret@h:port",
        "etcd://u:s3cret@h:1,,h:2",
        "redis://:s3cret@h:99999",
    ] {
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}: {error}");
        assert!(
            error.to_string().contains("write") || error.to_string().contains("host:port"),
            "{url}: {error}"
        );
    }
}

#[cfg(feature = "mem")]
mod mem {
    use super::*;
    use polylock::{AcquireOptions, DistributedLockExt, LockName};
    use std::time::Duration;

    #[tokio::test]
    async fn a_misspelt_parameter_is_not_ignored() {
        let error = refused("mem://?tll=5s").await;
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
        assert!(
            error.to_string().contains("`tll`") && error.to_string().contains("ttl"),
            "{error}"
        );
        assert_eq!(
            refused("mem://?ttl=soon").await.kind(),
            ErrorKind::InvalidUrl
        );
        assert_eq!(refused("mem://?ttl=0s").await.kind(), ErrorKind::InvalidUrl);
    }

    #[tokio::test]
    async fn bad_names_and_options_leave_nothing_held() {
        let locks = polylock::connect("mem://").await.unwrap();
        for name in [
            String::new(),
            "x".repeat(LockName::MAX_LEN + 1),
            "a\0b".to_owned(),
        ] {
            assert_eq!(
                locks.acquire(name).await.unwrap_err().kind(),
                ErrorKind::InvalidName
            );
        }
        let name: LockName = "n".parse().unwrap();
        let new = AcquireOptions::new;
        for options in [
            new().with_ttl(Duration::ZERO),
            new().with_timeout(Duration::ZERO),
            new().with_max_hold(Duration::ZERO),
        ] {
            assert_eq!(
                locks
                    .acquire_with(&name, options.clone())
                    .await
                    .unwrap_err()
                    .kind(),
                ErrorKind::InvalidOptions
            );
            assert_eq!(locks.inspect(&name).await.unwrap(), None, "{options:?}");
        }
    }
}

#[cfg(not(feature = "mem"))]
#[tokio::test]
async fn mem_names_its_feature() {
    names_feature("mem://", "mem").await;
}

#[cfg(not(feature = "etcd"))]
#[tokio::test]
async fn etcd_names_its_feature() {
    names_feature("etcd://u:s3cret@127.0.0.1:2379", "etcd").await;
    names_feature("etcds://127.0.0.1:2379", "etcd").await;
}

#[cfg(not(feature = "redis"))]
#[tokio::test]
async fn redis_names_its_feature() {
    names_feature("redis://:s3cret@127.0.0.1:6379", "redis").await;
    names_feature("rediss://127.0.0.1:6379", "redis").await;
}

#[cfg(not(all(feature = "mem", feature = "etcd", feature = "redis")))]
async fn names_feature(url: &str, feature: &str) {
    let error = refused(url).await;
    assert_eq!(error.kind(), ErrorKind::UnknownScheme);
    assert!(
        error
            .to_string()
            .contains(&format!("features = [\"{feature}\"]")),
        "{error}"
    );
}

#[cfg(any(feature = "etcd", feature = "redis"))]
mod servers {
    use super::*;
    use std::{
        net::TcpListener,
        time::{Duration, Instant},
    };

    const CONNECT_TIMEOUT: &str = "connect_timeout=1s";

    /// Well above the connect timeout, for a loaded machine; well below the time for which TCP
    /// itself would try.
    const SOON: Duration = Duration::from_secs(10);

    fn schemes() -> impl Iterator<Item = &'static str> {
        ["etcd", "redis"]
            .into_iter()
            .filter(|scheme| polylock::registry().schemes().any(|known| known == *scheme))
    }

    async fn unavailable_soon(url: &str) {
        let start = Instant::now();
        let error = refused(url).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(start.elapsed() < SOON, "{:?} for {error}", start.elapsed());
    }

    #[tokio::test]
    async fn nobody_listens() {
        for scheme in schemes() {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            unavailable_soon(&format!("{scheme}://127.0.0.1:{port}?{CONNECT_TIMEOUT}")).await;
        }
    }

    #[tokio::test]
    async fn somebody_listens_and_never_answers() {
        for scheme in schemes() {
            let silent = TcpListener::bind("127.0.0.1:0").unwrap();
            unavailable_soon(&format!(
                "{scheme}://{}?{CONNECT_TIMEOUT}",
                silent.local_addr().unwrap()
            ))
            .await;
        }
    }

    #[tokio::test]
    async fn the_host_has_no_address() {
        for scheme in schemes() {
            unavailable_soon(&format!(
                "{scheme}://no-such-host.invalid:1?{CONNECT_TIMEOUT}"
            ))
            .await;
        }
    }

    #[tokio::test]
    async fn settings_that_cannot_be_are_refused_without_a_server() {
        for scheme in schemes() {
            for rest in [
                "",
                "127.0.0.1:1?ttl=0s",
                "127.0.0.1:1?connect_timeout=x",
                "127.0.0.1:1?cert=Cargo.toml",
                "127.0.0.1:1?no=1",
            ] {
                let error = refused(&format!("{scheme}://{rest}")).await;
                assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidUrl,
                    "{scheme}://{rest}: {error}"
                );
            }
        }
    }
}

/// The prelude of a caller who uses nothing but the facade.
#[cfg(feature = "mem")]
#[tokio::test]
async fn an_application_adds_its_own_backend() {
    use polylock::DistributedLockExt;

    #[derive(Debug)]
    struct Mine;

    #[async_trait::async_trait]
    impl polylock::Connector for Mine {
        fn schemes(&self) -> &'static [&'static str] {
            &["mine"]
        }

        fn capabilities(
            &self,
            _url: &polylock::LockUrl,
        ) -> Result<polylock::Capabilities, LockError> {
            Ok(polylock::Capabilities::new(
                "mine",
                polylock::Consistency::ProcessLocal,
            ))
        }

        async fn connect(
            &self,
            _url: &polylock::LockUrl,
        ) -> Result<std::sync::Arc<dyn polylock::DistributedLock>, LockError> {
            Ok(std::sync::Arc::new(polylock::mem::MemLock::new()))
        }
    }

    let registry = polylock::registry().with(Mine);
    let guard = registry
        .connect("mine://anything")
        .await
        .unwrap()
        .acquire("n")
        .await
        .unwrap();
    guard.release().await.unwrap();
}
