use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lock_core::{LockError, Terms, backend::locked};
use tokio::sync::oneshot;

use super::shared_lease::{Session, SessionContext};
use crate::error::runtime_ended;

/// The grants of sessions that are under way, and their results that no caller has fetched.
///
/// A grant cannot be taken back once it is requested. So it is a task of the client, which goes on
/// if its caller leaves, and its session goes to the next caller: a store that does not answer is
/// asked for no more sessions than there are callers at once.
#[derive(Clone, Default)]
pub(super) struct Grants(Arc<Table>);

type Table = Mutex<HashMap<SessionKind, Pending>>;

/// The properties of sessions that can stand in for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKind {
    pub(super) ttl: Duration,
    /// One session serves all callers, not one each.
    pub(super) shared: bool,
}

type Outcome = Result<Arc<Session>, LockError>;

#[derive(Default)]
struct Pending {
    callers: VecDeque<oneshot::Sender<Outcome>>,
    /// The number of grants under way.
    granting: usize,
    /// Sessions that were granted when their callers had left.
    spare: Vec<Arc<Session>>,
}

/// The time for which a spare session waits for another caller.
const SPARE_LIMIT: Duration = Duration::from_secs(5);

impl Grants {
    /// A new session, or a spare one.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(super) async fn session(
        &self,
        context: &Arc<SessionContext>,
        kind: SessionKind,
        terms: &Terms,
    ) -> Outcome {
        let (caller, answer) = oneshot::channel();
        let begin = {
            let mut table = locked(&self.0);
            let pending = table.entry(kind).or_default();
            while let Some(spare) = pending.spare.pop() {
                if spare.is_alive() && spare.is_current() {
                    return Ok(spare);
                }
            }
            pending.join(caller, kind)
        };
        if begin {
            let granting = Granting {
                table: Arc::downgrade(&self.0),
                kind,
                outcome: None,
            };
            context
                .tasks
                .spawn(granting.run(Arc::clone(context), terms.clone()));
        }
        answer.await.unwrap_or_else(|_| Err(runtime_ended()))
    }

    /// Revokes the spare sessions.
    pub(super) fn clear(&self) {
        let spare: Vec<_> = locked(&self.0)
            .values_mut()
            .flat_map(|pending| std::mem::take(&mut pending.spare))
            .collect();
        drop(spare);
    }
}

impl Pending {
    /// Adds a caller; tells whether it is to begin another grant.
    fn join(&mut self, caller: oneshot::Sender<Outcome>, kind: SessionKind) -> bool {
        self.callers.retain(|caller| !caller.is_closed());
        self.callers.push_back(caller);
        let wanted = if kind.shared { 1 } else { self.callers.len() };
        let begin = self.granting < wanted;
        self.granting += usize::from(begin);
        begin
    }

    /// Hands out the result of a grant.
    fn granted(&mut self, outcome: &Outcome, kind: SessionKind) {
        self.granting -= 1;
        let mut delivered = false;
        while (kind.shared || !delivered)
            && let Some(caller) = self.callers.pop_front()
        {
            delivered |= caller.send(outcome.clone()).is_ok();
        }
        if !delivered && let Ok(session) = outcome {
            self.spare.push(Arc::clone(session));
        }
    }

    fn is_idle(&self) -> bool {
        self.callers.is_empty() && self.granting == 0 && self.spare.is_empty()
    }
}

/// One grant under way. However it ends, its callers get an answer.
struct Granting {
    table: Weak<Table>,
    kind: SessionKind,
    outcome: Option<Outcome>,
}

impl Granting {
    async fn run(mut self, context: Arc<SessionContext>, terms: Terms) {
        let outcome = context.grant(&terms).await;
        let session = outcome.as_ref().ok().map(Arc::downgrade);
        let table = Weak::clone(&self.table);
        let kind = self.kind;
        self.outcome = Some(outcome);
        drop(self);
        let Some(session) = session else { return };
        if with(&table, kind, |pending| {
            pending
                .spare
                .iter()
                .any(|spare| std::ptr::eq(session.as_ptr(), &**spare))
        }) != Some(true)
        {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(SPARE_LIMIT) => {}
            () = context.closing.fired() => {}
        }
        let of_others = |spare: &Arc<Session>| !std::ptr::eq(session.as_ptr(), &**spare);
        let undelivered = with(&table, kind, |pending| {
            let (spare, undelivered) = std::mem::take(&mut pending.spare)
                .into_iter()
                .partition(of_others);
            pending.spare = spare;
            undelivered
        });
        drop::<Option<Vec<_>>>(undelivered);
    }
}

impl Drop for Granting {
    fn drop(&mut self) {
        // There is no outcome if the client's runtime has ended.
        let outcome = self.outcome.take().unwrap_or_else(|| Err(runtime_ended()));
        with(&self.table, self.kind, |pending| {
            pending.granted(&outcome, self.kind);
        });
    }
}

/// Changes the pending grants of a kind, unless the client is gone.
fn with<R>(
    table: &Weak<Table>,
    kind: SessionKind,
    change: impl FnOnce(&mut Pending) -> R,
) -> Option<R> {
    let table = table.upgrade()?;
    let mut table = locked(&table);
    let pending = table.get_mut(&kind)?;
    let changed = change(pending);
    if pending.is_idle() {
        table.remove(&kind);
    }
    Some(changed)
}

impl fmt::Debug for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grants")
            .field("kinds", &locked(&self.0).len())
            .finish_non_exhaustive()
    }
}
