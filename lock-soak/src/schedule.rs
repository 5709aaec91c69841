use std::{fmt, time::Duration};

use crate::{rng::Rng, ttls::Ttls};

/// All faults of a round, which follow from its seed, its length and its shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Faults of the store, one after the other: the store is healthy in between.
    pub(crate) store: Vec<Step<StoreFault>>,
    /// Faults of the workers, one after the other, whatever happens to the store.
    pub(crate) workers: Vec<Step<WorkerFault>>,
}

/// The parts of a run that can be disturbed.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) members: usize,
    /// There is a second store besides: a single server, whose number is that after the members'.
    pub(crate) has_lone_server: bool,
    pub(crate) workers: usize,
    pub(crate) ttls: Ttls,
    /// Operations that an operator may carry out on the store.
    pub(crate) acts: &'static [Act],
    /// Ways in which the store may go back.
    pub(crate) returns: &'static [Return],
}

/// A fault, the time since the start of the round, and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step<F> {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) fault: F,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreFault {
    /// One member is killed, and started again after a while.
    Kill(Target),
    /// One member is stopped, and goes on after a while.
    Pause(Target),
    /// One member is cut off.
    Cut(Target, Side, Cut),
    /// Messages between clients and one member arrive this much later.
    Delay(Target, Duration),
    /// One member after the other is killed and started at once.
    RollingRestart,
    /// A majority is killed, and started again after a fraction of the TTL.
    Majority,
    /// All are killed, and started again after a fraction of the TTL.
    Blackout,
    /// An operator does something to a store that works.
    Act(Act),
    /// All members are stopped, and start again with data from some time before.
    GoBack(Return),
    /// The entry of an acquisition that is held for long is removed.
    Remove(Removal),
}

/// An act of an operator. One that takes something away from clients gives it back after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// etcd: drops all revisions but the last.
    Compact,
    /// etcd: rewrites the data of one member after the other.
    Defragment,
    /// etcd: makes another member the leader.
    MoveLeader,
    /// etcd: turns authentication on if it was off, and off if it was on.
    Authentication,
    /// etcd: changes what the role of the clients may do.
    Permission,
    /// Redis: closes all connections of clients.
    KillConnections,
    /// Redis: makes the server forget all scripts.
    FlushScripts,
    /// Redis: forbids the user of the clients to run scripts.
    Permissions,
    /// Redis: forbids the user of the clients to log in, and logs it out.
    User,
    /// Redis: changes settings that affect clients.
    Configure,
    /// Redis: saves its data in the background, and then reads it again.
    Reload,
}

/// The data with which a store starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// A copy of the files of each member.
    Copy,
    /// etcd: a snapshot, which makes the same cluster again.
    Snapshot,
    /// etcd: a member that was left behind leads alone (`--force-new-cluster`), and the others join
    /// it anew.
    Forced,
    /// No data.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nobody has the lock afterwards.
    Delete,
    /// Something that is none of the clients has the lock for a moment.
    Overwrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The member that leads at the time.
    Leader,
    Member(usize),
}

/// The links of a member that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Peers,
    Clients,
    Both,
}

/// Fate of the data sent over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It vanishes.
    Silent,
    /// The connection is closed.
    Refused,
    /// Requests arrive and take effect, but replies vanish.
    Replies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerFault {
    /// Killed, and replaced after a while.
    Kill(usize),
    /// Stopped, and goes on after a while, which may be longer than the TTL.
    Pause(usize),
    /// Cut off from stores that the others reach, for a while, which may be longer than the TTL.
    CutOff(usize, Link),
}

/// The stores that one worker is cut off from, of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Source,
    Target,
    Both,
}

const LINKS: [Link; 3] = [Link::Source, Link::Target, Link::Both];

const MILLI: Duration = Duration::from_millis(1);
/// The end of a round is quiet, so that all can come to an end.
const TAIL: Duration = Duration::from_secs(10);
/// Share of the request timeout that a slow server takes for an answer, in percent. A deadline
/// counted from the answer is then later than the end of the lease, while a client that has no
/// renewal under way yet still sends one in time.
const SLOW: std::ops::Range<u64> = 50..90;
/// The request timeout of a client.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

impl Schedule {
    pub(crate) fn new(seed: u64, length: Duration, shape: &Shape) -> Self {
        let end = length.saturating_sub(TAIL).max(length / 2);
        Self {
            store: store_steps(Rng::new(seed, 1), end, shape),
            workers: worker_steps(Rng::new(seed, 2), end, shape),
        }
    }
}

