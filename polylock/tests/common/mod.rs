//! A server for one test. The servers of `lock-conformance` can do more, and need a C compiler to
//! build: too much for the dev-dependencies of a crate whose example is to run with nothing but
//! Rust.

#![allow(dead_code, reason = "every test target uses a part of it")]

use std::{
    env,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ends with the test.
pub(crate) struct Server {
    url: String,
    running: Option<(Child, tempfile::TempDir)>,
}

impl Server {
    /// The server whose URL is in the environment as `LOCK_TEST_<NAME>`, or the program of
    /// `LOCK_TEST_<NAME>_BIN` or on `PATH`; `None`, with a message, if there is neither and
    /// `LOCK_TEST_REQUIRE_SERVERS` is not set.
    fn start(
        scheme: &str,
        program: &str,
        arguments: impl FnOnce(u16, u16, &str) -> Vec<String>,
    ) -> Option<Self> {
        let variable = format!("LOCK_TEST_{}", scheme.to_uppercase());
        if let Ok(url) = env::var(&variable) {
            return Some(Self { url, running: None });
        }
        let program = env::var(format!("{variable}_BIN")).unwrap_or_else(|_| program.to_owned());
        let directory = tempfile::tempdir().unwrap();
        let [port, other_port] = free_ports();
        let started = Command::new(&program)
            .args(arguments(
                port,
                other_port,
                directory.path().to_str().unwrap(),
            ))
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(child) => {
                let server = Self {
                    url: format!("{scheme}://127.0.0.1:{port}"),
                    running: Some((child, directory)),
                };
                server.wait_until_it_listens(port);
                Some(server)
            }
            Err(error) if env::var("LOCK_TEST_REQUIRE_SERVERS").is_ok_and(|set| set == "1") => {
                panic!("cannot start {program}: {error}")
            }
            Err(error) => {
                eprintln!(
                    "skipped: cannot start {program}: {error}; install it, or set {variable} to the URL of a server"
                );
                None
            }
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis() -> Option<Self> {
        Self::start("redis", "redis-server", |port, _, _| {
            [
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ]
            .map(str::to_owned)
            .to_vec()
        })
    }

    #[cfg(feature = "etcd")]
    pub(crate) fn etcd() -> Option<Self> {
        Self::start("etcd", "etcd", |port, peer_port, directory| {
            let client = format!("http://127.0.0.1:{port}");
            let peer = format!("http://127.0.0.1:{peer_port}");
            let pairs = [
                ("name", "one".to_owned()),
                ("data-dir", format!("{directory}/data")),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer.clone()),
                ("initial-cluster", format!("one={peer}")),
            ];
            pairs
                .into_iter()
                .map(|(option, value)| format!("--{option}={value}"))
                .collect()
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops the server; `false` if it is not ours.
    pub(crate) fn end(&mut self) -> bool {
        let Some((child, _)) = &mut self.running else {
            return false;
        };
        child.kill().and_then(|()| child.wait()).unwrap();
        true
    }

    /// Makes the server silent from now on, without ending it; `false` if it is not ours.
    pub(crate) fn freeze(&mut self) -> bool {
        let Some((child, _)) = &self.running else {
            return false;
        };
        Command::new("kill")
            .args(["-STOP", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    }

    fn wait_until_it_listens(&self, port: u16) {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{} does not listen",
                self.url
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
