//! TLS, client certificates, users and roles, on servers that really demand them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use lock_conformance::servers::{self, Certificates, EtcdOptions, Server, Skip};
use lock_core::{DistributedLock, DistributedLockExt, ErrorKind, LockError, Registry, TlsPem};
use lock_etcd::{EtcdConnector, EtcdLock, EtcdLockBuilder};
use tokio::process::Command;

mod common;
use common::{own, promptly, works};

const PASSWORD: &str = "pw-s3cret-7";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time that a loaded machine adds.
const MARGIN: Duration = Duration::from_secs(3);

/// A server with authentication, TLS, and a demand for client certificates, in turn.
fn server(certificates: &Certificates, mutual: bool, password: bool) -> Result<Server, Skip> {
    let options = EtcdOptions::new().own();
    let options = if mutual {
        options.with_mutual_tls(certificates)
    } else {
        options.with_tls(certificates)
    };
    servers::etcd(if password {
        options.with_root_password(PASSWORD)
    } else {
        options
    })
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn files(certificates: &Certificates, with_identity: bool) -> TlsPem {
    let pem = TlsPem::new().with_ca(read(&certificates.ca()));
    match with_identity {
        true => pem.with_identity(
            read(&certificates.client_cert()),
            read(&certificates.client_key()),
        ),
        false => pem,
    }
}

fn builder(server: &Server) -> EtcdLockBuilder {
    EtcdLock::builder([server.endpoint()])
}

#[tokio::test]
async fn by_builder() {
    let certificates = Certificates::new().unwrap();
    let tls = or_skip!(server(&certificates, false, false));
    works(
        &builder(&tls)
            .with_tls(files(&certificates, false))
            .connect()
            .await
            .unwrap(),
    )
    .await;
    // Certificate, user and password together: the user counts.
    let all = or_skip!(server(&certificates, true, true));
    let locks = builder(&all)
        .with_tls(files(&certificates, true))
        .with_credentials("root", PASSWORD)
        .connect()
        .await
        .unwrap();
    works(&locks).await;
    assert!(!format!("{locks:?}").contains(PASSWORD));
}

#[tokio::test]
async fn by_url() {
    let certificates = Certificates::new().unwrap();
    let tls = or_skip!(server(&certificates, false, false));
    let all = or_skip!(server(&certificates, true, true));
    let ca = certificates.ca();
    let cert = certificates.client_cert();
    let key = certificates.client_key();
    let ca = ca.display();
    let cert = cert.display();
    let key = key.display();
    let registry = Registry::new().with(EtcdConnector);
    for url in [
        format!("etcds://{}/namespace?ca={ca}&ttl=1m", tls.endpoint()),
        format!(
            "etcds://root:{PASSWORD}@{}?ca={ca}&cert={cert}&key={key}",
            all.endpoint()
        ),
    ] {
        let locks = registry.connect(&url).await.unwrap();
        locks.acquire("a").await.unwrap().release().await.unwrap();
        locks.shutdown().await.unwrap();
    }
    // The system's authorities did not sign the server's certificate.
    let url = format!("etcds://{}?connect_timeout=1s", tls.endpoint());
    assert_eq!(
        registry.connect(&url).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

/// In the environment of the child below.
const URL: &str = "LOCK_ETCD_TEST_CHILD_URL";

#[tokio::test]
async fn by_environment() {
    if let Ok(url) = env::var(URL) {
        let locks = Registry::new()
            .with(EtcdConnector)
            .connect(&url)
            .await
            .unwrap();
        return locks.acquire("a").await.unwrap().release().await.unwrap();
    }
    let certificates = Certificates::new().unwrap();
    let server = or_skip!(server(&certificates, true, true));
    let child = |password: &str| {
        // An environment is the whole process's: this test again, in one of its own.
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["by_environment", "--exact"]).env(
            URL,
            format!("etcds://{}?connect_timeout=3s", server.endpoint()),
        );
        child
            .env("LOCK_ETCD_USERNAME", "root")
            .env("LOCK_ETCD_PASSWORD", password);
        child
            .env("LOCK_ETCD_CA", certificates.ca())
            .env("LOCK_ETCD_CERT", certificates.client_cert());
        child.env("LOCK_ETCD_KEY", certificates.client_key());
        child.stdin(Stdio::null()).kill_on_drop(true).output()
    };
    let output = promptly("the child", child(PASSWORD)).await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let output = promptly("the child", child("pw-wr0ng")).await.unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        !output.status.success() && said.contains("PermissionDenied") && !said.contains("pw-wr0ng"),
        "{said}"
    );
}

#[tokio::test]
async fn tls_that_does_not_fit_is_a_clear_error_in_time() {
    let ours = Certificates::new().unwrap();
    let theirs = Certificates::new().unwrap();
    let tls = or_skip!(server(&ours, false, false));
    let mutual = or_skip!(server(&ours, true, false));
    let plain = or_skip!(own());
    for (what, builder) in [
        (
            "another authority",
            builder(&tls).with_tls(files(&theirs, false)),
        ),
        (
            "no client certificate",
            builder(&mutual).with_tls(files(&ours, false)),
        ),
        ("another authority's client certificate", {
            let mut pem = files(&theirs, true);
            pem.ca = files(&ours, false).ca;
            builder(&mutual).with_tls(pem)
        }),
        (
            "a plain server",
            builder(&plain).with_tls(files(&ours, false)),
        ),
        ("a server with TLS", builder(&tls)),
    ] {
        let error = fails_in_time(builder).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
        assert!(
            error.to_string().contains("TLS") && error.to_string().contains("127.0.0.1:"),
            "{what}: {error}"
        );
        assert!(error.source().is_some(), "{what}: {error:?}");
    }
    let error = fails_in_time(builder(&tls).with_tls(files(&theirs, false))).await;
    assert!(chain(&error).contains("certificate"), "{}", chain(&error));
    works(
        &builder(&mutual)
            .with_tls(files(&ours, true))
            .connect()
            .await
            .unwrap(),
    )
    .await;
}

#[tokio::test]
async fn credentials_that_do_not_fit_are_refused_in_time() {
    let server = or_skip!(servers::etcd(
        EtcdOptions::new().own().with_root_password(PASSWORD)
    ));
    let open = or_skip!(own());
    for (what, builder, says) in [
        (
            "a wrong password",
            builder(&server).with_credentials("root", "pw-wr0ng"),
            "check user and password",
        ),
        (
            "an unknown user",
            builder(&server).with_credentials("nobody", "pw-wr0ng"),
            "check user and password",
        ),
        ("no user", builder(&server), "user"),
        (
            "a server without authentication",
            builder(&open).with_credentials("root", "pw-wr0ng"),
            "leave the user out",
        ),
    ] {
        assert!(!format!("{builder:?}").contains("pw-wr0ng"));
        let error = fails_in_time(builder).await;
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
        let text = chain(&error);
        assert!(
            text.contains(says) && !text.contains("pw-wr0ng"),
            "{what}: {text}"
        );
    }
}

#[tokio::test]
async fn files_that_hold_no_certificate_are_refused() {
    let server = or_skip!(own());
    for tls in [
        TlsPem::new().with_ca("no certificate"),
        TlsPem::new().with_identity("no certificate", "no-k3y"),
    ] {
        let error = fails_in_time(builder(&server).with_tls(tls)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(!chain(&error).contains("no-k3y"), "{}", chain(&error));
    }
}

async fn fails_in_time(builder: EtcdLockBuilder) -> LockError {
    let start = Instant::now();
    let error = builder
        .with_connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .unwrap_err();
    assert!(
        start.elapsed() < CONNECT_TIMEOUT + MARGIN,
        "{:?}: {error}",
        start.elapsed()
    );
    error
}

/// All that an error tells.
fn chain(error: &LockError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
