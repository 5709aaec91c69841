use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lock_core::{
    OwnerId,
    backend::{Clock, locked},
};
use redis::Value;

use crate::{
    error::Failure,
    lines::Limits,
    link::Listener,
    quorum::{
        majority::Majority,
        member::{Member, Members},
        sight::Sight,
    },
    scripts::readable,
    watcher::{News, Place, Watcher},
};

/// What the servers report of the locks that somebody of this client waits for.
pub(crate) struct Sights {
    majority: Majority,
    news: Arc<News>,
    /// One for each line, as the last look that began shows it, with that look's number.
    known: Mutex<HashMap<Arc<str>, (u64, Sight)>>,
    looks: AtomicU64,
}

/// Hears what one server pushes.
pub(crate) struct Ear {
    server: usize,
    sights: Arc<Sights>,
}

/// A waiter's place in the line of its lock.
pub(crate) struct Waiting<'a> {
    /// Given up before the line is looked at for the last time.
    place: Option<Place>,
    key: Arc<str>,
    watcher: &'a Watcher,
    sights: &'a Sights,
}

/// What a look has shown.
#[derive(Debug)]
pub(crate) struct Look {
    /// When enough leases end, if no report comes before.
    pub(crate) ends_in: Option<Duration>,
    /// Some server cannot report changes.
    pub(crate) blind: bool,
    /// Whom a majority has. Otherwise what is not free may be on its way back from several who split the votes.
    pub(crate) owner: Option<OwnerId>,
    /// How many could be looked at.
    pub(crate) answered: usize,
    /// Those that could not.
    pub(crate) failures: Vec<(usize, Failure)>,
}

const CLOCK: Clock = Clock::Suspend;

impl Sights {
    pub(crate) fn new(majority: Majority, news: Arc<News>) -> Arc<Self> {
        Arc::new(Self { majority, news, known: Mutex::default(), looks: AtomicU64::new(0) })
    }

    pub(crate) fn ear(self: &Arc<Self>, server: usize) -> Arc<dyn Listener> {
        Arc::new(Ear { server, sights: Arc::clone(self) })
    }
}

impl fmt::Debug for Sights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sights").field("known", &locked(&self.known).len()).finish_non_exhaustive()
    }
}

impl Listener for Ear {
    fn changed(&self, key: &[u8]) {
        let Ok(key) = str::from_utf8(key) else { return };
        let worth_a_try = locked(&self.sights.known).get_mut(key).is_some_and(|(_, sight)| sight.reported(self.server));
        match worth_a_try {
            true => Listener::changed(&*self.sights.news, key.as_bytes()),
            false => self.sights.news.changed_for_holders(key),
        }
    }

    fn missed(&self, concerned: &dyn Fn(&str) -> bool) {
        for (_, (_, sight)) in locked(&self.sights.known).iter_mut().filter(|(key, _)| concerned(key)) {
            sight.reported(self.server);
        }
        Listener::missed(&*self.sights.news, concerned);
    }
}

impl<'a> Waiting<'a> {
    pub(crate) fn join(watcher: &'a Watcher, sights: &'a Sights, key: &Arc<str>, limits: Limits) -> Self {
        Self { place: Some(watcher.join(key, limits)), key: Arc::clone(key), watcher, sights }
    }

    pub(crate) fn place(&self) -> &Place {
        match &self.place {
            Some(place) => place,
            None => unreachable!("the place is given up by the drop alone"),
        }
    }

    /// Whether a majority may be free, as far as is known; forgets it, for what follows changes that.
    pub(crate) fn may_be_free(&self) -> bool {
        let mut known = locked(&self.sights.known);
        let free = known.get(&self.key).is_some_and(|(_, sight)| sight.may_be_free());
        if free {
            known.remove(&self.key);
        }
        free
    }

    /// The same without forgetting it.
    pub(crate) fn is_worth_a_try(&self) -> bool {
        locked(&self.sights.known).get(&self.key).is_some_and(|(_, sight)| sight.may_be_free())
    }

