use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::backend::{Clock, locked};
use redis::Value;

use crate::{
    error::Failure,
    keys::lock_of,
    quorum::{
        free_majority::FreeMajority,
        majority::Majority,
        server::{QuorumServer, QuorumServers},
    },
    scripts::Holder,
    transport::reconnect::Listener,
    waiters::local::Limits,
    waiters::tracking::{Invalidations, Place, Watcher},
};

/// What the servers report of the locks that somebody of this client waits for.
pub(crate) struct TrackedLocks {
    majority: Majority,
    invalidations: Arc<Invalidations>,
    /// One for each queue, as the last look that began shows it, with that look's number.
    known: Mutex<HashMap<Arc<str>, (u64, FreeMajority)>>,
    looks: AtomicU64,
}

/// Hears what one server pushes.
pub(crate) struct ServerListener {
    server: usize,
    tracked_locks: Arc<TrackedLocks>,
}

/// A waiter's place in the queue of its lock.
pub(crate) struct QuorumWaiter<'a> {
    /// Given up before the queue is looked at for the last time.
    place: Option<Place>,
    key: Arc<str>,
    watcher: &'a Watcher,
    tracked_locks: &'a TrackedLocks,
}

/// Result of a look.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The instant at which enough leases end, if no report comes before.
    pub(crate) ends_in: Option<Duration>,
    /// Some server cannot report changes.
    pub(crate) blind: bool,
    /// Whom a majority has. Otherwise what is not free may be on its way back from several who
    /// split the votes.
    pub(crate) holder: Option<Holder>,
    /// Number of servers that could be looked at.
    pub(crate) answered: usize,
    /// Those that could not.
    pub(crate) failures: Vec<(usize, Failure)>,
}

const CLOCK: Clock = Clock::Suspend;

impl TrackedLocks {
    pub(crate) fn new(majority: Majority, invalidations: Arc<Invalidations>) -> Arc<Self> {
        Arc::new(Self {
            majority,
            invalidations,
            known: Mutex::default(),
            looks: AtomicU64::new(0),
        })
    }

    pub(crate) fn listener_of(self: &Arc<Self>, server: usize) -> Arc<dyn Listener> {
        Arc::new(ServerListener {
            server,
            tracked_locks: Arc::clone(self),
        })
    }
}

impl fmt::Debug for TrackedLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sights")
            .field("known", &locked(&self.known).len())
            .finish_non_exhaustive()
    }
}

impl Listener for ServerListener {
    fn changed(&self, key: &[u8]) {
        let Ok(key) = str::from_utf8(key) else { return };
        if lock_of(key) != Some(key) {
            // An entry in the queue, or nothing that anybody waits for.
            Listener::changed(&*self.tracked_locks.invalidations, key.as_bytes());
            return;
        }
        let worth_a_try = locked(&self.tracked_locks.known)
            .get_mut(key)
            .is_some_and(|(_, free)| free.reported(self.server));
        match worth_a_try {
            true => Listener::changed(&*self.tracked_locks.invalidations, key.as_bytes()),
            false => self.tracked_locks.invalidations.changed_for_holders(key),
        }
    }

    fn missed(&self, concerned: &dyn Fn(&str) -> bool) {
        for (_, (_, free)) in locked(&self.tracked_locks.known)
            .iter_mut()
            .filter(|(key, _)| concerned(key))
        {
            free.reported(self.server);
        }
        Listener::missed(&*self.tracked_locks.invalidations, concerned);
    }
}

impl<'a> QuorumWaiter<'a> {
    pub(crate) fn join(
        watcher: &'a Watcher,
        tracked_locks: &'a TrackedLocks,
        key: &Arc<str>,
        limits: Limits,
    ) -> Self {
        Self {
            place: Some(watcher.join(key, limits)),
            key: Arc::clone(key),
            watcher,
            tracked_locks,
        }
    }

    pub(crate) fn place(&self) -> &Place {
        match &self.place {
            Some(place) => place,
            None => unreachable!("the place is given up by the drop alone"),
        }
    }

    /// Returns whether a majority may be free, as far as is known; forgets it, for what follows
    /// changes that.
    pub(crate) fn may_be_free(&self) -> bool {
        let mut known = locked(&self.tracked_locks.known);
        let free = known
            .get(&self.key)
            .is_some_and(|(_, free)| free.may_be_free());
        if free {
            known.remove(&self.key);
        }
        free
    }

