//! What backends share, so that none writes it twice.
//!
//! | piece | what it does |
//! | --- | --- |
//! | [`Clock`], [`Moment`] | time that counts through suspend, or tokio's for tests |
//! | [`deadline`] | the rule from send instant and granted TTL to deadline |
//! | [`Lease`] | a deadline that many guards may share, latched once it has passed |
//! | [`Keeper`] | renews all leases of a client, in batches, and gives up what cannot be renewed in time |
//! | [`Holds`] | makes guards, releases them in the background, shuts down |
//! | [`bounded`] | ends an acquire when its [`Patience`] or its client does |
//! | [`Contact`], [`Patience`] | whether the store answers, and how long an acquire waits for it and for the lock |
//! | [`Tasks`], [`Removal`] | where a client's tasks run, and what becomes of clean-ups when that ends |
//! | [`Attended`] | gives up attempts whose callers do not poll them |
//! | [`locked`] | locks a mutex whatever panicked while it was locked |
//!
//! A backend makes one [`Holds`] and one [`Keeper`] per client. To acquire it notes [`Clock::now`], sends the request,
//! makes a [`Lease`] from the granted TTL, hands the lease to the keeper, and calls [`Holds::grant`].

mod attended;
mod clock;
mod contact;
mod holds;
mod home;
mod keeper;
mod lease;
mod renewal;
mod schedule;
mod tasks;

pub use attended::Attended;
pub use clock::{Clock, Moment};
pub use contact::{Contact, Patience};
pub(crate) use holds::release_until_definite;
pub use holds::{Entry, Grant, Holds, LossTrigger, SHUTDOWN_LIMIT, bounded};
pub use home::{EXIT_LIMIT, HomeOptions, Left, Removal, ensure_runtime};
pub use keeper::{Keep, Keeper, RenewOutcome, Renewer};
pub use lease::Lease;
pub use renewal::deadline;
use renewal::{Renewal, RenewalStep};
pub use tasks::{Finish, Tasks};

pub use crate::sync::locked;
