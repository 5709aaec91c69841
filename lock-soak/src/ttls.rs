use std::{fmt, str::FromStr, time::Duration};

use crate::rng::Rng;

/// The TTLs that locks are acquired with, in whole seconds: a single one, or a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttls {
    least: u64,
    most: u64,
}

/// Distance from the shortest TTL within which most of them are, in seconds.
const BAND: u64 = 3;
/// One pick in this many is any of the range.
const ANY: u64 = 8;

impl Ttls {
    pub(crate) fn least(self) -> Duration {
        Duration::from_secs(self.least)
    }

    pub(crate) fn most(self) -> Duration {
        Duration::from_secs(self.most)
    }

    /// Most TTLs are not longer than this.
    pub(crate) fn usual(self) -> Duration {
        Duration::from_secs(self.most.min(self.least + BAND))
    }

    /// Picks mostly one of the shortest, which outages endanger most and which hide least from the
    /// checks; otherwise any.
    pub(crate) fn pick(self, rng: &mut Rng) -> Duration {
        let most = if rng.one_in(ANY) {
            self.most()
        } else {
            self.usual()
        };
        Duration::from_secs(self.least + rng.below(most.as_secs() - self.least + 1))
    }
}

impl FromStr for Ttls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        match (least.parse(), most.parse()) {
            (Ok(least), Ok(most)) if 0 < least && least <= most => Ok(Self { least, most }),
            _ => Err("a number of seconds, or a range of them as in 2..30".to_owned()),
        }
    }
}

impl fmt::Display for Ttls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            write!(f, "{}", self.least)
        } else {
            write!(f, "{}..{}", self.least, self.most)
        }
    }
}

impl From<Duration> for Ttls {
    fn from(ttl: Duration) -> Self {
        Self {
            least: ttl.as_secs(),
            most: ttl.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_one_or_a_range() {
        for text in ["10", "2..30"] {
            assert_eq!(text.parse::<Ttls>().unwrap().to_string(), text);
        }
        for text in ["", "0", "3..2", "2..", "2s", "1..2..3"] {
            assert!(text.parse::<Ttls>().is_err(), "{text}");
        }
    }

    #[test]
    fn are_picked_from_all_of_the_range_and_mostly_short() {
        let ttls = "2..30".parse::<Ttls>().unwrap();
        let mut rng = Rng::new(1, 1);
        let picked: Vec<_> = (0..2000).map(|_| ttls.pick(&mut rng).as_secs()).collect();
        assert!(
            (2..=30).all(|ttl| picked.contains(&ttl))
                && picked.iter().all(|ttl| (2..=30).contains(ttl))
        );
        assert!(picked.iter().filter(|ttl| **ttl <= 5).count() > 1600);
        assert_eq!(
            Ttls::from(Duration::from_secs(7)).pick(&mut rng),
            Duration::from_secs(7)
        );
    }
}
