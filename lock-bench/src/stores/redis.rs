use async_trait::async_trait;
use lock_conformance::servers::{self, RedisOptions, Server};
use redis::aio::MultiplexedConnection;

use crate::{
    Result,
    stores::{Counts, Requests, Store},
    subjects::redis_raw,
};

/// One Redis server of our own, which keeps its data in memory only.
pub(crate) struct RedisStore {
    server: Server,
    connection: MultiplexedConnection,
}

impl RedisStore {
    pub(crate) async fn start() -> Result<Self> {
        // The start blocks until the server is ready.
        let server = tokio::task::spawn_blocking(|| {
            servers::redis(RedisOptions::new().own().without_persistence())
        })
        .await??;
        let connection = redis_raw::connect(server.url()).await?;
        Ok(Self { server, connection })
    }

    async fn info(&self, section: &str) -> Result<String> {
        Ok(redis::cmd("INFO")
            .arg(section)
            .query_async(&mut self.connection.clone())
            .await?)
    }
}

#[async_trait]
impl Store for RedisStore {
    fn url(&self) -> &str {
        self.server.url()
    }

    async fn version(&self) -> Result<String> {
        let info = self.info("server").await?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"))
            .unwrap_or("of an unknown version");
        Ok(format!("Redis {version}, one server without persistence"))
    }

    async fn requests(&self) -> Result<Option<Requests>> {
        let counts = parse(&self.info("commandstats").await?);
        let stats = self.info("stats").await?;
        let cpu = self.info("cpu").await?;
        Ok(Some(Requests {
            reads: field(&stats, "total_reads_processed"),
            cpu_s: field(&cpu, "used_cpu_sys")
                .zip(field(&cpu, "used_cpu_user"))
                .map(|(system, user)| system + user),
            calls: counts.clone(),
            messages: counts,
        }))
    }

    async fn tidy(&self) -> Result<()> {
        Ok(redis::cmd("FLUSHALL")
            .query_async(&mut self.connection.clone())
            .await?)
    }

    async fn leases(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Commands that locks send. The server counts the commands of clients and those that run inside a
/// script alike; of these commands only `set` occurs in anybody's script. `GET` and `PTTL`, by which
/// our waiters look, are in ours: what they send in all is seen by the server's reads.
const SENT: &[&str] = &[
    "eval",
    "evalsha",
    "set",
    "blpop",
    "ping",
    "script|load",
    "client|tracking",
    "hello",
];

fn field(info: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')?
            .trim()
            .parse()
            .ok()
    };
    info.lines().find_map(value)
}

fn parse(commandstats: &str) -> Counts {
    let mut counts = Counts::default();
    let calls = commandstats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    for (command, rest) in calls {
        let number = rest
            .split(',')
            .next()
            .and_then(|number| number.parse().ok());
        if let Some(number) = number.filter(|_| SENT.contains(&command)) {
            counts.0.insert(command.to_owned(), number);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_clients_send() {
        let now = parse(
            "# Commandstats\r\ncmdstat_evalsha:calls=7,usec=1\r\ncmdstat_pttl:calls=9,usec=2\r\ncmdstat_client|tracking:calls=1,usec=3\r\n",
        );
        assert_eq!(
            (now.of("evalsha"), now.of("client|tracking"), now.sum()),
            (7.0, 1.0, 8.0)
        );
    }
}
