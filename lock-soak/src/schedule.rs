use std::{fmt, time::Duration};

use crate::{rng::Rng, ttls::Ttls};

/// All faults of a round, which follow from its seed, its length and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// One after the other: the store is healthy in between.
    pub(crate) store: Vec<Step<StoreFault>>,
    /// One after the other, whatever happens to the store.
    pub(crate) workers: Vec<Step<WorkerFault>>,
}

/// What there is to disturb.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) members: usize,
    pub(crate) workers: usize,
    pub(crate) ttls: Ttls,
    /// What an operator may do to the store.
    pub(crate) acts: &'static [Act],
    /// How the store may go back.
    pub(crate) returns: &'static [Return],
}

/// A fault, since the begin of the round, and how long it lasts.
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
    /// What clients and one member say to each other arrives this much later.
    Delay(Target, Duration),
    /// One member after the other is killed and started at once.
    RollingRestart,
    /// A majority is killed, and started again after a fraction of the TTL.
    Majority,
    /// All are killed, and started again after a fraction of the TTL.
    Blackout,
    /// What an operator does to a store that works.
    Act(Act),
    /// All members are stopped, and start again with data of some time before.
    GoBack(Return),
    /// The entry of an acquisition that is held for long is taken away.
    Remove(Removal),
}

/// Of an operator. What takes something away from clients gives it back after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// etcd: drops all revisions but the last.
    Compact,
    /// etcd: rewrites the data of one member after the other.
    Defragment,
    /// etcd: has another member lead.
    MoveLeader,
    /// etcd: authentication is turned on if it was off, and off if it was on.
    Authentication,
    /// etcd: what the role of the clients may do.
    Permission,
    /// Redis: closes all connections of clients.
    KillConnections,
    /// Redis: the server knows no script any more.
    FlushScripts,
    /// Redis: the user of the clients may run no scripts.
    Permissions,
    /// Redis: the user of the clients may not log in, and is logged out.
    User,
    /// Redis: settings that reach clients.
    Configure,
    /// Redis: saves its data in the background, and then reads it again.
    Reload,
}

/// Which data a store starts again with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// A copy of the files of each member.
    Copy,
    /// etcd: a snapshot, which makes the same cluster again.
    Snapshot,
    /// None.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nobody has the lock then.
    Delete,
    /// Something has it for a moment that is none of the clients.
    Overwrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Whoever leads then.
    Leader,
    Member(usize),
}

/// Which links of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Peers,
    Clients,
    Both,
}

/// What becomes of what is sent over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It vanishes.
    Silent,
    /// The connection is closed.
    Refused,
    /// Requests arrive and take effect, the replies vanish.
    Replies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerFault {
    /// Killed, and replaced after a while.
    Kill(usize),
    /// Stopped, and goes on after a while, which may be longer than the TTL.
    Pause(usize),
}

const MILLI: Duration = Duration::from_millis(1);
/// The end of a round is quiet, so that all can come to an end.
const TAIL: Duration = Duration::from_secs(10);
/// How much of its request timeout a slow server takes for an answer, in percent: a deadline that counts from the answer is then
/// later than the end of the lease, and whoever has no renewal on its way yet sends one in time.
const SLOW: std::ops::Range<u64> = 50..90;
/// Of a client.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

