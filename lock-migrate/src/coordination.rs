//! The coordinator: which phase each prefix of names is in, kept in the target store.
//!
//! One record has all [plans](plans::Plans) and their history. One record for each
//! [member](member::Member), under its lease, says how far that process has followed. An
//! [`Operator`] changes the plans; members follow them.

mod both;
mod draining;
mod ending;
#[cfg(feature = "etcd")]
mod etcd_records;
mod floor;
mod joined;
mod mem_records;
mod member;
mod membership;
mod operator;
mod order;
mod plan;
mod plans;
mod records;
mod seen;
mod share;
mod source;
mod status;
mod ticket;
mod verified;
mod verifier;
mod verify;

pub(crate) use both::Both;
pub(crate) use floor::{RecordFloor, floor_name};
pub use mem_records::MemRecords;
pub use member::{Member, MemberReport, NotProven};
pub(crate) use membership::Membership;
pub use operator::Operator;
pub use order::{Evidence, Order, Preparation, Refusal, Step as PlanStep};
pub use plan::Plan;
#[cfg(feature = "etcd")]
pub(crate) use plans::is_complete;
pub use plans::{HistoryEntry, Plans};
pub use records::{LeaseHandle, Record, RecordLease, RecordStore, RecordWatch, RecordWrite, Write};
pub use status::{MemberStatus, PlanStatus, Status};
pub(crate) use ticket::Ticket;
pub use verified::{Sighting, Verified};
pub use verifier::{Verification, Verifier};
pub use verify::{Finding, FindingKind};
