//! The server harness, with real servers.
#![cfg(feature = "servers")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use lock_conformance::servers::{
    self, Certificates, EtcdOptions, RedisOptions, Server, Skip, tools,
};

const LIMIT: Duration = Duration::from_secs(20);
/// A frozen server never answers, so that a slow machine cannot make this too short.
const SILENCE: Duration = Duration::from_millis(300);

/// Unwraps the server, or ends the test where there is none to be had.
macro_rules! or_skip {
    ($attempt:expr) => {
        match $attempt {
            Ok(value) => value,
            Err(skip) => return note(&skip),
        }
    };
}

fn note(skip: &Skip) {
    eprintln!("{skip}");
}

#[test]
fn serves_on_a_port_of_its_own_and_vanishes_with_the_last_handle() {
    let server = or_skip!(servers::redis(RedisOptions::new().own()));
    let other = or_skip!(servers::redis(RedisOptions::new().own()));
    assert_ne!(server.endpoint(), other.endpoint());
    assert_eq!(server.url(), format!("redis://{}", server.endpoint()));
    assert_eq!(redis_says(&server, &["PING"]).unwrap(), "+PONG\r\n");
    let Some((pid, directory)) = server.pid().zip(server.directory()) else {
        return;
    };
    assert!(exists(pid) && directory.join("log").exists());
    drop(server.clone());
    assert!(exists(pid), "one of two handles is left");
    server.stop();
    assert!(!exists(pid) && !directory.exists());
    assert_eq!(redis_says(&other, &["PING"]).unwrap(), "+PONG\r\n");
}

#[tokio::test]
async fn redis_keeps_port_and_data_through_a_restart() {
    let server = or_skip!(servers::redis(RedisOptions::new().own()));
    assert_eq!(redis_says(&server, &["SET a 1"]).unwrap(), "+OK\r\n");
    let pid = server.pid();
    server.restart().await.unwrap();
    assert!(pid.is_none() || server.pid() != pid);
    assert_eq!(redis_says(&server, &["GET a"]).unwrap(), "$1\r\n1\r\n");
}

#[tokio::test]
async fn redis_without_persistence_is_empty_after_a_restart() {
    let server = or_skip!(servers::redis(RedisOptions::new().without_persistence()));
    assert_eq!(redis_says(&server, &["SET a 1"]).unwrap(), "+OK\r\n");
    server.restart().await.unwrap();
    assert_eq!(redis_says(&server, &["GET a"]).unwrap(), "$-1\r\n");
}

#[test]
fn redis_demands_its_password() {
    let server = or_skip!(servers::redis(RedisOptions::new().with_password("s3cret")));
    assert!(
        redis_says(&server, &["GET a"])
            .unwrap()
            .starts_with("-NOAUTH")
    );
    assert_eq!(
        redis_says(&server, &["AUTH s3cret", "SET a 1"]).unwrap(),
        "+OK\r\n"
    );
}

#[test]
fn a_frozen_server_is_silent_and_goes_on_when_thawed() {
    let server = or_skip!(servers::redis(RedisOptions::new().own()));
    server.freeze().unwrap();
    assert!(redis_says_within(SILENCE, &server, &["PING"]).is_err());
    server.thaw().unwrap();
    assert_eq!(redis_says(&server, &["PING"]).unwrap(), "+PONG\r\n");
}

#[tokio::test]
async fn a_frozen_server_can_be_killed_and_started() {
    let server = or_skip!(servers::redis(RedisOptions::new().own()));
    server.freeze().unwrap();
    server.kill().unwrap();
    assert_eq!(server.pid(), None);
    assert!(server.freeze().is_err() && server.thaw().is_err());
    assert!(redis_says(&server, &["PING"]).is_err());
    server.start().await.unwrap();
    assert_eq!(redis_says(&server, &["PING"]).unwrap(), "+PONG\r\n");
}

#[test]
fn a_frozen_server_vanishes_too() {
    let server = or_skip!(servers::etcd(EtcdOptions::new().own()));
    let pid_and_directory = server.pid().zip(server.directory());
    server.freeze().unwrap();
    server.stop();
    if let Some((pid, directory)) = pid_and_directory {
        assert!(!exists(pid) && !directory.exists());
    }
}

#[tokio::test]
async fn etcd_keeps_port_and_data_through_a_restart() {
    let server = or_skip!(servers::etcd(EtcdOptions::new().own()));
    let endpoint = format!("--endpoints=http://{}", server.endpoint());
    or_skip!(tools::etcdctl());
    etcdctl(&[&endpoint, "put", "a", "1"]);
    server.restart().await.unwrap();
    assert_eq!(
        etcdctl(&[&endpoint, "get", "a", "--print-value-only"]),
        "1\n"
    );
}

