use std::time::Duration;

use async_trait::async_trait;
use lock_conformance::servers::{self, RedisOptions, Server, TcpProxy, Trouble};
use redis::{Client, Cmd, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use super::{Entry, Store};
use crate::{
    BoxError,
    schedule::{Act, Cut, Removal, Return, Side},
};

/// One Redis server on this machine that has every write on disk before its reply. Clients reach it
/// through a proxy.
#[derive(Debug)]
pub(super) struct Redis {
    server: Server,
    proxy: TcpProxy,
    /// The connection over which the entries are read.
    look: Mutex<Option<MultiplexedConnection>>,
}

/// Separates a lock's key from the suffix that makes the key of its counter.
const SEPARATOR: u8 = 0x1f;
/// Longest time for which a counter outlives the last use of its lock: ten minutes and the TTL.
const COUNTER_TTL: Duration = Duration::from_secs(15 * 60);
/// Limit for a server that reads its data again after a kill.
const HEALTHY_LIMIT: Duration = Duration::from_secs(60);
/// Time after the cause of an error for which a call may still fail: one request that times out,
/// sent at the last moment, and a connection that has to be made.
const PATIENCE: Duration = Duration::from_secs(2);
/// Long enough that only a report of the server, or the end of a lease, wakes a waiter.
const POLL: Duration = Duration::from_secs(60);
/// Time after which everything is gone that clients have given back which ended well.
const GONE: Duration = Duration::from_millis(500);
/// The user of the clients.
const USER: &str = "soak";
const PASSWORD: &str = "pw-s0ak";
/// Directories of the server's data and of a copy of it.
const DATA: &str = "appendonlydir";
const COPY: &str = "copy";

pub(super) const ACTS: &[Act] = &[
    Act::KillConnections,
    Act::FlushScripts,
    Act::Permissions,
    Act::User,
    Act::Configure,
    Act::Reload,
];
pub(super) const RETURNS: &[Return] = &[Return::Copy, Return::Nothing];

/// An entry that belongs to none of the clients.
const FOREIGN: &str = "somebody else";
const FOREIGN_TTL: Duration = Duration::from_millis(500);

/// Beginning of all scripts: reads the entry's owner, and the owner that got a token last.
const OWNER: &str = r"
local owner = redis.call('GET', KEYS[1])
local last = redis.call('HMGET', KEYS[2], 'owner', 'token')
local known = owner and owner == last[1]
";

/// Returns token and PTTL; 0 if the entry's owner has no known token.
const LOOK: &str = r"
if not known then return {'0', 0} end
return {last[2], redis.call('PTTL', KEYS[1])}
";

/// Takes `token, value, ttl in ms`; returns 1, or 0 if the entry is not the token's.
const REMOVE: &str = r"
if not known or last[2] ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
";

/// A script with the two keys of a register's lock.
fn script(code: &str, register: u32) -> Cmd {
    let lock = crate::client::lock_of(register);
    let companion = format!("{lock}{}{{{lock}}}", char::from(SEPARATOR));
    let mut command = redis::cmd("EVAL");
    command
        .arg([OWNER, code].concat())
        .arg(2)
        .arg(lock)
        .arg(companion);
    command
}

fn options() -> RedisOptions {
    let user = [
        "--user",
        USER,
        "on",
        ">pw-s0ak",
        "~*",
        "&*",
        "+@all",
        "--enable-debug-command",
        "local",
    ];
    user.into_iter()
        .fold(RedisOptions::new().own(), RedisOptions::with_argument)
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

impl Redis {
    pub(super) async fn start() -> Result<Self, BoxError> {
        let server = tokio::task::spawn_blocking(|| servers::redis(options())).await??;
        let proxy = TcpProxy::start(server.address()?).await?;
        Ok(Self {
            server,
            proxy,
            look: Mutex::default(),
        })
    }

    /// Address that clients connect to.
    pub(super) fn address(&self) -> std::net::SocketAddr {
        self.proxy.address()
    }

    /// URL of clients that reach the server at this address.
    pub(super) fn url_at(address: std::net::SocketAddr, ttl: Duration) -> String {
        format!(
            "redis://{USER}:{PASSWORD}@{address}/?ttl={}s&poll_interval={}s",
            ttl.as_secs(),
            POLL.as_secs()
        )
    }

    /// Connects on a path that no fault touches, unlike the clients under test.
    async fn operator(&self) -> Result<MultiplexedConnection, BoxError> {
        Ok(Client::open(self.server.url())?
            .get_multiplexed_async_connection()
            .await?)
    }

    async fn look(
        &self,
        operator: &mut MultiplexedConnection,
        registers: u32,
    ) -> Result<Vec<Entry>, BoxError> {
        let mut entries = Vec::new();
        for register in 0..registers {
            let (token, left): (u64, u64) = script(LOOK, register).query_async(operator).await?;
            let left = Duration::from_millis(left);
            entries.push(if token == 0 {
                Entry::Foreign
            } else {
                Entry::Of { token, left }
            });
        }
        Ok(entries)
    }

    async fn run(&self, command: &[&str]) -> Result<String, BoxError> {
        let (program, arguments) = command.split_first().ok_or("no command")?;
        let answer: redis::Value = redis::cmd(program)
            .arg(arguments)
            .query_async(&mut self.operator().await?)
            .await?;
        Ok(format!("{answer:?}"))
    }

    /// Closes the connections of the clients only.
    async fn kill_connections(&self) -> Result<(), BoxError> {
        self.run(&["CLIENT", "KILL", "USER", USER]).await.map(drop)
    }

    /// Changes settings, as an operator who follows some advice might; in the end all are as
    /// before.
    async fn configure(&self) -> Result<(), BoxError> {
        for (name, value, usual) in [
            ("notify-keyspace-events", "KEA", ""),
            ("tracking-table-max-keys", "1", "1000000"),
            ("maxmemory-policy", "volatile-lru", "noeviction"),
            ("appendfsync", "everysec", "always"),
        ] {
            self.run(&["CONFIG", "SET", name, value]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.run(&["CONFIG", "SET", name, usual]).await?;
        }
        Ok(())
    }

    /// Saves and reloads the data; the saving child is gone before anything else happens to the
    /// server.
    async fn reload(&self) -> Result<(), BoxError> {
        self.run(&["BGSAVE"]).await?;
        while !self
            .run(&["INFO", "persistence"])
            .await?
            .contains("rdb_bgsave_in_progress:0")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.run(&["DEBUG", "RELOAD"]).await.map(drop)
    }

    fn path(&self, name: &str) -> Result<std::path::PathBuf, BoxError> {
        Ok(self
            .server
            .directory()
            .ok_or("the server has no directory here")?
            .join(name))
    }

    async fn answers(&self) -> Result<(), BoxError> {
        Ok(redis::cmd("PING")
            .query_async(&mut self.operator().await?)
            .await?)
    }
}

#[async_trait]
impl Store for Redis {
    fn url(&self, ttl: Duration) -> String {
        Self::url_at(self.proxy.address(), ttl)
    }

    async fn leader(&self) -> Result<usize, BoxError> {
        Ok(0)
    }

    fn kill(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.kill()?)
    }

    fn start(&self, _: usize) -> Result<(), BoxError> {
        Ok(tokio::task::block_in_place(|| {
            self.server.start_blocking()
        })?)
    }

    fn pause(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.freeze()?)
    }

    fn resume(&self, _: usize) -> Result<(), BoxError> {
        Ok(self.server.thaw()?)
    }

    fn cut(&self, _: usize, _: Side, cut: Cut) {
        self.proxy.set(match cut {
            Cut::Silent => Trouble::Blackhole,
            Cut::Refused => Trouble::Refuse,
            Cut::Replies => Trouble::DropReplies,
        });
    }

    fn delay(&self, _: usize, by: Duration) {
        self.proxy.set(Trouble::Delay(by));
    }

    fn heal(&self, _: usize) {
        self.proxy.set(Trouble::None);
    }

    async fn wait_healthy(&self) -> Result<(), BoxError> {
        let begin = tokio::time::Instant::now();
        while let Err(error) = self.answers().await {
            if begin.elapsed() >= HEALTHY_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn longest_leader_pause(&self, _: Duration) -> Option<Duration> {
        None
    }

    async fn act(&self, act: Act, lasts: Duration) -> Result<(), BoxError> {
        match act {
            Act::KillConnections => self.kill_connections().await,
            Act::FlushScripts => {
                self.run(&["SCRIPT", "FLUSH"]).await?;
                self.proxy.cut().await;
                Ok(())
            }
            Act::Permissions => {
                self.run(&["ACL", "SETUSER", USER, "-@scripting"]).await?;
                tokio::time::sleep(lasts).await;
                self.run(&["ACL", "SETUSER", USER, "+@scripting"])
                    .await
                    .map(drop)
            }
            Act::User => {
                self.run(&["ACL", "SETUSER", USER, "off"]).await?;
                self.kill_connections().await?;
                tokio::time::sleep(lasts).await;
                self.run(&["ACL", "SETUSER", USER, "on"]).await.map(drop)
            }
            Act::Configure => self.configure().await,
            Act::Reload => self.reload().await,
            other => Err(format!("Redis has nothing to {other}").into()),
        }
    }

    async fn back_up(&self, to: Return) -> Result<(), BoxError> {
        if to == Return::Copy {
            self.server.freeze()?;
            copy(&self.path(DATA)?, &self.path(COPY)?)?;
            self.server.thaw()?;
        }
        Ok(())
    }

    async fn put_back(&self, to: Return) -> Result<(), BoxError> {
        match to {
            Return::Copy => copy(&self.path(COPY)?, &self.path(DATA)?)?,
            Return::Nothing => std::fs::remove_dir_all(self.path(DATA)?)?,
            Return::Snapshot | Return::Forced => return Err("only etcd goes back like this".into()),
        }
        self.start(0)
    }

    /// False, because tokens come from the server's clock, too.
    fn forgets_tokens(&self) -> bool {
        false
    }

    async fn entries(&self, registers: u32) -> Result<Vec<Entry>, BoxError> {
        let mut look = self.look.lock().await;
        let mut operator = match look.take() {
            Some(operator) => operator,
            None => self.operator().await?,
        };
        let entries = self.look(&mut operator, registers).await?;
        *look = Some(operator);
        Ok(entries)
    }

    async fn remove(&self, register: u32, token: u64, removal: Removal) -> Result<bool, BoxError> {
        let value = if removal == Removal::Overwrite {
            FOREIGN
        } else {
            ""
        };
        let mut command = script(REMOVE, register);
        command
            .arg(token)
            .arg(value)
            .arg(FOREIGN_TTL.as_millis() as u64);
        Ok(command.query_async(&mut self.operator().await?).await?)
    }

    fn wait_limit(&self) -> fn(Duration) -> Duration {
        |_| PATIENCE
    }

    fn prompt(&self) -> bool {
        true
    }

    fn settles(&self, ttl: Duration) -> (Duration, Duration) {
        (GONE, ttl + GONE)
    }

    /// Leaves out counters: they belong there, and expire some day.
    async fn contents(&self) -> Result<Vec<String>, BoxError> {
        let mut operator = self.operator().await?;
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut operator)
            .await?;
        let mut found = Vec::new();
        for key in keys {
            let left: i64 = redis::cmd("PTTL")
                .arg(&key)
                .query_async(&mut operator)
                .await?;
            let expires =
                u64::try_from(left).is_ok_and(|left| Duration::from_millis(left) <= COUNTER_TTL);
            if !(key.contains(&SEPARATOR) && expires) {
                found.push(format!(
                    "the key {}, whose PTTL is {left}",
                    key.escape_ascii()
                ));
            }
        }
        Ok(found)
    }
}
