//! All locks that somebody holds.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{TryStreamExt, stream};
use lock_core::{LockError, LockInfo, LockList, LockName, Operation, backend::bounded};
use redis::Value;

use crate::{
    acquire::{Core, Via},
    capabilities::BACKEND,
    error::Failure,
    keys::Keys,
    scripts,
    transport::reconnect::Connection,
    transport::routing::Node,
};

/// Reads the keys of one server after the other, a page at a time.
struct Scan {
    core: Arc<Core>,
    /// Of the lock's keys.
    pattern: String,
    /// Those that have not been read to their ends; the first one is being read.
    servers: VecDeque<Arc<Node>>,
    /// What leads to that server, and how far it has been read. A place is of no use at another
    /// server.
    place: Option<(Connection, u64)>,
    /// A server may tell of a key twice, and so may two of which one gets it from the other.
    told: HashSet<LockName>,
}

/// The number of keys a server looks at for one page.
const PAGE: usize = 500;

/// Lists the locks whose names begin with `prefix`.
pub(crate) async fn list(core: &Arc<Core>, prefix: &str) -> Result<LockList, LockError> {
    let of_list = |error: LockError| error.during(Operation::List).on(BACKEND);
    let servers = bounded(&core.guards, None, async {
        Ok(core.servers.masters().await?)
    })
    .await
    .map_err(of_list)?;
    let pattern = format!("{}*", escaped(&[&core.prefix, prefix].concat()));
    let scan = Scan {
        core: Arc::clone(core),
        pattern,
        servers,
        place: None,
        told: HashSet::new(),
    };
    let pages = stream::try_unfold(scan, |mut scan| async move {
        let page = scan.page().await?;
        Ok::<_, LockError>(page.map(|page| (page, scan)))
    });
    Ok(LockList::new(
        pages
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten()
            .map_err(of_list),
    ))
}

impl Scan {
    async fn page(&mut self) -> Result<Option<Vec<LockInfo>>, LockError> {
        let core = Arc::clone(&self.core);
        bounded(&core.guards, None, async {
            let Some(server) = self.servers.front().map(Arc::clone) else {
                return Ok(None);
            };
            let (connection, keys) = self.keys(&server).await.map_err(Failure::without_effect)?;
            Ok(Some(
                self.held(&connection, keys)
                    .await
                    .map_err(Failure::without_effect)?,
            ))
        })
        .await
    }

    /// The next names on the server; moves on to the next one behind its last.
    async fn keys(&mut self, server: &Node) -> Result<(Connection, Vec<LockName>), Failure> {
        let (connection, answer) = match self.place.take() {
            Some((connection, place)) => {
                let answer = self.scan(&connection, place).await?;
                (connection, answer)
            }
            None => {
                let connection = server.commands.connection().await?;
                match self.scan(&connection, 0).await {
                    // It may have broken while it was idle.
                    Err(failure) if failure.ends_connection() => {
                        let connection = server.commands.connection().await?;
                        let answer = self.scan(&connection, 0).await?;
                        (connection, answer)
                    }
                    answer => (connection, answer?),
                }
            }
        };
        let (place, keys) = parse_page(&answer)
            .ok_or_else(|| Failure::unexpected("no page of keys in answer to SCAN"))?;
        match place {
            0 => drop(self.servers.pop_front()),
            place => self.place = Some((connection.clone(), place)),
        }
        // Companions are no names: they hold a control character.
        let names = keys
            .into_iter()
            .filter_map(|key| LockName::new(key.strip_prefix(&*self.core.prefix)?).ok());
        Ok((
            connection,
            names.filter(|name| !self.told.contains(name)).collect(),
        ))
    }

    async fn scan(&self, connection: &Connection, place: u64) -> Result<Value, Failure> {
        let mut scan = redis::cmd("SCAN");
        scan.arg(place)
            .arg("MATCH")
            .arg(&self.pattern)
            .arg("COUNT")
            .arg(PAGE)
            .arg("TYPE")
            .arg("string");
        connection.run(&scan).await
    }

    /// Those that somebody holds.
    async fn held(
        &mut self,
        connection: &Connection,
        names: Vec<LockName>,
    ) -> Result<Vec<LockInfo>, Failure> {
        let keys: Vec<_> = names
            .iter()
            .map(|name| Keys::new(&self.core.prefix, name))
            .collect();
        let answers = connection
            .run_script_for_all(&scripts::INSPECT, &keys, |_, _| {})
            .await?;
        let mut held = Vec::new();
        for ((name, keys), answer) in names.into_iter().zip(&keys).zip(answers) {
            let answer = match answer {
                // On its way to another server.
                Err(failure) if failure.redirection().is_some() || failure.is_try_again() => self
                    .core
                    .inspect(keys, Via::Commands)
                    .await
                    .map(|(answer, _)| answer),
                answer => answer,
            };
            let info = match answer {
                Err(failure) if failure.is_no_lock() => None,
                answer => scripts::parse_info(&name, &answer?)?,
            };
            if let Some(info) = info.filter(|_| self.told.insert(name)) {
                held.push(info);
            }
        }
        Ok(held)
    }
}

/// `{next place, {key, ..}}`; keys that are no text are left out.
fn parse_page(answer: &Value) -> Option<(u64, Vec<&str>)> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [Value::BulkString(place), Value::Array(keys)] = parts.as_slice() else {
        return None;
    };
    let keys = keys.iter().filter_map(|key| match key {
        Value::BulkString(key) => str::from_utf8(key).ok(),
        _ => None,
    });
    Some((str::from_utf8(place).ok()?.parse().ok()?, keys.collect()))
}

/// A pattern that matches the text and nothing else.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_what_it_was_made_of() {
        assert_eq!(escaped(r"a/\u{fc}{x}^-"), r"a/\\u{fc}{x}^-");
        assert_eq!(escaped(r"*?[x]\"), r"\*\?\[x\]\\");
    }

    #[test]
    fn a_page_is_a_place_and_keys() {
        let bulk = |text: &[u8]| Value::BulkString(text.to_vec());
        let page = |place| {
            Value::Array(vec![
                bulk(place),
                Value::Array(vec![bulk(b"a"), bulk(b"\xff"), bulk(b"b")]),
            ])
        };
        assert_eq!(parse_page(&page(b"17")), Some((17, vec!["a", "b"])));
        assert_eq!(
            (parse_page(&page(b"x")), parse_page(&Value::Nil)),
            (None, None)
        );
    }
}
