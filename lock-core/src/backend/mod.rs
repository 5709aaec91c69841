//! Code that backends share, so that none writes it twice.
//!
//! | piece | what it does |
//! | --- | --- |
//! | [`Clock`], [`Moment`] | time that counts through suspend, or tokio's for tests |
//! | [`deadline`] | the rule from send instant and granted TTL to deadline |
//! | [`Lease`] | a deadline that many guards may share, latched once it has passed |
//! | [`LeaseKeeper`] | renews all leases of a client, in batches, and gives up what cannot be renewed in time |
//! | [`GuardSet`] | makes guards, releases them in the background, shuts down |
//! | [`GuardSet::call`] | begins an operation, and completes its errors |
//! | [`bounded`] | ends an acquire when its [`WaitLimit`] or its client does |
//! | [`StoreHealth`], [`WaitLimit`] | tell whether the store answers, and limit how long an acquire waits for it and for the lock |
//! | [`Tasks`], [`Removal`] | run a client's tasks, and repeat clean-ups elsewhere when their runtime ends |
//! | [`Pauses`] | pauses between attempts, which grow and have jitter |
//! | [`Watchdog`] | gives up attempts whose callers do not poll them |
//! | [`watch_holders`], [`WatchSource`] | watches who holds a lock, by looking again and again |
//! | [`Settings`], [`common_setters!`](crate::common_setters) | settings of every client, by builder and by URL |
//! | [`Signal`] | an event that fires once, for all who wait now or later |
//! | [`locked`] | locks a mutex even if a panic occurred while it was locked |
//!
//! A backend makes one [`GuardSet`] and one [`LeaseKeeper`] per client. To acquire it notes
//! [`Clock::now`], sends the request, makes a [`Lease`] from the granted TTL, hands the lease to
//! the keeper, and calls [`GuardSet::grant`].

mod call;
mod clock;
mod grant;
mod guard_set;
mod holder_watch;
mod lease;
mod lease_keeper;
mod observers;
mod pauses;
mod removal;
mod renewal;
mod renewal_handle;
mod renewal_queue;
mod runtime;
mod runtime_options;
mod settings;
mod signal;
mod store_health;
mod stored_acquisition;
mod stored_status;
mod tasks;
mod wait_limit;
mod watchdog;

pub use call::bounded;
pub(crate) use call::release_until_definite;
pub use clock::{Clock, Moment};
pub use grant::{Entry, Grant};
pub use guard_set::{GuardSet, LossTrigger, SHUTDOWN_LIMIT};
pub use holder_watch::{WatchSource, watch_holders};
pub use lease::Lease;
pub use lease_keeper::{LeaseKeeper, RenewOutcome, Renewer};
pub use pauses::Pauses;
pub use removal::{Leftover, Removal};
pub use renewal::deadline;
use renewal::{Renewal, RenewalStep};
pub use renewal_handle::RenewalHandle;
pub use runtime::{EXIT_LIMIT, ensure_runtime};
pub use runtime_options::RuntimeOptions;
pub use settings::{Settings, check_time};
pub use signal::Signal;
pub use store_health::StoreHealth;
pub use tasks::{Finish, Tasks};
pub use wait_limit::WaitLimit;
pub use watchdog::Watchdog;

pub use crate::sync::locked;
