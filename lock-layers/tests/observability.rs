//! The dashboard and the alert rules fit the metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lock_layers::metric_names;

const ALERTS: &str = include_str!("../../docs/observability/alerts.yml");
const DASHBOARD: &str = include_str!("../../docs/observability/dashboard.json");

#[test]
fn every_metric_is_shown_and_every_one_that_is_shown_exists() {
    let mut shown = std::collections::BTreeSet::new();
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    for word in [ALERTS, DASHBOARD]
        .iter()
        .flat_map(|text| text.split(|c| !is_part(c)))
    {
        if word.starts_with("lock_") {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(metric_names::ALL.contains(&name), "{word} does not exist");
            shown.insert(name);
        }
    }
    let missing: Vec<_> = metric_names::ALL
        .iter()
        .filter(|name| !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "not shown: {missing:?}");
}

/// Ends a program with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs Prometheus: apt-get install prometheus"]
fn a_real_prometheus_checks_the_rules_and_answers_every_query() {
    let directory = tempfile::tempdir().unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability/alerts.yml");
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .expect("promtool is installed");
    assert!(checked.status.success(), "{checked:?}");
    let (_program, metrics) = example();
    let (_prometheus, address) = prometheus(directory.path(), &rules, &metrics);
    let queries = queries();
    assert!(queries.len() >= 20, "{queries:?}");
    for query in queries {
        await_answer(&address, &query);
    }
}

/// The example, and the address at which it serves its metrics.
fn example() -> (Running, String) {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "lock-layers"])
        .args(["--example", "prometheus"])
        .status();
    assert!(built.unwrap().success());
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let mut program = Command::new(path.join("examples/prometheus"))
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the example is built beside the tests");
    let mut line = String::new();
    let output = program.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap().to_owned();
    (Running(program), address)
}

fn prometheus(directory: &Path, rules: &Path, metrics: &str) -> (Running, String) {
    let rules = rules.display();
    let configuration = format!(
        "global: {{scrape_interval: 200ms, evaluation_interval: 1s}}\nrule_files: ['{rules}']\n\
         scrape_configs:\n- job_name: locks\n  static_configs: [{{targets: ['{metrics}']}}]\n"
    );
    let file = directory.join("prometheus.yml");
    std::fs::write(&file, configuration).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let program = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.join("data").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed");
    (Running(program), address)
}

/// Queries of the dashboard, with its variables replaced, and those parts of the rules that must
/// have a value although nothing is wrong.
fn queries() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let of_dashboard = targets.map(|target| {
        let query = target["expr"].as_str().unwrap();
        let query = query.replace("$__rate_interval", "10s");
        query.replace("$job", "locks").replace("$backend", "mem")
    });
    let of_rules = metric_names::ALL.iter().map(|name| {
        let is_histogram = name.ends_with("_seconds");
        let suffix = if is_histogram { "_bucket" } else { "" };
        format!("sum by (job, backend) ({name}{suffix}{{job=\"locks\"}})")
    });
    of_dashboard.chain(of_rules).collect()
}

/// Asks until there is a value.
fn await_answer(address: &str, query: &str) {
    let begun = Instant::now();
    loop {
        let answer = ask(address, query).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let values = json["data"]["result"].as_array().map_or(0, Vec::len);
        if values > 0 {
            return;
        }
        let limit = Duration::from_secs(60);
        assert!(begun.elapsed() < limit, "no value for {query}: {answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn ask(address: &str, query: &str) -> std::io::Result<String> {
    let encoded: String = query
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let mut connection = TcpStream::connect(address)?;
    let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}
