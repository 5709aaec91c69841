//! The store: one table in a file, changed under a file lock. The operating system frees that lock
//! when a process dies.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use lock_core::backend::Clock;
use rustix::fs::{FlockOperation, flock};

/// Holders: one row per name that was ever locked. A row without an owner keeps the last
/// token.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) token: u64,
    pub(crate) owner: Option<String>,
    /// On a clock that all processes of the machine share, and that counts through suspend.
    pub(crate) expires: Duration,
}

impl Table {
    /// Reads the table, lets `change` work on it, and writes it back: one process at a time.
    pub(crate) fn with<R>(
        directory: &Path,
        change: impl FnOnce(&mut Self, Duration) -> R,
    ) -> io::Result<R> {
        let gate = File::options()
            .create(true)
            .append(true)
            .open(directory.join("gate"))?;
        flock(&gate, FlockOperation::LockExclusive)?;
        let path = directory.join("table");
        let mut table = Self::read(&path)?;
        let result = change(&mut table, Clock::Suspend.now().since_origin());
        table.write(&path)?;
        Ok(result)
    }

    /// The row of a name that somebody holds at this instant.
    pub(crate) fn held(&mut self, name: &str, now: Duration) -> Option<&mut Row> {
        self.0
            .iter_mut()
            .find(|row| row.name == name && row.owner.is_some() && now < row.expires)
    }

    /// The row of a name, made if it is new.
    pub(crate) fn row(&mut self, name: &str) -> &mut Row {
        let at = self
            .0
            .iter()
            .position(|row| row.name == name)
            .unwrap_or_else(|| {
                self.0.push(Row {
                    name: name.into(),
                    token: 0,
                    owner: None,
                    expires: Duration::ZERO,
                });
                self.0.len() - 1
            });
        &mut self.0[at]
    }

    fn read(path: &PathBuf) -> io::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self(text.lines().filter_map(parse).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// A process that dies half-way leaves the old table.
    fn write(&self, path: &PathBuf) -> io::Result<()> {
        let rows = self.0.iter().map(|row| {
            let owner = row.owner.as_deref().unwrap_or("-");
            format!(
                "{} {owner} {} {}\n",
                row.token,
                row.expires.as_nanos(),
                row.name
            )
        });
        let fresh = path.with_extension("new");
        fs::write(&fresh, rows.collect::<String>())?;
        fs::rename(fresh, path)
    }
}

/// The name comes last: it may hold spaces, but no line break.
fn parse(line: &str) -> Option<Row> {
    let mut fields = line.splitn(4, ' ');
    let token = fields.next()?.parse().ok()?;
    let owner = fields
        .next()
        .filter(|owner| *owner != "-")
        .map(str::to_owned);
    let expires = Duration::from_nanos(fields.next()?.parse().ok()?);
    Some(Row {
        name: fields.next()?.into(),
        token,
        owner,
        expires,
    })
}
