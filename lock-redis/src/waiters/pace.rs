use std::time::Duration;

use lock_core::backend::Moment;

/// How soon a report makes its hearer look again: synchronous, no I/O.
///
/// A server may report changes without end: somebody writes the key all the time, or the tracking
/// table is full, and every look is followed by a report that the key was dropped from it. So looks
/// have a least interval, which grows with each that found nothing new and came soon after the one
/// before. It is zero again once looks have become rare, or something has happened.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    longest: Duration,
    /// Looks in a row that found what the one before had found, and those that found a lease that
    /// ends at another time.
    unchanged: u32,
    changed: u32,
    /// The instant of the last one, and when what it found ends.
    last: Option<(Moment, Option<Moment>)>,
}

/// Looks that may follow each other at once although they found nothing new.
const FREE: u32 = 2;

/// The same where the lease has changed: it is renewed, or goes from hand to hand elsewhere.
const FREE_CHANGED: u32 = 256;

const FIRST: Duration = Duration::from_millis(1);

/// The longest interval where the lease has changed each time.
const LONGEST_CHANGED: Duration = Duration::from_millis(10);

/// Looks that are farther apart than this and two intervals cost little: those of a slow poll are.
const RARE: Duration = Duration::from_millis(140);

/// A lease that ends at the same time is found to do so with this error.
const SAME: Duration = Duration::from_millis(5);

impl Pace {
    /// With this interval at most.
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            unchanged: 0,
            changed: 0,
            last: None,
        }
    }

    /// A look has found a lease that ends then, or a key that does not end.
    pub(crate) fn looked(&mut self, now: Moment, ends: Option<Moment>) {
        if let Some((before, found)) = self.last.replace((now, ends)) {
            if now.saturating_since(before) > RARE + self.interval() * 2 {
                self.reset();
            }
            let same = match (found, ends) {
                (Some(found), Some(ends)) => {
                    found
                        .saturating_since(ends)
                        .max(ends.saturating_since(found))
                        <= SAME
                }
                (found, ends) => found == ends,
            };
            let count = match same {
                true => &mut self.unchanged,
                false => &mut self.changed,
            };
            *count = count.saturating_add(1);
        }
    }

    /// Something has happened that whoever looks was waiting for.
    pub(crate) fn reset(&mut self) {
        (self.unchanged, self.changed) = (0, 0);
    }

    /// Returns when a report may be followed by a look; at once if there is no such time.
    pub(crate) fn not_before(&self) -> Option<Moment> {
        let interval = self.interval();
        let (last, _) = self.last.filter(|_| !interval.is_zero())?;
        Some(last + interval)
    }

    fn interval(&self) -> Duration {
        let unchanged = doubled(self.unchanged.saturating_sub(FREE));
        let changed = doubled(self.changed.saturating_sub(FREE_CHANGED).div_ceil(8));
        unchanged
            .min(self.longest)
            .max(changed.min(LONGEST_CHANGED))
    }
}

/// Nothing at first, then doubled each time.
fn doubled(times: u32) -> Duration {
    match times {
        0 => Duration::ZERO,
        times => FIRST * 2_u32.pow((times - 1).min(16)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_millis(200);

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(1_000_000 + millis))
    }

    /// How many looks there are in ten seconds, each told of a change at once; what each finds ends
    /// then.
    fn looks(mut ends: impl FnMut(Moment) -> Option<Moment>) -> u32 {
        let mut pace = Pace::new(LONGEST);
        let mut now = at(0);
        for look in 0.. {
            if now > at(10_000) {
                return look;
            }
            pace.looked(now, ends(now));
            now = (now + Duration::from_micros(200)).max(pace.not_before().unwrap_or(now));
        }
        unreachable!("it ends")
    }

    #[test]
    fn reports_without_end_cost_no_more_than_a_slow_poll() {
        assert!(looks(|_| None) <= 62);
        assert!(looks(|_| Some(at(600_000))) <= 62);
        let mut at_random = 0;
        let changing = looks(|now| {
            at_random += 7;
            Some(now + Duration::from_millis(600_000 + at_random % 1000))
        });
        assert!(changing <= 1400, "{changing}");
    }

    #[test]
    fn renewals_and_rare_reports_are_not_held_up() {
        for interval in [150, 1000, 10_000] {
            let mut pace = Pace::new(LONGEST);
            for look in 0..1000 {
                pace.looked(at(look * interval), None);
                assert_eq!(pace.not_before(), None, "{look} of {interval}");
            }
        }
        // Of a lease of 100 ms.
        let mut pace = Pace::new(LONGEST);
        for look in 0..1000 {
            let now = at(look * 33);
            pace.looked(now, Some(now + Duration::from_millis(100)));
            let held_up = pace.not_before().map(|until| until.saturating_since(now));
            assert!(held_up <= Some(LONGEST_CHANGED), "{look}: {held_up:?}");
        }
    }

    #[test]
    fn what_happened_is_followed_at_once() {
        let mut pace = Pace::new(LONGEST);
        for look in 0..100 {
            pace.looked(at(look), None);
        }
        assert_eq!(pace.not_before(), Some(at(99) + LONGEST));
        pace.reset();
        assert_eq!(pace.not_before(), None);
    }

    proptest! {
        /// However looks follow each other and whatever they find, none is held up for longer than
        /// is said.
        #[test]
        fn no_interval_is_longer_than_the_longest(
            looks in prop::collection::vec((0..700_u64, prop::option::of(0..3_u64)), 1..300),
        ) {
            let mut pace = Pace::new(LONGEST);
            let mut now = at(0);
            for (pause, ends) in looks {
                now = now + Duration::from_millis(pause);
                pace.looked(now, ends.map(|ends| at(ends * 1_000_000)));
                prop_assert!(pace.not_before().is_none_or(|until| until <= now + LONGEST));
            }
        }
    }
}
