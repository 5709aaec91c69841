//! What must be true of every history, one property in each file.

mod acquires_end;
mod clean_store;
mod errors;
mod exclusion;
mod fencing;
mod increments;
mod losses;
#[cfg(test)]
mod story;
mod tokens;
mod waits;

use std::time::Duration;

use crate::{event::Instant, history::History};

/// How a history breaks a property, and where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) message: String,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Violation {
    fn new(message: impl Into<String>, from: Instant, to: Instant) -> Self {
        Self { message: message.into(), from: from.min(to), to: to.max(from) }
    }
}

/// A property: the first way in which a history breaks it.
pub(crate) type Check = fn(&History, &Terms) -> Result<(), Violation>;

/// What the properties depend on.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) ttl: Duration,
}

/// All properties by name.
pub(crate) const ALL: &[(&str, Check)] = &[
    ("no increment is lost", increments::check),
    ("no two validity intervals overlap", exclusion::check),
    ("tokens grow in the order of grants", tokens::check),
    ("whose guard is valid is not refused", fencing::check),
    ("every acquire ends", acquires_end::check),
    ("waiters move on", waits::check),
    ("a live holder keeps its lock within the TTL", losses::check),
    ("calls fail only without a majority", errors::check),
    ("nothing is left in the store", clean_store::check),
];