#[tokio::test]
async fn etcd_demands_its_password_also_after_a_restart() {
    let server = or_skip!(servers::etcd(
        EtcdOptions::new().with_root_password("s3cret")
    ));
    let endpoint = format!("--endpoints=http://{}", server.endpoint());
    or_skip!(tools::etcdctl());
    server.restart().await.unwrap();
    assert_eq!(etcdctl(&[&endpoint, "get", "a"]), "");
    assert_eq!(
        etcdctl(&[&endpoint, "--user=root:s3cret", "put", "a", "1"]),
        "OK\n"
    );
}

#[test]
fn etcd_takes_timing_and_arguments() {
    let options =
        EtcdOptions::new().with_election(Duration::from_millis(50), Duration::from_millis(500));
    let server = or_skip!(servers::etcd(
        options.with_argument("--snapshot-count=5000")
    ));
    let Some(directory) = server.directory() else {
        return;
    };
    let log = std::fs::read_to_string(directory.join("log")).unwrap();
    for part in [
        r#""heartbeat-interval":"50ms""#,
        r#""election-timeout":"500ms""#,
        r#""snapshot-count":5000"#,
    ] {
        assert!(log.contains(part), "{part} in:\n{log}");
    }
}

#[test]
fn etcd_over_tls_demands_the_authority_and_a_client_certificate() {
    let certificates = Certificates::new().unwrap();
    let server = or_skip!(servers::etcd(
        EtcdOptions::new().with_mutual_tls(&certificates)
    ));
    or_skip!(tools::etcdctl());
    let endpoint = format!("--endpoints=https://{}", server.endpoint());
    let ca = format!("--cacert={}", certificates.ca().display());
    let cert = format!("--cert={}", certificates.client_cert().display());
    let key = format!("--key={}", certificates.client_key().display());
    assert_eq!(
        etcdctl(&[&endpoint, &ca, &cert, &key, "put", "a", "1"]),
        "OK\n"
    );
    assert_eq!(
        etcdctl(&[&endpoint, &ca, "--command-timeout=2s", "put", "a", "1"]),
        ""
    );
    let stranger = Certificates::new().unwrap();
    let ca = format!("--cacert={}", stranger.ca().display());
    assert_eq!(
        etcdctl(&[
            &endpoint,
            &ca,
            &cert,
            &key,
            "--command-timeout=2s",
            "put",
            "a",
            "1"
        ]),
        ""
    );
}

#[test]
fn redis_over_tls_demands_the_authority() {
    let certificates = Certificates::new().unwrap();
    let server = or_skip!(servers::redis(RedisOptions::new().with_tls(&certificates)));
    assert!(server.url().starts_with("rediss://"));
    let python = or_skip!(tools::python_with_redis());
    let script = "import redis, sys; print(redis.Redis.from_url(sys.argv[1], ssl_ca_certs=sys.argv[2]).ping())";
    let ping = |ca: &Path| {
        let output = std::process::Command::new(&python)
            .args(["-c", script, server.url()])
            .arg(ca)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ping(&certificates.ca()), "True\n");
    assert_eq!(ping(&Certificates::new().unwrap().ca()), "");
}

#[test]
fn certificates_vanish_with_their_last_user() {
    let certificates = Certificates::new().unwrap();
    let path = certificates.ca();
    let server = or_skip!(servers::redis(RedisOptions::new().with_tls(&certificates)));
    drop(certificates);
    assert!(path.exists(), "the server uses them");
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_failed_start_shows_the_log() {
    or_skip!(servers::redis(RedisOptions::new().own()));
    let outcome = std::panic::catch_unwind(|| {
        servers::redis(
            RedisOptions::new()
                .with_argument("--no-such-option")
                .with_argument("x"),
        )
    });
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.contains("no-such-option") && message.contains("log"),
        "{message}"
    );
}

#[test]
fn finds_a_python_with_redis() {
    let python = or_skip!(tools::python_with_redis());
    let status = std::process::Command::new(python)
        .args(["-c", "import redis.lock"])
        .status()
        .unwrap();
    assert!(status.success());
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Sends inline commands to a Redis server and returns its answer to the last one.
fn redis_says(server: &Server, commands: &[&str]) -> io::Result<String> {
    redis_says_within(LIMIT, server, commands)
}

fn redis_says_within(limit: Duration, server: &Server, commands: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server.address()?, LIMIT)?;
    stream.set_read_timeout(Some(limit))?;
    let mut reply = String::new();
    for command in commands {
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer)?;
        reply = String::from_utf8_lossy(&buffer[..length]).into_owned();
    }
    if reply.is_empty() {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(reply)
    }
}

/// Returns the program's output; empty if it fails.
fn etcdctl(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(tools::etcdctl().unwrap());
    let output = command
        .env("ETCDCTL_API", "3")
        .args(arguments)
        .output()
        .unwrap();
    if output.status.success() {
        String::from_utf8(output.stdout).unwrap()
    } else {
        String::new()
    }
}
