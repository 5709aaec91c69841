//! Names of the metrics; [`Metrics`](crate::Metrics) says what they mean.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Counter of acquires that have ended.
pub const ACQUISITIONS: &str = "lock_acquisitions_total";
/// Histogram of how long acquires took, in seconds.
pub const WAIT: &str = "lock_wait_seconds";
/// Gauge of acquires under way.
pub const WAITERS: &str = "lock_waiters";
/// Gauge of guards that are held.
pub const HOLDERS: &str = "lock_holders";
/// Histogram of how long guards were held, in seconds.
pub const HOLD: &str = "lock_hold_seconds";
/// Histogram of how long releases took, in seconds.
pub const RELEASE: &str = "lock_release_seconds";
/// Histogram of the time between two holders in this process, in seconds.
pub const HANDOVER: &str = "lock_handover_seconds";
/// Counter of guards that were lost.
pub const LOSSES: &str = "lock_losses_total";
/// Histogram of the time that was left at a renewal, in seconds.
pub const RENEWAL_MARGIN: &str = "lock_renewal_margin_seconds";
/// Counter of errors.
pub const ERRORS: &str = "lock_errors_total";

/// All of them.
pub const ALL: [&str; 10] = [
    ACQUISITIONS,
    WAIT,
    WAITERS,
    HOLDERS,
    HOLD,
    RELEASE,
    HANDOVER,
    LOSSES,
    RENEWAL_MARGIN,
    ERRORS,
];

/// Buckets for the histograms, in seconds: from a lock in memory to one that is held for an hour.
pub const BUCKETS: [f64; 19] = [
    0.0001, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 300.0, 3600.0,
];

/// Describes all metrics to the exporter that is installed.
pub fn describe_metrics() {
    describe_counter!(
        ACQUISITIONS,
        Unit::Count,
        "Acquires and try-acquires that have ended, by outcome."
    );
    describe_histogram!(WAIT, Unit::Seconds, "Duration of acquires, by outcome.");
    describe_gauge!(WAITERS, Unit::Count, "Acquires under way.");
    describe_gauge!(HOLDERS, Unit::Count, "Guards that are held.");
    describe_histogram!(
        HOLD,
        Unit::Seconds,
        "Time from a grant to the begin of its release, or to the loss."
    );
    describe_histogram!(RELEASE, Unit::Seconds, "Duration of releases, by outcome.");
    describe_histogram!(
        HANDOVER,
        Unit::Seconds,
        "Time from the end of a guard to the next grant within this process."
    );
    describe_counter!(LOSSES, Unit::Count, "Guards that were lost, by reason.");
    describe_histogram!(
        RENEWAL_MARGIN,
        Unit::Seconds,
        "Time that was left when a renewal was acknowledged."
    );
    describe_counter!(
        ERRORS,
        Unit::Count,
        "Errors by operation and kind, without timeouts and losses."
    );
}
