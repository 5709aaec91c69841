use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client as Redis, Cmd, IntoConnectionInfo, Value,
    aio::MultiplexedConnection,
};

use crate::{
    Result,
    protocol::Job,
    subjects::{Client, Contender},
};

/// The scripts of `lock-redis` themselves.
const ACQUIRE: &str = include_str!("../../../lock-redis/src/scripts/acquire.lua");
const RELEASE: &str = include_str!("../../../lock-redis/src/scripts/release.lua");

const TTL_MS: u64 = 30_000;
const COMPANION_TTL_MS: u64 = TTL_MS + 600_000;

/// The Rust client of Redis, running the two scripts that `lock-redis` runs for a free lock, and
/// nothing else.
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
    keys: [String; 3],
    last_owner: Arc<AtomicU64>,
    process: usize,
}

/// Makes the connection as our backend does.
pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let info = url.into_connection_info()?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
    Ok(Redis::open(info.set_tcp_settings(tcp))?
        .get_multiplexed_async_connection_with_config(&config)
        .await?)
}

impl Client for RedisRaw {
    type Contender = RawContender;

    async fn connect(job: &Job) -> Result<Self> {
        let mut connection = connect(&job.url).await?;
        let mut load = async |script: &str| {
            redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(script)
                .query_async::<String>(&mut connection)
                .await
        };
        let hashes = Hashes {
            acquire: load(ACQUIRE).await?.into(),
            release: load(RELEASE).await?.into(),
        };
        Ok(Self {
            connection,
            hashes,
            last_owner: Arc::default(),
            process: job.process,
        })
    }

    async fn contender(&self, name: &str) -> Result<RawContender> {
        let keys = ["", "\u{1f}", "\u{1f}q"].map(|kind| match kind {
            "" => name.to_owned(),
            kind => format!("{name}{kind}{{{name}}}"),
        });
        let connection = self.connection.clone();
        let hashes = self.hashes.clone();
        let last_owner = Arc::clone(&self.last_owner);
        Ok(RawContender {
            connection,
            hashes,
            keys,
            last_owner,
            process: self.process,
        })
    }

    async fn close(self) {}
}

impl RawContender {
    fn script(&self, hash: &str, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(keys).arg(&self.keys[..keys]);
        command
    }
}

impl Contender for RawContender {
    /// The owner id.
    type Held = String;

    async fn acquire(&self) -> Result<String> {
        let number = self.last_owner.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{:016x}{number:016x}", self.process);
        let mut command = self.script(&self.hashes.acquire, 3);
        command
            .arg(&owner)
            .arg(TTL_MS)
            .arg(COMPANION_TTL_MS)
            .arg("");
        match command.query_async(&mut self.connection.clone()).await? {
            Value::Array(parts) if parts.first() == Some(&Value::Int(1)) => Ok(owner),
            other => Err(format!("a name that nobody else uses was taken: {other:?}").into()),
        }
    }

    async fn release(&self, owner: String) -> Result<()> {
        let mut command = self.script(&self.hashes.release, 2);
        command.arg(&owner);
        let held: i64 = command.query_async(&mut self.connection.clone()).await?;
        if held == 1 {
            Ok(())
        } else {
            Err("the key was gone before its release".into())
        }
    }
}
