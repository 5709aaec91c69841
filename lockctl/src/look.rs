//! Commands that look at locks, and the one that takes a lock away.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use clap::Args;
use polylock::{
    DistributedLock, DistributedLockExt, ErrorKind, LockError, LockHolder, LockInfo, OwnerId,
};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    Done,
    output::{self, held},
    store::{self, Store},
};

/// How to print.
#[derive(Debug, Args)]
struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Name of the lock
    name: String,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    format: Format,
}

/// A lock, of which nothing else is known if nobody holds it.
#[derive(Debug, Serialize)]
struct LockStatus<'a> {
    name: &'a str,
    held: bool,
    holders: &'a [LockHolder],
    waiters: Option<u64>,
}

impl Status {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let locks = self.store.connect().await?;
        let info = locks.inspect(&self.name).await?;
        match self.format.json {
            true => output::json(&status(&self.name, info.as_ref())),
            false => match info {
                Some(info) => println!("{}", held::table(&[info])),
                None => println!("`{}` is free", self.name),
            },
        }
        close(&*locks).await
    }
}

fn status<'a>(name: &'a str, info: Option<&'a LockInfo>) -> LockStatus<'a> {
    LockStatus {
        name,
        held: info.is_some(),
        holders: info.map_or(&[], |info| &info.holders),
        waiters: info.and_then(|info| info.waiters),
    }
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Start of the names; all without it
    #[arg(default_value = "")]
    prefix: String,
    /// List again and again, until interrupted
    #[arg(long)]
    watch: bool,
    /// Pause between two lists
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = store::duration, requires = "watch")]
    interval: Duration,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    format: Format,
}

impl List {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let locks = self.store.connect().await?;
        if !self.watch {
            let infos = self.read(&*locks).await?;
            match self.format.json {
                true => output::json(&infos),
                false => println!("{}", self.text(&infos)),
            }
            return close(&*locks).await;
        }
        let mut last = String::new();
        loop {
            let text = match self.read(&*locks).await {
                Ok(infos) if self.format.json => output::json_line(&infos),
                Ok(infos) => self.text(&infos),
                // An outage ends no watch.
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    eprintln!("lockctl: {error}");
                    String::new()
                }
                Err(error) => return Err(error),
            };
            if !text.is_empty() && (self.redraws() || text != last) {
                self.show(&text);
                last = text;
            }
            sleep(self.interval).await;
        }
    }

    async fn read(&self, locks: &dyn DistributedLock) -> Result<Vec<LockInfo>, LockError> {
        let mut list = locks.list(&self.prefix).await?;
        let mut infos = Vec::new();
        while let Some(info) = list.next().await {
            infos.push(info?);
        }
        infos.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        Ok(infos)
    }

    fn text(&self, infos: &[LockInfo]) -> String {
        match infos.is_empty() {
            true => format!("nobody holds a lock that begins with `{}`", self.prefix),
            false => held::table(infos).to_string(),
        }
    }

    /// A terminal shows one table; a file or a program gets each that differs from the last.
    fn redraws(&self) -> bool {
        !self.format.json && io::stdout().is_terminal()
    }

    fn show(&self, text: &str) {
        let mut out = io::stdout().lock();
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let written = match (self.redraws(), self.format.json) {
            // Back to the upper left corner, and nothing of the last table stays.
            (true, _) => write!(out, "\x1b[H\x1b[2J{now}\n{text}\n"),
            (false, true) => writeln!(out, "{text}"),
            (false, false) => writeln!(out, "{now}\n{text}"),
        };
        // Nobody reads any more.
        if written.and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}

/// What to watch.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Name of the lock
    name: String,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    format: Format,
}

impl Watch {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let locks = self.store.connect().await?;
        let mut holders = locks.watch(&self.name).await?;
        while let Some(info) = holders.next().await {
            match info {
                Ok(info) => self.print(info.as_ref()),
                Err(error) => eprintln!("lockctl: {error}"),
            }
        }
        close(&*locks).await?;
        Err(LockError::new(
            ErrorKind::Unavailable,
            "the store has ended the watch; start it again",
        ))
    }

    fn print(&self, info: Option<&LockInfo>) {
        if self.format.json {
            return println!("{}", output::json_line(&status(&self.name, info)));
        }
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        match info {
            Some(info) => println!("{now} {}", held::sentence(info)),
            None => println!("{now} free"),
        }
    }
}

/// What to take away from whom.
#[derive(Debug, Args)]
pub(crate) struct Release {
    /// Name of the lock
    name: String,
    /// Holder that is to lose it, as `status` shows it
    #[arg(long, value_name = "ID")]
    owner: String,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    format: Format,
}

/// The holder that has lost the lock.
#[derive(Debug, Serialize)]
struct Released {
    name: String,
    removed: Option<LockHolder>,
}

impl Release {
    pub(crate) async fn run(self) -> Result<Done, LockError> {
        let locks = self.store.connect().await?;
        let owner = OwnerId::new(&*self.owner);
        let removed = locks.force_release_from(&self.name, &owner).await?;
        let done = match &removed {
            Some(_) => Done::Settled,
            None => Done::Refused,
        };
        if self.format.json {
            output::json(&Released {
                name: self.name.clone(),
                removed,
            });
        } else if removed.is_some() {
            println!("`{}` is taken from {}", self.name, self.owner);
        } else {
            eprintln!(
                "lockctl: {} does not hold `{}`, and nothing was changed; see `lockctl status`",
                self.owner, self.name
            );
        }
        close(&*locks).await?;
        Ok(done)
    }
}

/// Gives back what the client has in the store; if that fails, it ends by itself.
async fn close(locks: &dyn DistributedLock) -> Result<Done, LockError> {
    let _ = locks.shutdown().await;
    Ok(Done::Settled)
}
