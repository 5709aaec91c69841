//! The programs of others, for tests that our locks and theirs exclude each other.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Skip, source::program};

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
