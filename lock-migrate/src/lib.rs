//! Moves a running fleet of the distributed-lock framework from one backend to another: from Redis
//! to etcd above all.
//!
//! At no moment two processes hold one lock, fencing tokens never go back, and there is a way back
//! at every step. A [`MigratingLock`] stands before both stores and is a lock like any other; what
//! it does is a matter of its [`Phase`].
//!
//! # Phases
//!
//! | phase | locks in | a guard's token |
//! | --- | --- | --- |
//! | [`SourceOnly`](Phase::SourceOnly) | the source | the source's, `s` |
//! | [`Dual`](Phase::Dual) | the source, then the target | `t`, the larger of `s` and `e + floor` |
//! | [`TargetOnly`](Phase::TargetOnly) | the target | the target's, `e`, and the floor: `e + floor` |
//! | [`Final`](Phase::Final) | the target | `e + floor`, and the floor is read only once |
//!
//! The fleet is safe while its live processes are in at most two *adjacent* phases, for neighbours
//! share a lock. So a migration is three rolling deployments, to `Dual`, to `TargetOnly` and to
//! `Final`, each complete before the next begins; and the way back is the same in reverse. Locks
//! are taken in one order, source before target, so that phases cannot deadlock each other.
//!
//! Between the end of the last process in `SourceOnly` and the first in `TargetOnly`, let ten
//! seconds pass with a process in `Dual` alive; on the way back as well. See below for why.
//!
//! # A coordinator
//!
//! Instead of its configuration a [coordinated](MigratingLock::coordinated) client asks the target
//! which phase a name is in. An [`Operator`] makes a [`Plan`] for a prefix of names, and takes it
//! from phase to phase, forward and back; without one a name is in `SourceOnly`. All plans and the
//! latest changes are one record, written only if it is as the operator has seen it. So operators
//! may act at once, and one that dies leaves nothing half-done.
//!
//! Each process is a member: a record under a lease says how far it has followed. It registers
//! first and reads the plans then; it takes new locks in the phase that it has read, and reports a
//! phase when no guard of another is left. The next step waits for all members; the step back to
//! where they come from does not, because it brings no third phase. A guard is valid no longer than
//! the membership: who is not waited for any more holds nothing. Who is no member grants nothing.
//!
//! A plan's floor is raised only while the plan allows `Dual`, compared by the store as it writes:
//! so a floor is final once no plan allows it, whatever is still on its way. The operator raises it
//! beyond the source's tokens in the write that enters `TargetOnly`, and waits on the way back until
//! the source's tokens have passed the target's. It takes one renewal in a third of the target's TTL
//! for each process, a read and a write at each change of a plan, and nothing for an acquisition.
//!
//! # Tokens
//!
//! The [floor](FloorStore) is a number beside the target's locks that never decreases. A process in
//! `Dual` raises the source's counter to at least `t` and the floor to at least `t - e` before it
//! hands out the guard, while it holds both locks. In `TargetOnly` the floor is read as it was
//! while the lock was owned: in etcd, at the revision that is the token, so that neither a floor
//! from before nor one from after can be seen. One floor serves all names of a migration.
//!
//! A name that nobody locks in `Dual` has to go on, too. So each client in `Dual` looks every two
//! seconds how far the source's tokens have come, with an acquisition of a name of its own, and
//! keeps the floor ahead of them by five to ten seconds of Redis's clock, from which its tokens
//! come. It relies on tokens of one name being smaller than later ones of others, as on Redis. On
//! the way back the target's tokens may be ahead by that much: a client in `SourceOnly` that is
//! given the target waits until the source's have passed them.
//!
//! So each holder's token is greater than every earlier one's in any mix of two adjacent phases, on
//! the way back too, and through a loss of the source's data while nobody is in `SourceOnly`. After
//! such a loss nobody may enter `SourceOnly` for a TTL: until then a guard in `Dual` may not have
//! been told that its source lock is gone.
//!
//! # Proof
//!
//! [`Attempt`] decides each step of an acquisition, without I/O. `tests/model` runs it under every
//! interleaving of three processes that go from phase to phase in any order that is allowed, with
//! crashes, pauses beyond a deadline, locks that an operator takes away, other names that raise the
//! floor, and losses of the source's data: 2.1 million states, and 4.7 million more in the test that
//! is ignored unless asked for. Exclusion, growing tokens and the absence of deadlocks hold in all.
//! What is changed there deliberately is found:
//!
//! | flaw | what it breaks |
//! | --- | --- |
//! | `Dual` is skipped, so that three phases mix | exclusion |
//! | the guard is handed out before the target is taken | exclusion |
//! | the source is released while the guard is in use | exclusion |
//! | one process takes the target first | no deadlock |
//! | the target's tokens are presented without the floor | growing tokens |
//! | the floor is read before the target is owned | growing tokens |
//! | the floor is read as it is now, after an operator has taken the lock away | growing tokens |
//! | the floor is not raised | growing tokens |
//! | the source's counter is not raised | growing tokens, on the way back |
//! | the target's lock is not looked at again after the floor was raised | growing tokens |
//! | `Final` is entered while somebody is in `Dual` | growing tokens |
//! | `TargetOnly` is entered before anybody in `Dual` has looked at the source's tokens | growing tokens, of a name that nobody locked in `Dual` |
//! | `SourceOnly` is entered before its tokens have passed the target's | growing tokens, on the way back |
//!
//! [`Plan::decide`] and [`Member`] decide the coordination, without I/O either. The model runs them
//! with three processes, of which one joins in the middle, one or two operators that look, decide
//! and write, crashes, and pauses beyond a membership: 290,000 states, and more in the test that is
//! ignored. A migration is complete only when no guard of another phase is valid. Found are:
//!
//! | flaw of the coordination | what it breaks |
//! | --- | --- |
//! | a phase is reported while guards of the older one are left | exclusion |
//! | a guard outlives the membership | exclusion |
//! | a phase is relied on beyond the membership | exclusion |
//! | the operator goes on without all reports | exclusion |
//! | a process reads the plan before it registers | exclusion |
//! | the floor is not raised before `TargetOnly` | growing tokens |
//!
//! The same errors, made in parts around the real ones, show on a real Redis and a real etcd too
//! (`tests/flaws.rs`), and nothing shows without them:
//!
//! | error | the model's shortest way, in steps | the real test |
//! | --- | --- | --- |
//! | `Dual` is skipped | 14 | `phases_that_are_not_adjacent_have_two_holders` |
//! | the source is released while the guard is in use | 9 | `a_source_that_is_released_early_has_two_holders` |
//! | no floor | 19 | `without_a_floor_tokens_go_back` |
//! | the floor is read early | 19 | `a_floor_that_is_read_early_takes_tokens_back` |
//! | the source is not raised, on the way back | 21 | `a_source_that_is_not_raised_takes_tokens_back_on_the_way_back` |
//! | a report before the guards are gone | 14 | `a_report_before_the_guards_are_gone_leads_to_two_holders` |
//! | a guard outlives the membership | 14 | `a_guard_or_a_phase_that_outlives_the_membership_leads_to_two_holders` |
//! | a phase is relied on beyond the membership | 14 | the same |
//!
//! The order of the two releases is not among them: a guard has ended before either begins, so any
//! order is safe.
//!
//! # What a lock in two stores can do
//!
//! What both can; see [`capabilities`]. Its guard is valid while both of its locks are. If one is
//! lost, the guard is, and gives up the other at once, whatever its holder does. `inspect`, `watch`
//! and `list` tell of one holder: the entry in the target says, with the metadata, which one of the
//! source belongs to it. `force_release` removes both.

mod acquire;
mod capabilities;
mod client;
#[cfg(feature = "etcd")]
mod connector;
mod coordination;
mod error;
#[cfg(feature = "etcd")]
mod etcd_floor;
mod floor;
mod guard;
mod link;
mod lock;
mod merge;
mod observe;
mod phase;
mod prepare;
mod protocol;
mod stores;

pub use capabilities::capabilities;
#[cfg(feature = "etcd")]
pub use connector::MigrateConnector;
pub use coordination::{
    Evidence, Finding, FindingKind, HistoryEntry, LeaseHandle, MemRecords, Member, MemberReport,
    MemberStatus, NotProven, Operator, Order, Plan, PlanStatus, PlanStep, Plans, Preparation,
    Record, RecordLease, RecordStore, RecordWatch, RecordWrite, Refusal, Sighting, Status,
    Verification, Verified, Verifier, Write,
};
#[cfg(feature = "etcd")]
pub use etcd_floor::EtcdFloor;
pub use floor::{FloorStore, MemFloor};
pub use lock::{MigratingLock, MigratingLockBuilder};
pub use phase::Phase;
pub use protocol::{Attempt, Step};
