//! The programs of others, for tests that our locks and theirs exclude each other.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use super::{
    RedisOptions, Skip,
    service::Service,
    source::{Source, program, source},
};

/// etcd's command-line client: the program that `LOCK_TEST_ETCDCTL_BIN` names, else `etcdctl` on the path.
///
/// # Errors
///
/// If there is none.
///
/// # Panics
///
/// If there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn etcdctl() -> Result<PathBuf, Skip> {
    let missing = || "there is no etcdctl on PATH; install Debian's etcd-client or set LOCK_TEST_ETCDCTL_BIN".to_owned();
    program("LOCK_TEST_ETCDCTL_BIN", "etcdctl").and_then(|found| found.ok_or_else(missing)).map_err(Skip::new)
}

/// A Python interpreter that has redis-py: the one that `LOCK_TEST_PYTHON_BIN` names, else `python3` on the path, else Debian's.
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
    let candidates = on_path.into_iter().chain([PathBuf::from("/usr/bin/python3")]);
    let missing = || Skip::new("there is no python3 with redis-py; install Debian's python3-redis or set LOCK_TEST_PYTHON_BIN");
    candidates.into_iter().find(|python| has_redis(python)).ok_or_else(missing)
}

fn has_redis(python: &Path) -> bool {
    let mut import = Command::new(python);
    import.args(["-c", "import redis"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    import.status().is_ok_and(|status| status.success())
}

/// What [`RedisOptions::with_clock_ahead`] needs: a library for `LD_PRELOAD`, made with the C compiler that Rust links with, and kept
/// in the directory for temporary files.
///
/// # Errors
///
/// If there is no compiler, or Redis would not be a program of this machine.
///
/// # Panics
///
/// If there is none and [`REQUIRE_SERVERS`](crate::REQUIRE_SERVERS) is set.
pub fn clock_ahead() -> Result<PathBuf, Skip> {
    if !matches!(source(RedisOptions::new().about(), false), Ok(Source::Program(_))) {
        return Err(Skip::excused("a server in a container has the clock of the machine"));
    }
    build_clock_ahead().map_err(|error| Skip::new(format!("cannot make a clock for servers with `cc`: {error}; install Debian's gcc")))
}

fn build_clock_ahead() -> io::Result<PathBuf> {
    const CODE: &str = include_str!("clock_ahead.c");
    let name = |suffix: &str| env::temp_dir().join(format!("lock-test-clock-ahead{suffix}"));
    let (library, id) = (name(&format!("-{:x}.so", CODE.len())), process::id());
    if !library.exists() {
        let (code, made) = (name(&format!("-{id}.c")), name(&format!("-{id}.so")));
        fs::write(&code, CODE)?;
        let output = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(&code).output()?;
        fs::remove_file(&code)?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        // In one step, for others may look for it.
        fs::rename(&made, &library)?;
    }
    Ok(library)
}
