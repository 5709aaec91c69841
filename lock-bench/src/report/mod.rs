//! Reports that are made of the results.

pub(crate) mod docs;
pub(crate) mod json;
pub(crate) mod markdown;
pub(crate) mod plot;
pub(crate) mod targets;

#[cfg(test)]
pub(crate) mod tests {
    use crate::{
        holding::Held,
        idling::Idle,
        measure::{Figures, Row},
        passage::Passage,
        plan::Key,
        stores::Counts,
    };

    /// Results for tests.
    pub(crate) fn row(key: Key) -> Row {
        let figures = Figures {
            cycles_per_s: 1234.5,
            p50_ms: 0.75,
            p99_ms: 2.5,
            median_wait_ms: 0.5,
            p99_wait_ms: 1.0,
            longest_wait_ms: 4.0,
            rpcs_per_cycle: Some(2.0),
            messages_per_cycle: Counts(
                [("Txn".to_owned(), 2.0), ("Watch".to_owned(), 0.01)].into(),
            ),
            reads_per_cycle: Some(2.0),
            cpu_us_per_cycle: Some(40.0),
            passage: (key.processes > 1).then_some(Passage {
                hand_over_p50_ms: 0.5,
                hand_over_p99_ms: 1.0,
                handed_over: 1.0,
                smallest_share: 9.0,
                largest_share: 10.0,
            }),
            errors: 0,
        };
        Row {
            key,
            figures,
            rounds: vec![1200.0, 1234.5, 1300.0],
        }
    }

    pub(crate) fn idle() -> Idle {
        Idle {
            messages_per_s: 0.5,
        }
    }

    pub(crate) fn held(names: usize) -> Held {
        Held {
            names,
            leases: Some(1.0),
            reads_per_s: Some(0.01),
            renewals_per_s: 1.0,
            messages_per_s: 1.5,
            bytes_per_guard: 1500.0,
            seconds_to_acquire: 2.0,
        }
    }
}
