use std::time::Duration;

use crate::{AcquireOptions, Capabilities, ErrorKind, LockError, Mode};

/// [`AcquireOptions`] after [`AcquireOptions::resolve`]: every value is in range and supported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// The TTL to ask the store for, a multiple of its granularity.
    pub ttl: Duration,
    /// Longest wait for the lock.
    pub timeout: Option<Duration>,
    /// True if the lease is to be renewed.
    pub renew: bool,
    /// Time after which to stop renewing, counted from the acquisition.
    pub max_hold: Option<Duration>,
    /// A note for whoever inspects the lock.
    pub metadata: Option<String>,
    /// Mode of the acquisition.
    pub mode: Mode,
}

impl AcquireOptions {
    /// Checks the options against a backend and fills in its default TTL. A backend calls this
    /// first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOptions`] for a value out of range, [`ErrorKind::Unsupported`] for an
    /// option that the backend lacks.
    pub fn resolve(
        self,
        capabilities: &Capabilities,
        default_ttl: Duration,
    ) -> Result<Terms, LockError> {
        self.ensure_supported(capabilities)?;
        self.ensure_in_range()?;
        let ttl = ttl_in_range(self.ttl().unwrap_or(default_ttl), capabilities)?;
        let ttl = match self.max_hold().map(ttl_for) {
            // A stuck or dead holder's lock ends with its lease, which must be no longer than the
            // maximum hold.
            Some(enough) if enough < ttl => {
                ttl_in_range(enough.max(capabilities.ttl.min), capabilities)?
            }
            _ => ttl,
        };
        Ok(Terms {
            ttl,
            timeout: self.timeout(),
            renew: self.renews(),
            max_hold: self.max_hold(),
            mode: self.mode(),
            metadata: self.into_metadata(),
        })
    }

    fn ensure_supported(&self, capabilities: &Capabilities) -> Result<(), LockError> {
        let missing = if self.mode() == Mode::Shared && !capabilities.shared_mode {
            "shared mode; use Mode::Exclusive"
        } else if self.metadata().is_some() && !capabilities.metadata {
            "metadata; leave it out"
        } else {
            return Ok(());
        };
        let backend = capabilities.backend.clone();
        let message = format!("{backend} has no {missing}");
        Err(LockError::new(ErrorKind::Unsupported, message).on(backend))
    }

    fn ensure_in_range(&self) -> Result<(), LockError> {
        if self
            .metadata()
            .is_some_and(|metadata| metadata.len() > Self::MAX_METADATA)
        {
            return invalid(format!(
                "the metadata exceeds {} bytes; shorten it",
                Self::MAX_METADATA
            ));
        }
        for (what, value) in [
            ("timeout", self.timeout()),
            ("maximum hold", self.max_hold()),
        ] {
            match value {
                Some(Duration::ZERO) => {
                    return invalid(format!(
                        "the {what} is zero; leave it out for no bound, or use try_acquire not to wait"
                    ));
                }
                Some(value) if value > Self::MAX_DURATION => {
                    return invalid(format!(
                        "the {what} is over a hundred years; leave it out for no bound"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The least TTL whose [deadline](crate::backend::deadline) a hold of this length does not reach.
fn ttl_for(hold: Duration) -> Duration {
    // The deadline rule takes 1 % and 2 ms away.
    hold + hold / 99 + Duration::from_micros(2_500)
}

fn ttl_in_range(ttl: Duration, capabilities: &Capabilities) -> Result<Duration, LockError> {
    let range = capabilities.ttl;
    let backend = &capabilities.backend;
    if ttl < range.min {
        return invalid(format!(
            "the TTL of {ttl:?} is below {backend}'s minimum of {:?}; ask for at least that",
            range.min
        ));
    }
    if ttl > range.max {
        return invalid(format!(
            "the TTL of {ttl:?} is above {backend}'s maximum of {:?}; renewal keeps a shorter one alive",
            range.max
        ));
    }
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos());
    if let (Ok(ttl), Ok(step)) = (nanos(ttl), nanos(range.granularity))
        && let Some(rounded) = ttl.checked_next_multiple_of(step.max(1))
    {
        return Ok(Duration::from_nanos(rounded));
    }
    // Over 584 years.
    let step = range.granularity.as_nanos().max(1);
    let rounded = ttl.as_nanos().div_ceil(step) * step;
    Ok(Duration::new(
        (rounded / 1_000_000_000) as u64,
        (rounded % 1_000_000_000) as u32,
    ))
}

fn invalid<T>(message: String) -> Result<T, LockError> {
    Err(LockError::new(ErrorKind::InvalidOptions, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Consistency, TtlRange};

    fn store() -> Capabilities {
        let mut store = Capabilities::new("store", Consistency::BestEffort);
        store.ttl = TtlRange::new(
            Duration::from_secs(2),
            Duration::from_secs(3600),
            Duration::from_secs(1),
        );
        store
    }

    fn resolve(options: AcquireOptions) -> Result<Terms, LockError> {
        options.resolve(&store(), Duration::from_secs(30))
    }

    #[test]
    fn defaults_wait_and_renew_for_ever() {
        let terms = resolve(AcquireOptions::new()).unwrap();
        assert_eq!(
            (terms.ttl, terms.timeout, terms.renew, terms.max_hold),
            (Duration::from_secs(30), None, true, None)
        );
    }

    #[test]
    fn ttl_is_rounded_up_to_the_granularity() {
        let terms = resolve(AcquireOptions::new().with_ttl(Duration::from_millis(2001))).unwrap();
        assert_eq!(terms.ttl, Duration::from_secs(3));
    }

    #[test]
    fn the_lease_is_no_longer_than_the_maximum_hold() {
        for (ttl, most, expected) in [
            (30, 1.0, 2),
            (30, 2.5, 3),
            (30, 5.0, 6),
            (30, 29.9, 30),
            (30, 60.0, 30),
            (2, 60.0, 2),
        ] {
            let most = Duration::from_secs_f64(most);
            let terms = resolve(
                AcquireOptions::new()
                    .with_ttl(Duration::from_secs(ttl))
                    .with_max_hold(most),
            )
            .unwrap();
            assert_eq!(
                (terms.ttl, terms.max_hold),
                (Duration::from_secs(expected), Some(most))
            );
        }
        for hold in [1, 999, 1_000_000, 3_600_000_000_000].map(Duration::from_micros) {
            let sent = crate::backend::Moment::from_origin(Duration::from_secs(1));
            assert!(
                crate::backend::deadline(sent, ttl_for(hold)) >= sent + hold,
                "{hold:?}"
            );
        }
    }

    #[test]
    fn out_of_range_is_refused() {
        let new = AcquireOptions::new;
        for options in [
            new().with_ttl(Duration::ZERO),
            new().with_ttl(Duration::from_millis(1999)),
            new().with_ttl(Duration::MAX),
            new().with_timeout(Duration::ZERO),
            new().with_timeout(Duration::MAX),
            new().with_max_hold(Duration::ZERO),
            new().with_max_hold(Duration::MAX),
        ] {
            assert_eq!(
                resolve(options.clone()).unwrap_err().kind(),
                ErrorKind::InvalidOptions,
                "{options:?}"
            );
        }
    }

    #[test]
    fn missing_capabilities_are_unsupported() {
        for options in [
            AcquireOptions::new().with_mode(Mode::Shared),
            AcquireOptions::new().with_metadata("x"),
        ] {
            assert_eq!(
                resolve(options.clone()).unwrap_err().kind(),
                ErrorKind::Unsupported,
                "{options:?}"
            );
        }
    }
}
