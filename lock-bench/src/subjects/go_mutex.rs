use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::fleet::Program;

/// Directory in which Debian's golang-etcd-server-dev puts the sources, unless `LOCK_TEST_GOPATH`
/// says otherwise.
const GOPATH: &str = "/usr/share/gocode";

/// Builds the worker that uses Go's `concurrency.Mutex`, or says what is missing.
pub(crate) async fn build(directory: &Path) -> Result<Program, String> {
    let hint = "install Debian's golang-go and golang-etcd-server-dev";
    let gopath =
        std::env::var_os("LOCK_TEST_GOPATH").map_or_else(|| PathBuf::from(GOPATH), PathBuf::from);
    if !gopath
        .join("src/go.etcd.io/etcd/clientv3/concurrency")
        .is_dir()
    {
        return Err(format!(
            "go-mutex: etcd's Go client is not in {}; {hint}",
            gopath.display()
        ));
    }
    let path = directory.join("go-mutex");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go-mutex/main.go");
    let mut go = Command::new("go");
    go.arg("build")
        .arg("-o")
        .arg(&path)
        .arg(source)
        .env("GO111MODULE", "off")
        .env("GOPATH", gopath)
        .env_remove("GOFLAGS");
    let output = go
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| format!("go-mutex: cannot run go: {error}; {hint}"))?;
    if output.status.success() {
        return Ok(Program {
            path,
            arguments: Vec::new(),
            environment: Vec::new(),
        });
    }
    Err(format!(
        "go-mutex: go build failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
