//! What verifications have found, as a record beside the target's locks.

use std::{fmt, time::Duration};

use lock_core::{ErrorKind, LockError};
use serde::{Deserialize, Serialize};

use super::{Finding, FindingKind, Plans, plans};

/// The result of a plan's verifications, as far as operators rely on it later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verified {
    format: u32,
    /// Milliseconds since 1970 of the latest one, by its operator's clock; 0 if there was none.
    pub at_ms: u64,
    /// The token that the source had come to.
    #[serde(default)]
    pub source_token: Option<u64>,
    /// The token that the target had come to, with the floor.
    #[serde(default)]
    pub target_token: Option<u64>,
    /// Who holds locks in the source without being a member, by name, the latest first: at most
    /// [`SIGHTINGS`](Self::SIGHTINGS).
    #[serde(default)]
    pub foreign: Vec<Sighting>,
    /// A number that nobody else draws, so that no two writes are equal.
    #[serde(default)]
    nonce: u64,
}

/// Somebody who is no member was seen to hold a lock in the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sighting {
    /// The lock.
    pub name: String,
    /// The owner id that was seen last.
    pub owner: String,
    /// It is an entry of this library's, thus of a process with another URL.
    pub is_ours: bool,
    /// Milliseconds since 1970, by the operator's clock.
    pub first_ms: u64,
    /// As [`first_ms`](Self::first_ms).
    pub last_ms: u64,
    /// The number of looks that found one.
    pub looks: u64,
}

impl Default for Verified {
    fn default() -> Self {
        Self {
            format: Plans::FORMAT,
            at_ms: 0,
            source_token: None,
            target_token: None,
            foreign: Vec::new(),
            nonce: 0,
        }
    }
}

impl Verified {
    /// The number of names of which it is remembered who held them.
    pub const SIGHTINGS: usize = 50;

    pub(super) fn parse(value: Option<&[u8]>) -> Result<Self, LockError> {
        let Some(value) = value else {
            return Ok(Self::default());
        };
        plans::check_format(value)?;
        serde_json::from_slice(value).map_err(plans::unreadable)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, LockError> {
        let mut written = self.clone();
        written.nonce = rand::random();
        serde_json::to_vec(&written).map_err(|error| {
            LockError::new(ErrorKind::Protocol, "the record cannot be written").caused_by(error)
        })
    }

    /// Adds what a look has found.
    pub(super) fn saw(&mut self, findings: &[Finding], now_ms: u64) {
        self.at_ms = self.at_ms.max(now_ms);
        let foreign = (findings.iter()).filter(|it| it.kind == FindingKind::ForeignInSource);
        for finding in foreign {
            let before = self.foreign.iter().position(|it| it.name == finding.name);
            let mut sighting = match before {
                Some(at) => self.foreign.remove(at),
                None => Sighting::new(&finding.name, now_ms),
            };
            sighting.owner.clone_from(&finding.owner);
            sighting.is_ours = finding.token.is_some();
            sighting.last_ms = now_ms;
            sighting.looks += 1;
            self.foreign.insert(0, sighting);
        }
        self.foreign.truncate(Self::SIGHTINGS);
    }

    /// Those who were seen in the time before `now_ms`.
    #[must_use]
    pub fn within(&self, window: Duration, now_ms: u64) -> Vec<Sighting> {
        let window = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let since = now_ms.saturating_sub(window);
        let seen = self.foreign.iter().filter(|it| it.last_ms > since);
        seen.cloned().collect()
    }
}

impl Sighting {
    fn new(name: &str, now_ms: u64) -> Self {
        Self {
            name: name.to_owned(),
            owner: String::new(),
            is_ours: false,
            first_ms: now_ms,
            last_ms: now_ms,
            looks: 0,
        }
    }
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.is_ours {
            true => "a process with another URL",
            false => "another library",
        };
        write!(f, "`{}` by {}, {whose}", self.name, self.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(name: &str, owner: &str) -> Finding {
        Finding {
            name: name.to_owned(),
            kind: FindingKind::ForeignInSource,
            owner: owner.to_owned(),
            token: None,
            member: None,
        }
    }

    #[test]
    fn who_was_seen_is_remembered_by_name_for_the_window() {
        let mut verified = Verified::default();
        verified.saw(&[foreign("a", "1")], 1_000);
        verified.saw(&[foreign("a", "2"), foreign("b", "3")], 4_000);
        verified.saw(&[], 5_000);
        let seen = |window, now| -> Vec<_> {
            let seen = verified.within(Duration::from_secs(window), now);
            seen.into_iter().map(|it| (it.name, it.owner)).collect()
        };
        assert_eq!(verified.at_ms, 5_000);
        assert_eq!(verified.foreign[1].looks, 2);
        assert_eq!(
            seen(2, 5_000),
            [("b".into(), "3".into()), ("a".into(), "2".into())]
        );
        assert_eq!(seen(1, 5_000), []);
        assert_eq!(seen(0, 4_000), []);
        // A clock that is behind that of who looked.
        assert_eq!(seen(1, 100).len(), 2);
        let bytes = verified.to_bytes().unwrap();
        let back = Verified::parse(Some(&bytes)).unwrap();
        assert_eq!(back.foreign, verified.foreign);
    }

    #[test]
    fn the_record_is_bounded_and_what_is_not_foreign_is_not_in_it() {
        let mut verified = Verified::default();
        for at in 0..Verified::SIGHTINGS as u64 + 5 {
            verified.saw(&[foreign(&at.to_string(), "1")], at);
        }
        assert_eq!(verified.foreign.len(), Verified::SIGHTINGS);
        assert_eq!(verified.foreign[0].name, "54");
        let mut orphan = foreign("orphan", "1");
        orphan.kind = FindingKind::OrphanInSource;
        verified.saw(&[orphan], 99);
        assert!(verified.foreign.iter().all(|it| it.name != "orphan"));
    }
}
