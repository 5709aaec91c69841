use std::{
    fmt,
    ops::{Add, Sub},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Clock that a client reads for its deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clock {
    /// Keeps counting while the machine is suspended, as the store's clock does: `CLOCK_BOOTTIME`
    /// on Linux and Android, the equivalent elsewhere. For every backend that talks to a server.
    Suspend,
    /// Tokio's clock, which tests can pause and advance. For in-memory backends.
    Tokio,
}

/// An instant on a [`Clock`], to the nanosecond, up to 584 years after the clock's origin; instants
/// of different clocks do not compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

/// Puts tokio's instants, which may lie before the process's first look at the clock, safely above
/// zero.
const TOKIO_ORIGIN: Duration = Duration::from_secs(365 * 24 * 3600);

/// Timers do not run while the machine is suspended: look at the clock at least this often, so that
/// an instant that passed during a suspend is noticed this soon after it.
const RESUME_CHECK: Duration = Duration::from_secs(1);

impl Clock {
    /// The current instant.
    #[must_use]
    pub fn now(self) -> Moment {
        match self {
            Self::Suspend => Moment::from_origin(suspend_aware_now()),
            Self::Tokio => {
                static EPOCH: OnceLock<Instant> = OnceLock::new();
                let epoch = *EPOCH.get_or_init(Instant::now);
                let now = tokio::time::Instant::now().into_std();
                Moment::from_origin(match now.checked_duration_since(epoch) {
                    Some(after) => TOKIO_ORIGIN + after,
                    None => TOKIO_ORIGIN.saturating_sub(epoch.duration_since(now)),
                })
            }
        }
    }

    /// Sleeps until the instant; returns at once if it has passed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn sleep_until(self, moment: Moment) {
        loop {
            let left = moment.saturating_since(self.now());
            if left.is_zero() {
                return;
            }
            match self {
                Self::Suspend => tokio::time::sleep(left.min(RESUME_CHECK)).await,
                Self::Tokio => tokio::time::sleep(left).await,
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspend_aware_now() -> Duration {
    monotonic(rustix::time::ClockId::Boottime)
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
fn suspend_aware_now() -> Duration {
    monotonic(rustix::time::ClockId::Monotonic)
}

#[cfg(unix)]
fn monotonic(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    // Neither part is negative on a clock that counts from boot.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(not(unix))]
fn suspend_aware_now() -> Duration {
    // Windows: Instant is the performance counter, which includes time spent asleep.
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed() + TOKIO_ORIGIN
}

impl Moment {
    /// An instant from its distance to the clock's origin; for tests of synchronous rules.
    #[must_use]
    pub const fn from_origin(since: Duration) -> Self {
        Self(nanos(since))
    }

    /// The distance to the clock's origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// An instant from its [`nanos`](Self::nanos).
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The distance to the clock's origin in nanoseconds: the instant as one word, for an atomic.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this instant; zero if this is before it.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

const fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(duration.subsec_nanos() as u64)
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(nanos(after)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(before)))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} since origin", self.since_origin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokio_clock_follows_paused_time() {
        let before = Clock::Tokio.now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(
            Clock::Tokio.now().saturating_since(before),
            Duration::from_secs(3600)
        );
        Clock::Tokio
            .sleep_until(before + Duration::from_secs(7200))
            .await;
        assert_eq!(
            Clock::Tokio.now().saturating_since(before),
            Duration::from_secs(7200)
        );
    }

    #[test]
    fn instants_stay_within_their_range() {
        let last = Moment::from_origin(Duration::MAX);
        assert_eq!(last + Duration::from_secs(1), last);
        assert_eq!(
            Moment::from_origin(Duration::ZERO) - Duration::MAX,
            Moment::from_origin(Duration::ZERO)
        );
        assert_eq!(
            Moment::from_origin(Duration::new(7, 9)).since_origin(),
            Duration::new(7, 9)
        );
    }

    #[test]
    fn suspend_clock_does_not_go_back() {
        let first = Clock::Suspend.now();
        assert!(Clock::Suspend.now() >= first);
    }
}
