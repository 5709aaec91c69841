//! Properties that every history must have, one in each file.

mod acquires_end;
mod clean_store;
mod entries;
mod errors;
mod exclusion;
mod exercise;
mod fencing;
mod increments;
mod losses;
mod orphans;
mod removals;
mod returns;
#[cfg(test)]
mod story;
mod throughput;
mod tokens;
mod waits;
mod wakes;
mod workers_end;

use std::time::Duration;

use crate::{event::Instant, history::History, ttls::Ttls};

/// A way in which a history breaks a property, and the place to look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) message: String,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Violation {
    fn new(message: impl Into<String>, from: Instant, to: Instant) -> Self {
        Self {
            message: message.into(),
            from: from.min(to),
            to: to.max(from),
        }
    }
}

/// A property: returns the first way in which a history breaks it.
pub(crate) type Check = fn(&History, &Terms) -> Result<(), Violation>;

/// Facts that the properties depend on.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) ttls: Ttls,
    pub(crate) clients: u32,
    /// Time after the cause of an error for which a call with a TTL may still fail.
    pub(crate) wait_limit: fn(Duration) -> Duration,
    /// True if a waiter of a store that is well has a free lock at once: no leases of dead clients,
    /// no elections, no slow polls.
    pub(crate) prompt: bool,
    /// The TTL of memberships in a migration: a guard is not valid for longer.
    pub(crate) membership: Option<Duration>,
    /// True if nothing was disturbed, and locks were held only briefly.
    pub(crate) steady: bool,
    /// True if a store that went back forgets tokens that it has handed out, so that no guard from
    /// before counts any more.
    pub(crate) forgets_tokens: bool,
}

/// All properties, by name.
pub(crate) const ALL: &[(&str, Check)] = &[
    ("no increment is lost", increments::check),
    ("no two validity intervals overlap", exclusion::check),
    ("tokens grow in the order of grants", tokens::check),
    ("whose guard is valid is not refused", fencing::check),
    ("every acquire ends", acquires_end::check),
    ("waiters move on", waits::check),
    ("a release wakes those who wait", wakes::check),
    ("a live holder keeps its lock within the TTL", losses::check),
    ("calls fail only without a majority", errors::check),
    ("no guard outlives its entry in the store", entries::check),
    ("what nobody got does not stay in the store", orphans::check),
    ("the removal of an entry is noticed", removals::check),
    (
        "who holds a lock learns that the store went back",
        returns::check,
    ),
    (
        "increments go on where nothing is disturbed",
        throughput::check,
    ),
    ("workers come to a good end", workers_end::check),
    ("nothing is left in the store", clean_store::check),
    ("locks were renewed and lost", exercise::check),
];