    /// Looks at the lock on every server, which then reports its next change.
    pub(crate) async fn look(&self, members: &Members) -> Look {
        let number = self.sights.looks.fetch_add(1, Ordering::Relaxed);
        locked(&self.sights.known).insert(Arc::clone(&self.key), (number, Sight::new(self.sights.majority)));
        let mut answers = members.ask(|member| look_at(member, Arc::clone(&self.key)));
        let (mut blind, mut owners, mut unanswered) = (false, Vec::new(), members.worth_waiting_for());
        while unanswered.contains(&true)
            && let Some((server, seen)) = answers.next().await
        {
            unanswered[server] = false;
            if let Some(seen) = seen {
                blind |= seen.blind;
                owners.push(seen.owner);
                self.update(number, |sight| sight.seen(server, CLOCK.now(), seen.held));
            }
        }
        self.update(number, Sight::complete);
        let ends = locked(&self.sights.known).get(&self.key).and_then(|(_, sight)| sight.ends());
        Look {
            ends_in: ends.map(|ends| ends.saturating_since(CLOCK.now())),
            blind,
            owner: common_owner(self.sights.majority, &owners).map(|owner| OwnerId::new(readable(owner))),
            answered: owners.len(),
            failures: answers.failures,
        }
    }

    /// Unless another look has begun: this one's waiter has lost its place, and what it was told is old.
    fn update(&self, look: u64, update: impl FnOnce(&mut Sight)) {
        if let Some((latest, sight)) = locked(&self.sights.known).get_mut(&self.key)
            && *latest == look
        {
            update(sight);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        drop(self.place.take());
        let mut known = locked(&self.sights.known);
        if self.watcher.nobody_waits(&self.key) {
            known.remove(&self.key);
        }
    }
}

struct Seen {
    held: Option<Option<Duration>>,
    owner: Option<Vec<u8>>,
    blind: bool,
}

/// The owner that a majority of the servers has.
fn common_owner(majority: Majority, owners: &[Option<Vec<u8>>]) -> Option<&Vec<u8>> {
    let has = |owner: &&Vec<u8>| owners.iter().flatten().filter(|other| other == owner).count() >= majority.needed();
    owners.iter().flatten().find(has)
}

async fn look_at(member: Arc<Member>, key: Arc<str>) -> Result<Seen, Failure> {
    let (connection, blind) = match member.tracking(&key).await {
        Ok(connection) => (connection, false),
        // A server or an access rule that does not allow tracking makes waiters poll.
        Err(failure) if failure.is_refusal() => (member.connection(&key).await?, true),
        Err(failure) => return Err(failure),
    };
    let mut both = redis::pipe();
    both.cmd("PTTL").arg(&*key).cmd("GET").arg(&*key);
    let mut answers = member.heard(connection.run_all(&both, 2).await)?.into_iter();
    let held = match answers.next() {
        Some(Ok(Value::Int(-2))) => None,
        Some(Ok(Value::Int(left))) => Some(u64::try_from(left).ok().map(Duration::from_millis)),
        Some(Err(failure)) => return Err(failure),
        _ => return Err(Failure::unexpected("no number in answer to PTTL")),
    };
    let owner = match answers.next() {
        Some(Ok(Value::BulkString(owner))) => Some(owner),
        _ => None,
    };
    Ok(Seen { held, owner, blind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_who_split_the_votes_are_no_owner() {
        let have = |servers, owners: &[&str]| {
            let owners: Vec<_> = owners.iter().map(|owner| (!owner.is_empty()).then(|| owner.as_bytes().to_vec())).collect();
            common_owner(Majority::of(servers), &owners).is_some()
        };
        assert!(have(3, &["a", "a", "b"]) && have(3, &["", "a", "a"]) && have(5, &["a", "b", "a", "b", "a"]));
        assert!(!have(3, &["a", "b", "c"]) && !have(3, &["a", "b"]) && !have(3, &["a", "", "b"]));
        assert!(!have(3, &["", "", ""]) && !have(4, &["a", "a", "b", "b"]), "two of four are none");
    }
}
