use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::GetOptions;
use futures_util::stream;
use lock_core::{
    LockError, LockInfo, LockList, LockName, LockWatch, Operation,
    backend::{WatchSource, bounded, locked, watch_holders},
};
use tokio::sync::Notify;

use crate::{
    BACKEND,
    core::Core,
    inspect::inspect,
    key::{self, Prefix},
    transport::{Watch, WatchEvent, WatchSink, WatchTarget, kv},
};

/// Watches who holds a lock.
pub(crate) fn watch(core: &Arc<Core>, name: &LockName) -> LockWatch {
    let change = Arc::new(Change {
        prefix: core.prefix(name),
        notify: Notify::new(),
        refused: Mutex::default(),
        holder: Mutex::default(),
    });
    let watched = WatchTarget::Prefix {
        prefix: change.prefix.as_str().to_owned(),
        creations: true,
    };
    let watch = core
        .watchers
        .watches()
        .open(watched, Arc::clone(&change) as _);
    watch_holders(Holders {
        core: Arc::clone(core),
        name: name.clone(),
        change,
        _watch: watch,
    })
}

struct Holders {
    core: Arc<Core>,
    name: LockName,
    change: Arc<Change>,
    _watch: Watch,
}

/// Signals that the holder may have changed.
struct Change {
    prefix: Prefix,
    notify: Notify,
    refused: Mutex<Option<LockError>>,
    /// The key of the latest known holder: other entries behind it change nothing.
    holder: Mutex<Option<String>>,
}

/// The period of reads without a reported change: covers events that a server loses.
const BACKSTOP: Duration = Duration::from_secs(30);

impl WatchSink for Change {
    fn opened(&self, _: i64) {
        // Changes between the latest read and this revision are not reported.
        self.notify.notify_one();
    }

    fn events(&self, _: i64, events: Vec<WatchEvent>) {
        let holder = locked(&self.holder);
        let concerns = |event: &WatchEvent| match &*holder {
            Some(holder) => event.key == holder.as_bytes(),
            None => self.prefix.has_entry(&event.key),
        };
        if events.iter().any(concerns) {
            self.notify.notify_one();
        }
    }

    fn interrupted(&self) {}

    fn refused(&self, error: LockError) {
        *locked(&self.refused) = Some(error);
        self.notify.notify_one();
    }
}

#[async_trait]
impl WatchSource for Holders {
    async fn look(&mut self) -> Result<Option<LockInfo>, LockError> {
        // A change during the read may concern the holder that it finds.
        *locked(&self.change.holder) = None;
        let refused = locked(&self.change.refused).take();
        let seen = match refused {
            Some(error) => Err(error),
            None => bounded(&self.core.guards, None, inspect(&self.core, &self.name)).await,
        };
        if let Ok(Some(info)) = &seen {
            *locked(&self.change.holder) = self.change.prefix.key_of(&info.holder().owner);
        }
        seen.map_err(|error| error.during(Operation::Watch).on(BACKEND).of(&self.name))
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.change.notify.notified() => {}
            () = self.core.guards.closing().fired() => {}
            () = tokio::time::sleep(BACKSTOP) => {}
        }
    }
}

/// The number of keys that one request of a list reads.
const PAGE: i64 = 1000;

/// Lists the held locks below a prefix, reading as the list is polled.
pub(crate) fn list(core: &Arc<Core>, prefix: &str) -> LockList {
    let start = format!("{}{prefix}", core.namespace).into_bytes();
    let core = Arc::clone(core);
    let prefix = prefix.to_owned();
    let names = Names {
        core,
        prefix,
        end: end_of(&start),
        from: Some(start),
        found: VecDeque::new(),
        seen: HashSet::new(),
    };
    LockList::new(stream::unfold(Some(names), async |names| {
        let mut names = names?;
        match names
            .next()
            .await
            .map_err(|error| error.during(Operation::List).on(BACKEND))
        {
            Ok(info) => Some((Ok(info?), Some(names))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Names {
    core: Arc<Core>,
    prefix: String,
    /// The start of the next page; `None` after the last.
    from: Option<Vec<u8>>,
    end: Vec<u8>,
    found: VecDeque<LockName>,
    /// Entries of a lock need not be adjacent: those of locks with longer names are between them.
    seen: HashSet<LockName>,
}

impl Names {
    async fn next(&mut self) -> Result<Option<LockInfo>, LockError> {
        loop {
            while let Some(name) = self.found.pop_front() {
                // It may have been released since.
                if let Some(info) =
                    bounded(&self.core.guards, None, inspect(&self.core, &name)).await?
                {
                    return Ok(Some(info));
                }
            }
            let Some(from) = self.from.take() else {
                return Ok(None);
            };
            self.page(from).await?;
        }
    }

    async fn page(&mut self, from: Vec<u8>) -> Result<(), LockError> {
        let options = GetOptions::new()
            .with_range(self.end.clone())
            .with_keys_only()
            .with_limit(PAGE);
        // The API has no empty key.
        let from = if from.is_empty() {
            b"\0".to_vec()
        } else {
            from
        };
        let page = self.core.cluster.call(|etcd| {
            let mut kv = kv(etcd);
            let from = from.clone();
            let options = options.clone();
            async move { kv.get(from, Some(options)).await }
        });
        let page = bounded(&self.core.guards, None, async {
            page.await.map_err(|failure| failure.error)
        })
        .await?;
        for kv in page.kvs() {
            let Some((name, _)) = key::parse(&self.core.namespace, kv.key()) else {
                continue;
            };
            // The slash before an entry may be the prefix's last.
            let is_asked_for = name.as_str().starts_with(&self.prefix);
            if is_asked_for
                && self.core.prefix(&name).describe_foreign(kv).is_none()
                && self.seen.insert(name.clone())
            {
                self.found.push_back(name);
            }
        }
        self.from = page
            .kvs()
            .last()
            .filter(|_| page.more())
            .map(|last| [last.key(), b"\0"].concat());
        Ok(())
    }
}

/// The end of the range of keys with a prefix; zero stands for the end of all keys.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX);
    last.map_or_else(
        || vec![0],
        |last| [&prefix[..last], &[prefix[last] + 1]].concat(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_keys_ends_behind_its_prefix() {
        for (prefix, end) in [("a/", &b"a0"[..]), ("", b"\0"), ("é", b"\xc3\xaa")] {
            assert_eq!(end_of(prefix.as_bytes()), end, "{prefix:?}");
        }
        assert_eq!(end_of(b"a\xff\xff"), b"b");
    }
}