fn store_steps(mut rng: Rng, end: Duration, shape: &Shape) -> Vec<Step<StoreFault>> {
    let mut steps = Vec::new();
    let mut at = rng.duration(2000 * MILLI..5000 * MILLI);
    while at < end {
        let fault = match shape.returns.len() as u64 {
            0 => disturbance(&mut rng, shape),
            _ if !rng.one_in(8) => disturbance(&mut rng, shape),
            returns => StoreFault::GoBack(shape.returns[rng.below(returns) as usize]),
        };
        let ttl = shape.ttls.pick(&mut rng);
        let lasts = match fault {
            // Together with the time to come back, the outage stays well below the TTL.
            StoreFault::Majority | StoreFault::Blackout => rng.duration(200 * MILLI..ttl / 4),
            StoreFault::RollingRestart | StoreFault::Remove(_) => Duration::ZERO,
            StoreFault::Act(act) if !act.is_taken_back() => Duration::ZERO,
            StoreFault::Act(_) => rng.duration(100 * MILLI..ttl / 2),
            StoreFault::Delay(..) => rng.duration(ttl..ttl * 2),
            _ => rng.duration(300 * MILLI..ttl * 5 / 4),
        };
        steps.push(Step { at, lasts, fault });
        at += lasts + store_gap(&mut rng, shape);
    }
    steps
}

/// Picks the time until the next fault. Where every fault is an outage, some gaps are so long that
/// nothing in their second half has an excuse.
fn store_gap(rng: &mut Rng, shape: &Shape) -> Duration {
    if (shape.members == 1 || shape.has_lone_server) && rng.one_in(3) {
        let ttl = shape.ttls.pick(rng);
        rng.duration(ttl * 5 / 2..ttl * 4)
    } else {
        rng.duration(1500 * MILLI..5000 * MILLI)
    }
}

fn disturbance(rng: &mut Rng, shape: &Shape) -> StoreFault {
    if shape.members == 1 {
        let kind = rng.below(18);
        lone_fault(rng, kind, shape, Target::Member(0))
    } else if shape.has_lone_server && rng.one_in(3) {
        let kind = rng.below(ENTRIES);
        lone_fault(rng, kind, shape, Target::Member(shape.members))
    } else {
        store_fault(rng, shape)
    }
}

fn act(rng: &mut Rng, shape: &Shape) -> StoreFault {
    StoreFault::Act(shape.acts[rng.below(shape.acts.len() as u64) as usize])
}

fn store_fault(rng: &mut Rng, shape: &Shape) -> StoreFault {
    let target = if rng.one_in(2) {
        Target::Leader
    } else {
        Target::Member(rng.below(shape.members as u64) as usize)
    };
    let side = [Side::Peers, Side::Clients, Side::Both][rng.below(3) as usize];
    let cut = if rng.one_in(3) {
        Cut::Refused
    } else {
        Cut::Silent
    };
    match rng.below(19) {
        0..=3 => StoreFault::Kill(target),
        4..=6 => StoreFault::Pause(target),
        7..=11 => StoreFault::Cut(target, side, cut),
        12 => StoreFault::RollingRestart,
        13 => StoreFault::Majority,
        14 => StoreFault::Blackout,
        _ => act(rng, shape),
    }
}

/// The first kind of [`lone_fault`] that is about the store's entries.
const ENTRIES: u64 = 11;

/// Picks a fault of a store that is a single server.
fn lone_fault(rng: &mut Rng, kind: u64, shape: &Shape, target: Target) -> StoreFault {
    match kind {
        0..=2 => StoreFault::Kill(target),
        3 | 4 => StoreFault::Pause(target),
        5 => StoreFault::Cut(target, Side::Clients, Cut::Silent),
        6 => StoreFault::Cut(target, Side::Clients, Cut::Refused),
        7 | 8 => StoreFault::Cut(target, Side::Clients, Cut::Replies),
        // The delay counts on the way there, and once more on the way back.
        9 | 10 => StoreFault::Delay(
            target,
            REQUEST_TIMEOUT * (SLOW.start + rng.below(SLOW.end - SLOW.start)) as u32 / 200,
        ),
        ENTRIES | 12 => StoreFault::Remove(Removal::Delete),
        13 => StoreFault::Remove(Removal::Overwrite),
        _ => act(rng, shape),
    }
}

