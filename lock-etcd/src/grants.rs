use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lock_core::{LockError, Terms, backend::locked};
use tokio::sync::oneshot;

use crate::{
    error::runtime_ended,
    session::{Home, Session},
};

/// The sessions of a client that are being granted, or that were when nobody was there any more to have them.
///
/// A grant cannot be taken back once it is asked for. So it is a task of the client's, which goes on if its caller leaves, and
/// whoever comes next has what it brings: a store that does not answer is asked for no more sessions than there are callers at once.
#[derive(Clone, Default)]
pub(crate) struct Grants(Arc<Table>);

type Table = Mutex<HashMap<Kind, Pending>>;

/// What sessions have in common that can stand in for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) ttl: Duration,
    /// One for all callers, and not one for each.
    pub(crate) shared: bool,
}

type Outcome = Result<Arc<Session>, LockError>;

#[derive(Default)]
struct Pending {
    callers: VecDeque<oneshot::Sender<Outcome>>,
    /// Grants under way.
    granting: usize,
    /// What came when its caller had left.
    spare: Vec<Arc<Session>>,
}

/// How long a session is kept for whoever comes next.
const KEPT: Duration = Duration::from_secs(5);

impl Grants {
    /// A new session, or a spare one.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn session(&self, home: &Arc<Home>, kind: Kind, terms: &Terms) -> Outcome {
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
            let granting = Granting { table: Arc::downgrade(&self.0), kind, outcome: None };
            home.tasks().spawn(granting.run(Arc::clone(home), terms.clone()));
        }
        answer.await.unwrap_or_else(|_| Err(runtime_ended()))
    }

    /// Revokes what is spare.
    pub(crate) fn clear(&self) {
        let spare: Vec<_> = locked(&self.0).values_mut().flat_map(|pending| std::mem::take(&mut pending.spare)).collect();
        drop(spare);
    }
}

impl Pending {
    /// Says whether the caller is to begin another grant.
    fn join(&mut self, caller: oneshot::Sender<Outcome>, kind: Kind) -> bool {
        self.callers.retain(|caller| !caller.is_closed());
        self.callers.push_back(caller);
        let wanted = if kind.shared { 1 } else { self.callers.len() };
        let begin = self.granting < wanted;
        self.granting += usize::from(begin);
        begin
    }

    /// Hands out what a grant has brought.
    fn granted(&mut self, outcome: &Outcome, kind: Kind) {
        self.granting -= 1;
        let mut fetched = false;
        while (kind.shared || !fetched)
            && let Some(caller) = self.callers.pop_front()
        {
            fetched |= caller.send(outcome.clone()).is_ok();
        }
        if !fetched && let Ok(session) = outcome {
            self.spare.push(Arc::clone(session));
        }
    }

    fn is_idle(&self) -> bool {
        self.callers.is_empty() && self.granting == 0 && self.spare.is_empty()
    }
}

/// One grant under way. However it ends, its callers hear of it.
struct Granting {
    table: Weak<Table>,
    kind: Kind,
    outcome: Option<Outcome>,
}

impl Granting {
    async fn run(mut self, home: Arc<Home>, terms: Terms) {
        let outcome = home.grant_anew(&terms).await;
        let session = outcome.as_ref().ok().map(Arc::downgrade);
        let (table, kind) = (Weak::clone(&self.table), self.kind);
        self.outcome = Some(outcome);
        drop(self);
        let Some(session) = session else { return };
        if with(&table, kind, |pending| pending.spare.iter().any(|spare| std::ptr::eq(session.as_ptr(), &**spare))) != Some(true) {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(KEPT) => {}
            () = home.closing().cancelled() => {}
        }
        let of_others = |spare: &Arc<Session>| !std::ptr::eq(session.as_ptr(), &**spare);
        let unfetched = with(&table, kind, |pending| {
            let (spare, unfetched) = std::mem::take(&mut pending.spare).into_iter().partition(of_others);
            pending.spare = spare;
            unfetched
        });
        drop::<Option<Vec<_>>>(unfetched);
    }
}

impl Drop for Granting {
    fn drop(&mut self) {
        // Without an outcome where the client's runtime ends.
        let outcome = self.outcome.take().unwrap_or_else(|| Err(runtime_ended()));
        with(&self.table, self.kind, |pending| pending.granted(&outcome, self.kind));
    }
}

/// Changes what is pending of a kind, unless the client is gone.
fn with<R>(table: &Weak<Table>, kind: Kind, change: impl FnOnce(&mut Pending) -> R) -> Option<R> {
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
        f.debug_struct("Grants").field("kinds", &locked(&self.0).len()).finish_non_exhaustive()
    }
}
