use std::{fmt, time::Duration};

use crate::rng::Rng;

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
    pub(crate) ttl: Duration,
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
    Chore,
    /// The entry of an acquisition that is held for long is taken away.
    Remove(Removal),
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
        let fault = if shape.members == 1 { lone_fault(&mut rng) } else { store_fault(&mut rng, shape) };
        let lasts = match fault {
            // With the time to come back it stays well below the TTL.
            StoreFault::Majority | StoreFault::Blackout => rng.duration(200 * MILLI..shape.ttl / 4),
            StoreFault::RollingRestart | StoreFault::Chore | StoreFault::Remove(_) => Duration::ZERO,
            StoreFault::Delay(..) => rng.duration(shape.ttl..shape.ttl * 2),
            _ => rng.duration(300 * MILLI..shape.ttl * 5 / 4),
        };
        steps.push(Step { at, lasts, fault });
        at += lasts + store_gap(&mut rng, shape);
    }
    steps
}

/// Where every fault is an outage, some gaps are so long that nothing in their second half has an excuse.
fn store_gap(rng: &mut Rng, shape: &Shape) -> Duration {
    if shape.members == 1 && rng.one_in(3) {
        rng.duration(shape.ttl * 5 / 2..shape.ttl * 4)
    } else {
        rng.duration(1500 * MILLI..5000 * MILLI)
    }
}

fn store_fault(rng: &mut Rng, shape: &Shape) -> StoreFault {
    let target = if rng.one_in(2) { Target::Leader } else { Target::Member(rng.below(shape.members as u64) as usize) };
    let side = [Side::Peers, Side::Clients, Side::Both][rng.below(3) as usize];
    let cut = if rng.one_in(3) { Cut::Refused } else { Cut::Silent };
    match rng.below(16) {
        0..=3 => StoreFault::Kill(target),
        4..=6 => StoreFault::Pause(target),
        7..=11 => StoreFault::Cut(target, side, cut),
        12 => StoreFault::RollingRestart,
        13 => StoreFault::Majority,
        14 => StoreFault::Blackout,
        _ => StoreFault::Chore,
    }
}

/// A fault of a store that is one server.
fn lone_fault(rng: &mut Rng) -> StoreFault {
    let target = Target::Member(0);
    match rng.below(16) {
        0..=2 => StoreFault::Kill(target),
        3 | 4 => StoreFault::Pause(target),
        5 => StoreFault::Cut(target, Side::Clients, Cut::Silent),
        6 => StoreFault::Cut(target, Side::Clients, Cut::Refused),
        7 | 8 => StoreFault::Cut(target, Side::Clients, Cut::Replies),
        // On the way there, and once more on the way back.
        9 | 10 => StoreFault::Delay(target, REQUEST_TIMEOUT * (SLOW.start + rng.below(SLOW.end - SLOW.start)) as u32 / 200),
        11 | 12 => StoreFault::Remove(Removal::Delete),
        13 => StoreFault::Remove(Removal::Overwrite),
        _ => StoreFault::Chore,
    }
}

fn worker_steps(mut rng: Rng, end: Duration, shape: &Shape) -> Vec<Step<WorkerFault>> {
    let mut steps = Vec::new();
    let mut at = rng.duration(5000 * MILLI..10_000 * MILLI);
    while at < end {
        let worker = rng.below(shape.workers as u64) as usize;
        let (fault, lasts) = match rng.below(5) {
            0 | 1 => (WorkerFault::Kill(worker), rng.duration(Duration::ZERO..2000 * MILLI)),
            // A pause that everybody outlives, and one that outlives the lease.
            2 | 3 => (WorkerFault::Pause(worker), rng.duration(100 * MILLI..shape.ttl / 2)),
            _ => (WorkerFault::Pause(worker), rng.duration(shape.ttl..shape.ttl * 3 / 2)),
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
            Self::Majority | Self::Blackout => true,
            Self::Kill(_) | Self::Pause(_) | Self::Cut(..) | Self::Delay(..) | Self::RollingRestart => members == 1,
            Self::Chore | Self::Remove(_) => false,
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
            Self::Chore => f.write_str("do an operator's chores"),
            Self::Remove(Removal::Delete) => f.write_str("delete an entry that is held"),
            Self::Remove(Removal::Overwrite) => f.write_str("overwrite an entry that is held"),
        }
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

    fn schedule_of(members: usize, seed: u64) -> Schedule {
        let shape = Shape { members, workers: 4, ttl: Duration::from_secs(10) };
        Schedule::new(seed, Duration::from_secs(600), &shape)
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
                assert!(!step.fault.takes_majority(3) || step.lasts < Duration::from_secs(5));
                kinds.insert(kind(&step.fault));
            }
        }
        // Kill, pause and six cuts of two targets; four others.
        assert_eq!(kinds.len(), 20, "{kinds:?}");
    }

    #[test]
    fn a_lone_server_has_faults_of_its_own() {
        let faults: Vec<_> = (0..20).flat_map(|seed| schedule_of(1, seed).store).map(|step| step.fault).collect();
        let kinds: std::collections::BTreeSet<_> = faults.iter().map(kind).collect();
        // Kill, pause, three cuts, a delay, two removals and the chores.
        assert_eq!(kinds.len(), 9, "{kinds:?}");
        assert!(faults.iter().all(|fault| fault.takes_majority(1) != matches!(fault, StoreFault::Remove(_) | StoreFault::Chore)));
    }

    #[test]
    fn a_lone_server_is_left_alone_for_long_enough_at_times() {
        let shape = Shape { members: 1, workers: 4, ttl: Duration::from_secs(3) };
        let steps = Schedule::new(1, Duration::from_secs(180), &shape).store;
        let quiet: Duration = steps.windows(2).map(|pair| pair[1].at - pair[0].at - pair[0].lasts).filter(|gap| *gap > shape.ttl * 2).sum();
        assert!(quiet > Duration::from_secs(40), "{quiet:?}");
    }
}