    /// The same without forgetting it.
    pub(crate) fn is_worth_a_try(&self) -> bool {
        locked(&self.tracked_locks.known)
            .get(&self.key)
            .is_some_and(|(_, free)| free.may_be_free())
    }

    /// Forgets what is known: its client is not first in the queue.
    pub(crate) fn forget(&self) {
        locked(&self.tracked_locks.known).remove(&self.key);
    }

    /// Looks at the lock on every server, which then reports its next change.
    pub(crate) async fn look(&self, quorum: &QuorumServers) -> Survey {
        let number = self.tracked_locks.looks.fetch_add(1, Ordering::Relaxed);
        locked(&self.tracked_locks.known).insert(
            Arc::clone(&self.key),
            (number, FreeMajority::new(self.tracked_locks.majority)),
        );
        self.place().listen(None);
        let mut answers = quorum.ask(|member| look_at(member, Arc::clone(&self.key)));
        let mut blind = false;
        let mut holders = Vec::new();
        let mut unanswered = quorum.responsive();
        while unanswered.contains(&true)
            && let Some((server, seen)) = answers.next().await
        {
            unanswered[server] = false;
            if let Some(seen) = seen {
                blind |= seen.blind;
                holders.push(seen.holder);
                self.update(number, |free| free.seen(server, CLOCK.now(), seen.held));
            }
        }
        self.update(number, FreeMajority::complete);
        let ends = locked(&self.tracked_locks.known)
            .get(&self.key)
            .and_then(|(_, free)| free.ends());
        Survey {
            ends_in: ends.map(|ends| ends.saturating_since(CLOCK.now())),
            blind,
            holder: common_holder(self.tracked_locks.majority, &holders).cloned(),
            answered: holders.len(),
            failures: answers.failures,
        }
    }

    /// Unless another look has begun: this one's waiter has lost its place, and what it was told is
    /// old.
    fn update(&self, look: u64, update: impl FnOnce(&mut FreeMajority)) {
        if let Some((latest, free)) = locked(&self.tracked_locks.known).get_mut(&self.key)
            && *latest == look
        {
            update(free);
        }
    }
}

impl Drop for QuorumWaiter<'_> {
    fn drop(&mut self) {
        drop(self.place.take());
        let mut known = locked(&self.tracked_locks.known);
        if self.watcher.nobody_waits(&self.key) {
            known.remove(&self.key);
        }
    }
}

struct ServerView {
    held: Option<Option<Duration>>,
    holder: Option<Holder>,
    blind: bool,
}

/// The one that a majority of the servers has.
fn common_holder(majority: Majority, holders: &[Option<Holder>]) -> Option<&Holder> {
    let has = |holder: &&Holder| {
        holders
            .iter()
            .flatten()
            .filter(|other| other == holder)
            .count()
            >= majority.needed()
    };
    holders.iter().flatten().find(has)
}

async fn look_at(member: Arc<QuorumServer>, key: Arc<str>) -> Result<ServerView, Failure> {
    let (connection, tracked) = member.tracking_or_commands(&key).await?;
    let mut both = redis::pipe();
    both.cmd("PTTL").arg(&*key).cmd("GET").arg(&*key);
    let mut answers = member
        .heard(connection.run_all(&both, 2).await)?
        .into_iter();
    let held = match answers.next() {
        Some(Ok(Value::Int(-2))) => None,
        Some(Ok(Value::Int(left))) => Some(u64::try_from(left).ok().map(Duration::from_millis)),
        Some(Err(failure)) => return Err(failure),
        _ => return Err(Failure::unexpected("no number in answer to PTTL")),
    };
    let holder = match answers.next() {
        Some(Ok(Value::BulkString(value))) => Some(Holder::of(&value, held == Some(None))),
        _ => None,
    };
    Ok(ServerView {
        held,
        holder,
        blind: !tracked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_who_split_the_votes_are_no_owner() {
        let have = |servers, owners: &[&str]| {
            let holders: Vec<_> = owners
                .iter()
                .map(|owner| (!owner.is_empty()).then(|| Holder::of(owner.as_bytes(), false)))
                .collect();
            common_holder(Majority::of(servers), &holders).is_some()
        };
        assert!(
            have(3, &["a", "a", "b"])
                && have(3, &["", "a", "a"])
                && have(5, &["a", "b", "a", "b", "a"])
        );
        assert!(!have(3, &["a", "b", "c"]) && !have(3, &["a", "b"]) && !have(3, &["a", "", "b"]));
        assert!(
            !have(3, &["", "", ""]) && !have(4, &["a", "a", "b", "b"]),
            "two of four are none"
        );
    }
}
