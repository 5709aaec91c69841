//! `lockctl doctor`: all that may be wrong with a store, and with what this user may do in it.

mod etcd;
mod http;
mod operations;
mod redis;
mod report;

use std::time::{Duration, Instant};

use clap::Args;
use polylock::{Capabilities, Endpoint, LockError, LockUrl};
use tokio::{net::TcpStream, time::timeout};

use crate::{Done, output, store};
use report::Report;

/// What to look at.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// URL of the locks
    #[arg(env = "LOCK_URL", hide_env_values = true)]
    url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Longest wait for one server.
const LIMIT: Duration = Duration::from_secs(5);

/// Name under which the checks lock; the rest of it is random.
const PROBE: &str = "lockctl-doctor/";

impl Doctor {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let url: LockUrl = store::url(self.url.as_deref())?.parse()?;
        let capabilities = polylock::registry().capabilities(&url)?;
        let mut report = Report::new(&capabilities);
        examine(&url, &capabilities, &mut report).await;
        match self.json {
            true => output::json(&report),
            false => report.print(),
        }
        match report.has_failed() {
            true => Ok(Done::Failed),
            false => Ok(Done::Settled),
        }
    }
}

async fn examine(url: &LockUrl, capabilities: &Capabilities, report: &mut Report) {
    let scheme = url.scheme();
    let store = scheme.split('+').next().unwrap_or(scheme);
    let (port, is_encrypted) = match store {
        "etcd" | "etcds" => (2379, store == "etcds"),
        "redis" | "rediss" if scheme.ends_with("+sentinel") => (26379, store == "rediss"),
        "redis" | "rediss" => (6379, store == "rediss"),
        _ => (0, false),
    };
    if port != 0 {
        for endpoint in url.endpoints() {
            reach(endpoint, port, report).await;
        }
        match is_encrypted {
            true => report.good("encryption", "TLS is asked for; a connection below proves it"),
            false => report.note("encryption", "none: passwords and names can be read on the way; use the scheme with an `s`, such as rediss or etcds"),
        }
    }
    let probe = format!("{PROBE}{:016x}", rand::random::<u64>());
    if let Some(locks) = connect(url, report).await {
        operations::examine(&*locks, capabilities, &probe, report).await;
        let _ = locks.shutdown().await;
    }
    match store {
        "etcd" | "etcds" => etcd::examine(url, &probe, report).await,
        "redis" | "rediss" if scheme.ends_with("+sentinel") => {
            report.note("settings", "those of servers behind sentinels are not looked at; give a server's own address for that");
        }
        "redis" | "rediss" => redis::examine(url, &probe, report).await,
        _ => {}
    }
}

async fn reach(endpoint: &Endpoint, port: u16, report: &mut Report) {
    let address = endpoint.authority(port);
    let check = format!("reach {address}");
    let began = Instant::now();
    match timeout(LIMIT, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => report.good(check, format!("in {}", report::time(began.elapsed()))),
        Ok(Err(error)) => report.bad(
            check,
            format!("{error}; look at the address, the server and firewalls"),
        ),
        Err(_) => report.bad(
            check,
            format!("no answer within {LIMIT:?}; look at the network and firewalls"),
        ),
    }
}

async fn connect(
    url: &LockUrl,
    report: &mut Report,
) -> Option<std::sync::Arc<dyn polylock::DistributedLock>> {
    let began = Instant::now();
    match polylock::registry().open(url).await {
        Ok(locks) => {
            let took = report::time(began.elapsed());
            report.good("connect", format!("with these credentials, in {took}"));
            Some(locks)
        }
        Err(error) => {
            report.bad("connect", error.to_string());
            None
        }
    }
}
