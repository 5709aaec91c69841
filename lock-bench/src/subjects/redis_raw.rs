use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client as Redis, Cmd, IntoConnectionInfo, Value, aio::MultiplexedConnection};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

/// The very scripts of `lock-redis`.
const ACQUIRE: &str = include_str!("../../../lock-redis/src/scripts/acquire.lua");
const RELEASE: &str = include_str!("../../../lock-redis/src/scripts/release.lua");

const TTL_MS: u64 = 30_000;
const COMPANION_TTL_MS: u64 = 24 * 3600 * 1000;

/// The Rust client of Redis, running the two scripts that `lock-redis` runs for a free lock, and nothing else.
pub(crate) struct RedisRaw {
    connection: MultiplexedConnection,
    hashes: Hashes,
    last_owner: Arc<AtomicU64>,
    process: usize,
}

#[derive(Clone)]
struct Hashes {
    acquire: Arc<str>,
    release: Arc<str>,
}

pub(crate) struct RawContender {
    connection: MultiplexedConnection,
    hashes: Hashes,
    keys: [String; 2],
    last_owner: Arc<AtomicU64>,
    process: usize,
}

/// The connection as our backend makes it.
pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let info = url.into_connection_info()?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
    Ok(Redis::open(info.set_tcp_settings(tcp))?.get_multiplexed_async_connection_with_config(&config).await?)
}

impl Client for RedisRaw {
    type Contender = RawContender;

    async fn connect(job: &Job) -> Result<Self> {
        let mut connection = connect(&job.url).await?;
        let mut load = async |script: &str| redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async::<String>(&mut connection).await;
        let hashes = Hashes { acquire: load(ACQUIRE).await?.into(), release: load(RELEASE).await?.into() };
        Ok(Self { connection, hashes, last_owner: Arc::default(), process: job.process })
    }

    async fn contender(&self, name: &str) -> Result<RawContender> {
        let keys = [name.to_owned(), format!("{name}\u{1f}{{{name}}}")];
        let (connection, hashes, last_owner) = (self.connection.clone(), self.hashes.clone(), Arc::clone(&self.last_owner));
        Ok(RawContender { connection, hashes, keys, last_owner, process: self.process })
    }

    async fn close(self) {}
}

impl RawContender {
    fn script(&self, hash: &str) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(2).arg(&self.keys[0]).arg(&self.keys[1]);
        command
    }
}

impl Contender for RawContender {
    /// The owner id.
    type Held = String;

    async fn acquire(&self) -> Result<String> {
        let number = self.last_owner.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{:016x}{number:016x}", self.process);
        let mut command = self.script(&self.hashes.acquire);
        command.arg(&owner).arg(TTL_MS).arg(COMPANION_TTL_MS).arg("").arg("0");
        match command.query_async(&mut self.connection.clone()).await? {
            Value::Array(parts) if parts.first() == Some(&Value::Int(1)) => Ok(owner),
            other => Err(format!("a name that nobody else uses was taken: {other:?}").into()),
        }
    }

    async fn release(&self, owner: String) -> Result<()> {
        let mut command = self.script(&self.hashes.release);
        command.arg(&owner).arg("0");
        let held: i64 = command.query_async(&mut self.connection.clone()).await?;
        if held == 1 { Ok(()) } else { Err("the key was gone before its release".into()) }
    }
}
