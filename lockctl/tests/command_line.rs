//! What needs no server: bad input, and what is printed for a system.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::process::{Command, Output};

fn lockctl(url: &str, arguments: &[&str]) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_lockctl"))
        .args(arguments)
        .env("LOCK_URL", url)
        .output()
        .unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    (status.code().unwrap(), said)
}

#[test]
fn bad_input_is_told_before_any_store_is_asked() {
    let run = |name| ["run", name, "--", "true"];
    for (url, arguments, code, says) in [
        ("", &run("a")[..], 64, "LOCK_URL"),
        ("no url", &run("a"), 64, "://"),
        ("mem://", &run("a"), 64, "one process"),
        ("redis://127.0.0.1:1?tll=1s", &run("a"), 64, "ttl"),
        ("redis://127.0.0.1:1", &["run", "a"], 64, "COMMAND"),
        (
            "redis://127.0.0.1:1",
            &["run", "a", "-n", "-w", "1s", "--", "true"],
            64,
            "--wait",
        ),
        (
            "redis://127.0.0.1:1",
            &["run", "a", "-w", "soon", "--", "true"],
            64,
            "30s",
        ),
        ("redis://127.0.0.1:1", &run("a"), 69, "unavailable"),
        ("", &["status", "a"], 2, "LOCK_URL"),
        ("mem://", &["list"], 2, "one process"),
        ("zookeeper://h", &["status", "a"], 2, "redis://"),
        ("redis://127.0.0.1:1", &["status", "a"], 1, "unavailable"),
        ("redis://127.0.0.1:1", &["release", "a"], 2, "--owner"),
    ] {
        let (seen, said) = lockctl(url, arguments);
        assert!(
            seen == code && said.contains(says),
            "{url} {arguments:?}: {seen}: {said}"
        );
    }
}

#[test]
fn completions_and_manual_pages_name_the_commands_and_not_the_internal_ones() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = lockctl("", &["completions", shell]);
        assert!(code == 0 && script.contains("migrate"), "{shell}: {script}");
    }
    let pages = tempfile::tempdir().unwrap();
    let (code, said) = lockctl("", &["man", &pages.path().to_string_lossy()]);
    assert_eq!(code, 0, "{said}");
    let page = |name: &str| std::fs::read_to_string(pages.path().join(name));
    assert!(page("lockctl-run.1").unwrap().contains("SIGTERM"));
    assert!(page("lockctl.1").unwrap().contains("Exit codes"));
    assert!(page("lockctl-internal-launch.1").is_err());
}