fn worker_steps(mut rng: Rng, end: Duration, shape: &Shape) -> Vec<Step<WorkerFault>> {
    let mut steps = Vec::new();
    let mut at = rng.duration(5000 * MILLI..10_000 * MILLI);
    while at < end {
        let worker = rng.below(shape.workers as u64) as usize;
        let ttl = shape.ttls.pick(&mut rng);
        let kinds = if shape.has_lone_server { 8 } else { 5 };
        let (fault, lasts) = match rng.below(kinds) {
            0 | 1 => (
                WorkerFault::Kill(worker),
                rng.duration(Duration::ZERO..2000 * MILLI),
            ),
            // A pause that everybody survives, and one that outlives the lease.
            2 | 3 => (
                WorkerFault::Pause(worker),
                rng.duration(100 * MILLI..ttl / 2),
            ),
            4 => (WorkerFault::Pause(worker), rng.duration(ttl..ttl * 3 / 2)),
            link => (
                WorkerFault::CutOff(worker, LINKS[(link - 5) as usize]),
                rng.duration(300 * MILLI..ttl * 3 / 2),
            ),
        };
        steps.push(Step { at, lasts, fault });
        // Each of the workers is met as often, however many there are.
        let share = (shape.workers as u32 / 4).max(1);
        at += lasts + rng.duration(8000 * MILLI..25_000 * MILLI) / share;
    }
    steps
}

impl Target {
    /// The member that is meant while `leader` leads.
    pub(crate) fn among(self, leader: usize) -> usize {
        match self {
            Self::Leader => leader,
            Self::Member(at) => at,
        }
    }
}

impl StoreFault {
    /// True if requests may fail while the fault lasts: without a majority, or on the only member.
    pub(crate) fn takes_majority(&self, members: usize) -> bool {
        match self {
            Self::Majority | Self::Blackout | Self::GoBack(_) => true,
            Self::Act(act) => act.is_taken_back(),
            Self::Kill(_)
            | Self::Pause(_)
            | Self::Cut(..)
            | Self::Delay(..)
            | Self::RollingRestart
                if members == 1 =>
            {
                true
            }
            Self::Kill(target)
            | Self::Pause(target)
            | Self::Cut(target, ..)
            | Self::Delay(target, _) => *target == Target::Member(members),
            Self::RollingRestart => false,
            Self::Remove(_) => false,
        }
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(target) => write!(f, "kill {target}"),
            Self::Pause(target) => write!(f, "pause {target}"),
            Self::Cut(target, side, cut) => {
                let side = match side {
                    Side::Peers => "its peers",
                    Side::Clients => "clients",
                    Side::Both => "all",
                };
                let how = match cut {
                    Cut::Silent => "silent",
                    Cut::Refused => "refused",
                    Cut::Replies => "replies lost",
                };
                write!(f, "cut {target} off from {side} ({how})")
            }
            Self::Delay(target, by) => write!(f, "delay {target} by {} ms", by.as_millis()),
            Self::RollingRestart => f.write_str("restart all members in turn"),
            Self::Majority => f.write_str("kill a majority"),
            Self::Blackout => f.write_str("kill all members"),
            Self::Act(act) => write!(f, "{act}"),
            Self::GoBack(Return::Copy) => f.write_str("go back to a copy of the data"),
            Self::GoBack(Return::Snapshot) => f.write_str("go back to a snapshot"),
            Self::GoBack(Return::Forced) => {
                f.write_str("force a new cluster of a member that was left behind")
            }
            Self::GoBack(Return::Nothing) => f.write_str("go back to nothing"),
            Self::Remove(Removal::Delete) => f.write_str("delete an entry that is held"),
            Self::Remove(Removal::Overwrite) => f.write_str("overwrite an entry that is held"),
        }
    }
}

impl Act {
    /// True if the act keeps clients from what they want until it is taken back.
    pub(crate) fn is_taken_back(self) -> bool {
        matches!(
            self,
            Self::Authentication | Self::Permission | Self::Permissions | Self::User
        )
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compact => "compact all revisions",
            Self::Defragment => "defragment all members",
            Self::MoveLeader => "move the leader",
            Self::Authentication => "switch authentication on or off",
            Self::Permission => "revoke the permission of the role",
            Self::KillConnections => "close all connections",
            Self::FlushScripts => "forget all scripts",
            Self::Permissions => "forbid the user scripts",
            Self::User => "lock the user out",
            Self::Configure => "configure the server anew",
            Self::Reload => "save and reload the data",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("the leader"),
            Self::Member(at) => write!(f, "member {at}"),
        }
    }
}

impl fmt::Display for WorkerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(worker) => write!(f, "kill worker {worker}"),
            Self::Pause(worker) => write!(f, "pause worker {worker}"),
            Self::CutOff(worker, link) => {
                let from = match link {
                    Link::Source => "the source",
                    Link::Target => "the target",
                    Link::Both => "both stores",
                };
                write!(f, "cut worker {worker} off from {from}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
