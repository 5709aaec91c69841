use std::{sync::Arc, time::Duration};

use etcd_client::{GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use lock_core::LockError;
use tokio::time::Instant;

use super::{BACKSTOP, View, Views};
use crate::{
    error::Failure,
    watch::{Event, Sink, Watch, Watched},
};

/// How a process far back in a queue waits until the turn of its first waiter is near: it does not follow the queue, or
/// every release would wake everybody, but watches the end of one entry not far ahead.
///
/// Where the same processes take turns that entry has the same key each time, so its watch stays open in between.
#[derive(Debug, Default)]
pub(super) struct Approach {
    bell: Option<(String, Watch)>,
}

/// What a view knows of an approach.
#[derive(Debug)]
pub(super) struct Approached {
    /// The entry at whose end the next approach should be over: where the same processes take turns, it is ahead again.
    pub(super) neighbour: Option<String>,
    /// How many places ahead it should be.
    distance: usize,
    /// The entry not far ahead: until it goes, the queue is not followed.
    pub(super) older: Option<String>,
    /// Whose end the bell tells.
    watched: String,
    /// When it last told of one.
    rung: i64,
    /// What happened before the watch was open is to be read.
    unread: bool,
    /// What there is to learn from this approach has been learnt.
    judged: bool,
}

/// After this the own entry is watched as well: its eviction is to be noticed, and few wait for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// How far ahead the neighbour is. Between its end and the own turn a watch is to be opened and the queue to be read, which
/// takes about as long as a few others hold the lock; but until then each release wakes all who are as near.
const NEAREST: usize = 2;
const FARTHEST: usize = 16;
/// As many may still be ahead when the queue has been read.
const IN_TIME: usize = 3;

impl Approach {
    /// Whether there is a watch that may serve the next waiter.
    pub(super) fn has_bell(&self) -> bool {
        self.bell.is_some()
    }

    /// Waits until the queue is to be followed.
    pub(super) async fn wait(&mut self, views: &Views, view: &Arc<View>) {
        loop {
            let Some(older) = view.state().approached.older.clone() else { return };
            self.watch(views, view, &older);
            wait_for_the_end_of(&older, views, view).await;
            let mut state = view.state();
            if state.approached.older.as_ref() == Some(&older) {
                state.approached.older = None;
            }
        }
    }

    fn watch(&mut self, views: &Views, view: &Arc<View>, older: &str) {
        if self.bell.as_ref().is_none_or(|(watched, _)| watched != older) {
            view.state().approached.watch(older);
            self.bell = Some((older.to_owned(), views.watch_end(view, older, older)));
        }
    }
}

async fn wait_for_the_end_of(older: &str, views: &Views, view: &Arc<View>) {
    let mut own: Option<(String, Watch)> = None;
    let mut look_again = Instant::now() + PATIENCE;
    while let Some((created, first)) = view.still_approaching(older) {
        if view.state().approached.take_unread() && !views.are_there(older, &first, created).await.unwrap_or_default() {
            return;
        }
        tokio::select! {
            () = view.wake.notified() => {}
            () = tokio::time::sleep_until(look_again) => {
                // Several are better served by following the queue: one watch for all.
                if view.state().queue.waiting() > 1 {
                    return;
                }
                if own.as_ref().is_none_or(|(watched, _)| *watched != first) {
                    own = Some((first.clone(), views.watch_end(view, &first, older)));
                }
                view.state().approached.unread = true;
                look_again = Instant::now() + BACKSTOP;
            }
        }
    }
}

impl Views {
    /// Rings for the approach to `older` when the entry under `key` goes.
    fn watch_end(&self, view: &Arc<View>, key: &str, older: &str) -> Watch {
        let bell = Bell { view: Arc::clone(view), approached: older.to_owned() };
        self.watches.open(Watched::Deletion(key.to_owned()), Arc::new(bell))
    }

    /// Whether an own entry is there, and an older one, which may have gone and come again since.
    async fn are_there(&self, older: &str, own: &str, created: i64) -> Result<bool, Failure> {
        let read = [older, own].map(|key| TxnOp::get(key, Some(GetOptions::new().with_keys_only())));
        let answer = self.cluster.txn(&Txn::new().and_then(read)).await?;
        let found: Vec<_> = answer.op_responses().iter().map(created_at).collect();
        Ok(matches!(found[..], [Some(older), Some(own)] if older < created && own == created))
    }
}

fn created_at(response: &TxnOpResponse) -> Option<i64> {
    match response {
        TxnOpResponse::Get(found) => found.kvs().first().map(KeyValue::create_revision),
        _ => None,
    }
}

impl Default for Approached {
    fn default() -> Self {
        Self { neighbour: None, distance: 4, older: None, watched: String::new(), rung: 0, unread: false, judged: true }
    }
}

impl Approached {
    fn watch(&mut self, older: &str) {
        older.clone_into(&mut self.watched);
        self.rung = 0;
    }

    fn take_unread(&mut self) -> bool {
        std::mem::take(&mut self.unread)
    }

    /// Learns from how many entries were still ahead when the queue was first read after an approach. `Some`: so far ahead
    /// should be the neighbour; else the one that there is is well chosen.
    pub(super) fn judge(&mut self, still_ahead: usize) -> Option<usize> {
        if std::mem::replace(&mut self.judged, true) {
            return self.neighbour.is_none().then_some(self.distance);
        }
        let gone = (self.rung > 0).then_some(&self.watched);
        match still_ahead {
            // The turn had come: whoever released it had to wait for the read.
            0 => self.distance = (self.distance + 2).min(FARTHEST),
            1..=IN_TIME if gone.is_some() => {
                self.neighbour = gone.cloned();
                return None;
            }
            _ if gone.is_some() => self.distance = (self.distance - 1).max(NEAREST),
            _ => {}
        }
        Some(self.distance)
    }

    /// Begins to approach with a waiter whose entry was created at this revision.
    pub(super) fn begin(&mut self, older: String, created: i64) {
        self.judged = false;
        // The bell of an earlier approach may have told of the end already.
        self.older = (self.watched != older || self.rung < created).then_some(older);
    }
}

impl View {
    /// The first waiter, while its turn is not near.
    fn still_approaching(&self, older: &str) -> Option<(i64, String)> {
        let state = self.state();
        state.approached.older.as_ref().filter(|approached| *approached == older).and_then(|_| state.queue.first_waiting())
    }
}

/// Tells a view that the entry that it approached has gone, or may have.
struct Bell {
    view: Arc<View>,
    approached: String,
}

impl Bell {
    fn ring(&self, at: i64) {
        let mut state = self.view.state();
        if state.approached.watched == self.approached {
            state.approached.older = None;
            state.approached.rung = state.approached.rung.max(at);
            drop(state);
            self.view.wake.notify_one();
        }
    }
}

impl Sink for Bell {
    fn opened(&self, _: i64) {
        self.view.state().approached.unread = true;
        self.view.wake.notify_one();
    }

    fn events(&self, revision: i64, _: Vec<Event>) {
        self.ring(revision);
    }

    fn interrupted(&self) {
        self.ring(0);
    }

    fn refused(&self, _: LockError) {
        self.ring(i64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung_at(revision: i64) -> Approached {
        let mut approached = Approached::default();
        approached.watch("older");
        approached.rung = revision;
        approached.judged = false;
        approached
    }

    fn judged(approached: &mut Approached, still_ahead: usize) -> Option<usize> {
        approached.judged = false;
        approached.judge(still_ahead)
    }

    #[test]
    fn an_end_that_was_told_before_the_approach_begins_ends_it() {
        let mut approached = rung_at(7);
        approached.begin("older".into(), 6);
        assert_eq!(approached.older, None);
        // It told of the end of an earlier entry with the same key.
        approached.begin("older".into(), 8);
        assert_eq!(approached.older.as_deref(), Some("older"));
        approached.begin("another".into(), 6);
        assert_eq!(approached.older.as_deref(), Some("another"));
    }

    #[test]
    fn the_neighbour_stays_while_it_goes_in_time() {
        let mut approached = rung_at(7);
        let distance = approached.distance;
        for still_ahead in 1..=IN_TIME {
            assert_eq!(judged(&mut approached, still_ahead), None);
            assert_eq!(approached.neighbour.as_deref(), Some("older"));
        }
        assert_eq!(judged(&mut approached, 0), Some(distance + 2), "too late");
        assert_eq!(approached.judge(0), None, "once for each approach");
        assert_eq!(judged(&mut approached, IN_TIME + 1), Some(distance + 1), "too early");
        for _ in 0..FARTHEST {
            judged(&mut approached, 0);
        }
        assert_eq!(approached.distance, FARTHEST);
        for _ in 0..FARTHEST {
            judged(&mut approached, IN_TIME + 1);
        }
        assert_eq!(approached.distance, NEAREST);
        assert_eq!(rung_at(0).judge(1), Some(distance), "no bell has rung yet");
    }
}
