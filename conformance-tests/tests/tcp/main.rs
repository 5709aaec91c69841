//! The suite, adopted in three lines by a backend over a network, and its verdicts on defects of it.
//! Each run is a process of its own: this program, started again.

mod client;
mod defect;
#[path = "../../src/defects.rs"]
#[expect(dead_code, reason = "the library's own use of it")]
mod defects;
mod server;

use std::{
    env, fs,
    net::SocketAddr,
    process::{Command, ExitCode},
};

use libtest_mimic::{Arguments, Failed, Trial};
use lock_conformance::Level;
use serde_json::Value;

use crate::{
    client::{Server, TcpConnector},
    defect::{Defect, TABLE},
};

/// Chooses the suite instead of the trials, and what the author supplies.
const ROLE: &str = "TCP_BACKEND_ROLE";

fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Ok("bare") => three_lines(),
        Ok("equipped") => match address() {
            Some(address) => with_an_operator(address),
            None => ExitCode::from(3),
        },
        _ => trials(),
    }
}

/// The whole of an author's `tests/conformance.rs`, but for the server.
fn three_lines() -> ExitCode {
    lock_conformance::backend(TcpConnector(Defect::from_environment()))
        .url_from_env("TCP_BACKEND_URL")
        .claims(Level::PartitionSafe)
        .run()
}

/// Adds what proves the rest.
fn with_an_operator(address: SocketAddr) -> ExitCode {
    lock_conformance::backend(TcpConnector(Defect::from_environment()))
        .url(format!("tcp://{address}"))
        .operator(Server::at(address))
        .claims(Level::PartitionSafe)
        .run()
}

fn address() -> Option<SocketAddr> {
    env::var("TCP_BACKEND_ADDRESS").ok()?.parse().ok()
}

fn trials() -> ExitCode {
    let mut trials = vec![
        Trial::test("sound_backend_is_proven", sound_backend_is_proven),
        Trial::test("without_hooks_it_is_unproven", without_hooks_it_is_unproven),
        Trial::test("without_a_server_nothing_is_run", without_a_server),
    ];
    for (defect, cases, says) in TABLE {
        trials.extend(cases.iter().map(|case| {
            let name = format!("mutant::{defect:?}::is_caught_by::{case}");
            Trial::test(name, move || is_caught(*defect, case, says))
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// One run of the suite: its exit code and its report.
struct Run {
    code: Option<i32>,
    report: Value,
    output: String,
}

impl Run {
    fn of(role: &str, defect: Defect, arguments: &[&str]) -> Result<Self, Failed> {
        let address = server::start(defect)?.to_string();
        Self::with(role, defect, arguments, Some(&address))
    }

    fn with(
        role: &str,
        defect: Defect,
        arguments: &[&str],
        address: Option<&str>,
    ) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let report = directory.path().join("report.json");
        let mut command = Command::new(env::current_exe()?);
        command
            .env(ROLE, role)
            .env(Defect::VARIABLE, format!("{defect:?}"))
            .env_remove(lock_conformance::REQUIRE_SERVERS)
            .arg("--report")
            .arg(&report)
            .args(arguments);
        if let Some(address) = address {
            command
                .env("TCP_BACKEND_ADDRESS", address)
                .env("TCP_BACKEND_URL", format!("tcp://{address}"));
        }
        let output = command.output()?;
        let report = fs::read_to_string(&report).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            code: output.status.code(),
            report: serde_json::from_str(&report).unwrap_or_default(),
            output: text(&output.stdout) + &text(&output.stderr),
        })
    }

    fn ended_with(&self, code: i32) -> Result<(), Failed> {
        self.require(self.code == Some(code), &format!("exit code {code}"))
    }

    fn standing(&self, claim: &str) -> &str {
        let claims = self.report["claims"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let found = claims.iter().find(|found| found["claim"] == claim);
        found
            .and_then(|found| found["standing"].as_str())
            .unwrap_or("missing")
    }

    fn require(&self, condition: bool, what: &str) -> Result<(), Failed> {
        if condition {
            return Ok(());
        }
        let code = self.code;
        Err(format!("not seen: {what}; exit code {code:?}\n{}", self.output).into())
    }
}

fn sound_backend_is_proven() -> Result<(), Failed> {
    let run = Run::of("equipped", Defect::None, &[])?;
    run.ended_with(0)?;
    run.require(run.report["verdict"] == "proven", "the verdict `proven`")?;
    for claim in ["local", "exclusive", "partition-safe", "fenced"] {
        run.require(run.standing(claim) == "proven", claim)?;
    }
    run.require(run.standing("restart-safe") == "unproven", "restart-safe")
}

fn without_hooks_it_is_unproven() -> Result<(), Failed> {
    let run = Run::of("bare", Defect::None, &["removed"])?;
    run.ended_with(2)?;
    run.require(
        run.output.contains("implement `Operator::remove`"),
        "the hook that is missing",
    )
}

fn without_a_server() -> Result<(), Failed> {
    let run = Run::with("bare", Defect::None, &["exclusion"], None)?;
    run.ended_with(0)?;
    let says = "set TCP_BACKEND_URL to the URL of a store for tests";
    run.require(run.output.contains(says), says)
}

fn is_caught(defect: Defect, case: &str, says: &str) -> Result<(), Failed> {
    let run = Run::of("equipped", defect, &["--exact", case])?;
    run.ended_with(1)?;
    let cases = run.report["cases"].as_array().cloned().unwrap_or_default();
    let message = cases.first().and_then(|case| case["message"].as_str());
    run.require(message.is_some_and(|text| text.contains(says)), says)?;
    println!("{defect:?}: {}", message.unwrap_or_default());
    Ok(())
}