impl Schedule {
    pub(crate) fn new(seed: u64, length: Duration, shape: &Shape) -> Self {
        let end = length.saturating_sub(TAIL).max(length / 2);
        Self { store: store_steps(Rng::new(seed, 1), end, shape), workers: worker_steps(Rng::new(seed, 2), end, shape) }
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
            // With the time to come back it stays well below the TTL.
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

/// Where every fault is an outage, some gaps are so long that nothing in their second half has an excuse.
fn store_gap(rng: &mut Rng, shape: &Shape) -> Duration {
    if shape.members == 1 && rng.one_in(3) {
        let ttl = shape.ttls.pick(rng);
        rng.duration(ttl * 5 / 2..ttl * 4)
    } else {
        rng.duration(1500 * MILLI..5000 * MILLI)
    }
}

fn disturbance(rng: &mut Rng, shape: &Shape) -> StoreFault {
    if shape.members == 1 { lone_fault(rng, shape) } else { store_fault(rng, shape) }
}

fn act(rng: &mut Rng, shape: &Shape) -> StoreFault {
    StoreFault::Act(shape.acts[rng.below(shape.acts.len() as u64) as usize])
}

fn store_fault(rng: &mut Rng, shape: &Shape) -> StoreFault {
    let target = if rng.one_in(2) { Target::Leader } else { Target::Member(rng.below(shape.members as u64) as usize) };
    let side = [Side::Peers, Side::Clients, Side::Both][rng.below(3) as usize];
    let cut = if rng.one_in(3) { Cut::Refused } else { Cut::Silent };
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

/// A fault of a store that is one server.
fn lone_fault(rng: &mut Rng, shape: &Shape) -> StoreFault {
    let target = Target::Member(0);
    match rng.below(18) {
        0..=2 => StoreFault::Kill(target),
        3 | 4 => StoreFault::Pause(target),
        5 => StoreFault::Cut(target, Side::Clients, Cut::Silent),
        6 => StoreFault::Cut(target, Side::Clients, Cut::Refused),
        7 | 8 => StoreFault::Cut(target, Side::Clients, Cut::Replies),
        // On the way there, and once more on the way back.
        9 | 10 => StoreFault::Delay(target, REQUEST_TIMEOUT * (SLOW.start + rng.below(SLOW.end - SLOW.start)) as u32 / 200),
        11 | 12 => StoreFault::Remove(Removal::Delete),
        13 => StoreFault::Remove(Removal::Overwrite),
        _ => act(rng, shape),
    }
}

fn worker_steps(mut rng: Rng, end: Duration, shape: &Shape) -> Vec<Step<WorkerFault>> {
    let mut steps = Vec::new();
    let mut at = rng.duration(5000 * MILLI..10_000 * MILLI);
    while at < end {
        let (worker, ttl) = (rng.below(shape.workers as u64) as usize, shape.ttls.pick(&mut rng));
        let (fault, lasts) = match rng.below(5) {
            0 | 1 => (WorkerFault::Kill(worker), rng.duration(Duration::ZERO..2000 * MILLI)),
            // A pause that everybody outlives, and one that outlives the lease.
            2 | 3 => (WorkerFault::Pause(worker), rng.duration(100 * MILLI..ttl / 2)),
            _ => (WorkerFault::Pause(worker), rng.duration(ttl..ttl * 3 / 2)),
        };
        steps.push(Step { at, lasts, fault });
        at += lasts + rng.duration(8000 * MILLI..25_000 * MILLI);
    }
    steps
}

impl Target {
    /// The member that is meant while this one leads.
    pub(crate) fn among(self, leader: usize) -> usize {
        match self {
            Self::Leader => leader,
            Self::Member(at) => at,
        }
    }
}

impl StoreFault {
    /// Whether requests may fail while it lasts: without a majority, or on the only member.
    pub(crate) fn takes_majority(&self, members: usize) -> bool {
        match self {
            Self::Majority | Self::Blackout | Self::GoBack(_) => true,
            Self::Act(act) => act.is_taken_back(),
            Self::Kill(_) | Self::Pause(_) | Self::Cut(..) | Self::Delay(..) | Self::RollingRestart => members == 1,
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
            Self::GoBack(Return::Nothing) => f.write_str("go back to nothing"),
            Self::Remove(Removal::Delete) => f.write_str("delete an entry that is held"),
            Self::Remove(Removal::Overwrite) => f.write_str("overwrite an entry that is held"),
        }
    }
}

impl Act {
    /// Whether it keeps clients from what they want until it is taken back.
    pub(crate) fn is_taken_back(self) -> bool {
        matches!(self, Self::Authentication | Self::Permission | Self::Permissions | Self::User)
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTS: &[Act] = &[Act::Compact, Act::Permission];
    const RETURNS: &[Return] = &[Return::Copy, Return::Nothing];

    fn shape(members: usize, ttl: u64) -> Shape {
        Shape { members, workers: 4, ttls: Duration::from_secs(ttl).into(), acts: ACTS, returns: &[] }
    }

    fn schedule_of(members: usize, seed: u64) -> Schedule {
        Schedule::new(seed, Duration::from_secs(600), &shape(members, 10))
    }

    fn schedule(seed: u64) -> Schedule {
        schedule_of(3, seed)
    }

    fn kind(fault: &StoreFault) -> String {
        fault.to_string().replace(char::is_numeric, "")
    }

    #[test]
    fn follows_from_the_seed() {
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
    }

    #[test]
    fn has_every_kind_of_fault_one_after_the_other_and_no_long_outage() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let schedule = schedule(seed);
            for pair in schedule.store.windows(2) {
                assert!(pair[0].at + pair[0].lasts < pair[1].at);
            }
            for step in &schedule.store {
                assert!(!step.fault.takes_majority(3) || step.lasts <= Duration::from_secs(5));
                kinds.insert(kind(&step.fault));
            }
        }
        // Kill, pause and six cuts of two targets; three others and two acts.
        assert_eq!(kinds.len(), 21, "{kinds:?}");
    }

    #[test]
    fn a_lone_server_has_faults_of_its_own() {
        let faults: Vec<_> = (0..20).flat_map(|seed| schedule_of(1, seed).store).map(|step| step.fault).collect();
        let kinds: std::collections::BTreeSet<_> = faults.iter().map(kind).collect();
        // Kill, pause, three cuts, a delay, two removals and two acts.
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        let is_no_outage = |fault: &_| matches!(fault, StoreFault::Remove(_) | StoreFault::Act(Act::Compact));
        assert!(faults.iter().all(|fault| fault.takes_majority(1) != is_no_outage(fault)));
    }

    #[test]
    fn goes_back_only_where_that_is_wanted() {
        let go_back = |shape: &Shape| {
            let steps = Schedule::new(1, Duration::from_secs(600), shape).store;
            steps.into_iter().filter(|step| matches!(step.fault, StoreFault::GoBack(_))).count()
        };
        assert_eq!(go_back(&shape(3, 10)), 0);
        assert!(go_back(&Shape { returns: RETURNS, ..shape(3, 10) }) > 3);
    }

    #[test]
    fn a_lone_server_is_left_alone_for_long_enough_at_times() {
        let steps = Schedule::new(1, Duration::from_secs(180), &shape(1, 3)).store;
        let quiet: Duration =
            steps.windows(2).map(|pair| pair[1].at - pair[0].at - pair[0].lasts).filter(|gap| *gap > Duration::from_secs(6)).sum();
        assert!(quiet > Duration::from_secs(40), "{quiet:?}");
    }
}
