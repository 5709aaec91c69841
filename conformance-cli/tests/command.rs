//! The command, as an author and a build server use it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use lock_conformance::servers::{self, RedisOptions};
use serde_json::{Value, json};

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lock-conformance"))
        .args(arguments)
        .env_remove("LOCK_URL")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn ends_with(code: i32, arguments: &[&str]) -> String {
    let output = command(arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn part_of_the_cases_leaves_files_and_its_seed() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("new/report");
    let arguments = ["run", "mem://test", "--only", "names::", "--seed", "7"];
    let said = ends_with(
        0,
        &[&arguments[..], &["--report", to.to_str().unwrap()]].concat(),
    );
    assert!(said.contains("nothing is claimed"), "{said}");
    let report: Value = serde_json::from_str(&read(&to, "report.json")).unwrap();
    assert_eq!(report["seed"], 7);
    let cases = report["cases"].as_array().unwrap();
    let held = cases.iter().filter(|case| case["outcome"] == "held");
    assert!(held.count() > 5, "{report:#}");
    assert!(read(&to, "index.html").contains("not selected by `--only names::`"));
    assert!(read(&to, "junit.xml").contains("names::case_counts"));
}

#[test]
fn claim_beyond_what_was_checked_is_unproven() {
    let arguments = [
        "run",
        "mem://test",
        "--profile",
        "quick",
        "--claim",
        "exclusive",
    ];
    let said = ends_with(2, &arguments);
    assert!(said.contains("Consistency::ProcessLocal"), "{said}");
    assert!(said.contains("not in the profile `quick`"), "{said}");
}

#[test]
fn processes_of_the_command_contend() {
    let server = match servers::redis(RedisOptions::new()) {
        Ok(server) => server,
        Err(skip) => return println!("skipped: {}", skip.reason()),
    };
    let said = ends_with(0, &["run", server.url(), "--only", "processes::", "--json"]);
    let report: Value = serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let of_processes = cases
        .iter()
        .filter(|case| case["case"].as_str().unwrap().starts_with("processes::"));
    let outcomes: Vec<_> = of_processes.map(|case| &case["outcome"]).collect();
    assert_eq!(outcomes, ["held", "held"], "{report:#}");
}

#[test]
fn what_is_wrong_around_a_run_is_told() {
    for (arguments, says) in [
        (&["run", "zookeeper://h"][..], "zookeeper"),
        (&["run", "redis://h?ttl=never"], "ttl"),
        (&["run"], "URL"),
        (&["run", "mem://"], "mem://test"),
        (&["run", "mem://test", "--claim", "perfect"], "perfect"),
        (&["run", "mem://test", "--jobs", "0"], "jobs"),
        (&["render", "/no/such.json", "--to", "x"], "/no/such.json"),
    ] {
        let said = ends_with(3, arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    ends_with(0, &["--help"]);
}

#[test]
fn secrets_of_the_url_are_not_printed() {
    let said = ends_with(3, &["run", "redis://user:hunter2@127.0.0.1:1?ttl=never"]);
    assert!(!said.contains("hunter2"), "{said}");
}

/// The page of a violation leads from the claim to the case, and on to what may be wrong.
#[test]
fn page_of_a_violation_says_what_may_be_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let case = "processes::contending_processes_are_never_two_inside";
    let json = json!({
        "backend": "<tcp>",
        "seed": 3,
        "verdict": "violated",
        "claims": [{
            "claim": "exclusive", "claimed": true, "standing": "violated", "cases_held": 1,
            "cases_needed": 2, "violated_by": [case], "missing": {},
        }],
        "cases": [{
            "case": case, "level": "exclusive", "badge": null, "outcome": "violated",
            "message": "2 processes held the lock at once", "seconds": 1.5,
            "likely_defects": ["Nobody asks the server."],
        }],
    });
    fs::write(&report, json.to_string()).unwrap();
    let to = directory.path().join("page");
    ends_with(
        0,
        &[
            "render",
            report.to_str().unwrap(),
            "--to",
            to.to_str().unwrap(),
        ],
    );
    let page = read(&to, "index.html");
    let anchor = case.replace("::", "-");
    for part in [
        &format!("href=\"#{anchor}\""),
        &format!("id=\"{anchor}\""),
        "2 processes held the lock at once",
        "Nobody asks the server.",
        "LOCK_CONFORMANCE_SEED=3",
        "&lt;tcp&gt;",
    ] {
        assert!(page.contains(part), "{part} is not on {page}");
    }
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
    assert!(read(&to, "junit.xml").contains("<failure message=\"2 processes held"));
}

#[test]
fn list_names_the_defects() {
    let said = ends_with(0, &["list", "--defects"]);
    for part in ["exclusion::held_name_is_refused", "Leases are not renewed."] {
        assert!(said.contains(part), "{part} is not in the list");
    }
}
