//! Programs of others, for tests that our locks and theirs exclude each other.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{
    RedisOptions, Skip,
    service::Service,
    source::{Source, program, source},
};

/// Finds etcd's command-line client: the program that `LOCK_TEST_ETCDCTL_BIN` names, else `etcdctl`
/// on the path.
///
/// # Errors
///
/// If there is none.
///
/// # Panics
///
/// If there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn etcdctl() -> Result<PathBuf, Skip> {
    let missing = || {
        "there is no etcdctl on PATH; install Debian's etcd-client or set LOCK_TEST_ETCDCTL_BIN"
            .to_owned()
    };
    program("LOCK_TEST_ETCDCTL_BIN", "etcdctl")
        .and_then(|found| found.ok_or_else(missing))
        .map_err(Skip::new)
}

/// Finds a Python interpreter that has redis-py: the one that `LOCK_TEST_PYTHON_BIN` names, else
/// `python3` on the path, else Debian's.
///
/// # Errors
///
/// If there is none.
///
/// # Panics
///
/// If there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn python_with_redis() -> Result<PathBuf, Skip> {
    let on_path = program("LOCK_TEST_PYTHON_BIN", "python3").map_err(Skip::new)?;
    let candidates = on_path
        .into_iter()
        .chain([PathBuf::from("/usr/bin/python3")]);
    let missing = || {
        Skip::new(
            "there is no python3 with redis-py; install Debian's python3-redis or set LOCK_TEST_PYTHON_BIN",
        )
    };
    candidates
        .into_iter()
        .find(|python| has_redis(python))
        .ok_or_else(missing)
}

fn has_redis(python: &Path) -> bool {
    let mut import = Command::new(python);
    import
        .args(["-c", "import redis"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    import.status().is_ok_and(|status| status.success())
}

/// The library for `LD_PRELOAD` that [`RedisOptions::with_clock_ahead`] needs, made with the C
/// compiler that Rust links with. Dropping this removes the library, so keep it for as long as
/// servers may start with it.
#[derive(Debug)]
pub struct ClockAhead(TempDir);

impl ClockAhead {
    pub(super) fn library(&self) -> PathBuf {
        self.0.path().join("clock_ahead.so")
    }
}

/// Makes that library.
///
/// # Errors
///
/// If there is no compiler, or if Redis would not run as a program of this machine.
///
/// # Panics
///
/// If there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn clock_ahead() -> Result<ClockAhead, Skip> {
    if !matches!(
        source(RedisOptions::new().about(), false),
        Ok(Source::Program(_))
    ) {
        return Err(Skip::excused(
            "a server in a container has the clock of the machine",
        ));
    }
    build_clock_ahead().map_err(|error| {
        Skip::new(format!(
            "cannot make a clock for servers with `cc`: {error}; install Debian's gcc"
        ))
    })
}

fn build_clock_ahead() -> io::Result<ClockAhead> {
    // The name is one that nobody can guess and nobody else uses: the library is loaded into
    // servers.
    let clock = ClockAhead(
        tempfile::Builder::new()
            .prefix("lock-test-clock-ahead-")
            .tempdir()?,
    );
    let code = clock.0.path().join("clock_ahead.c");
    fs::write(&code, include_str!("clock_ahead.c"))?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(clock.library())
        .arg(&code)
        .output()?;
    match output.status.success() {
        true => Ok(clock),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}
