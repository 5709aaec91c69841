use std::sync::Arc;

use tokio::time::Instant;

use crate::{error::Failure, transport::address::Address};

/// One sentinel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentinelReport {
    /// Grows with every failover that was agreed upon.
    pub(crate) epoch: u64,
    pub(crate) master: Address,
}

/// The master that is taken for current, until later reports name another one: synchronous, no I/O.
#[derive(Clone, Debug)]
pub(crate) struct KnownMaster {
    epoch: u64,
    pub(crate) master: Arc<Address>,
    since: Instant,
}

/// Answers of all sentinels, asked at once.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) reports: Vec<SentinelReport>,
    /// The number of were asked.
    pub(crate) sentinels: usize,
}

impl KnownMaster {
    /// Takes in a round; whether there is another master now.
    ///
    /// A later failover counts, however few know of it. Without one, who names another master may
    /// only be slow to learn; but a service that was removed and is monitored anew begins at epoch
    /// zero. So it then takes most of the sentinels, and they must have been asked after the last
    /// change.
    pub(crate) fn consider(known: &mut Option<Self>, round: &Survey) -> bool {
        let Some(best) = latest(&round.reports, known.as_ref().map(|known| &*known.master)) else {
            return false;
        };
        if let Some(known) = known {
            if *known.master == best.master {
                known.epoch = known.epoch.max(best.epoch);
                return false;
            }
            let is_agreed = round.is_by_most(&best.master) && round.began >= known.since;
            if best.epoch <= known.epoch && !is_agreed {
                return false;
            }
        }
        *known = Some(Self {
            epoch: best.epoch,
            master: Arc::new(best.master.clone()),
            since: round.ended,
        });
        true
    }
}

impl Survey {
    fn is_by_most(&self, master: &Address) -> bool {
        self.reports
            .iter()
            .filter(|report| report.master == *master)
            .count()
            * 2
            > self.sentinels
    }
}

/// The report of the latest failover; of several the one that most make, or that names the `known`
/// master.
fn latest<'a>(
    reports: &'a [SentinelReport],
    known: Option<&Address>,
) -> Option<&'a SentinelReport> {
    let alike = |report: &SentinelReport| reports.iter().filter(|other| *other == report).count();
    reports
        .iter()
        .max_by_key(|report| (report.epoch, alike(report), known == Some(&report.master)))
}

/// The failure that says most, of sentinels of which none has named a master.
pub(crate) fn most_specific(failures: Vec<Failure>) -> Failure {
    let says_why = |what: fn(&Failure) -> bool| failures.iter().position(what);
    let most = says_why(Failure::is_refusal)
        .or_else(|| says_why(Failure::is_handshake))
        .unwrap_or_default();
    failures
        .into_iter()
        .nth(most)
        .unwrap_or_else(|| Failure::timed_out().without_effect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Believes what three sentinels say in one round after the other, each in the second from
    /// `began` on.
    #[derive(Default)]
    struct Client {
        known: Option<KnownMaster>,
    }

    impl Client {
        fn hears(
            &mut self,
            zero: Instant,
            began: u64,
            took: u64,
            reports: &[(u64, &str)],
        ) -> String {
            let reports = reports
                .iter()
                .map(|(epoch, host)| SentinelReport {
                    epoch: *epoch,
                    master: Address::new(host, 1),
                })
                .collect();
            let began = zero + Duration::from_secs(began);
            KnownMaster::consider(
                &mut self.known,
                &Survey {
                    began,
                    ended: began + Duration::from_secs(took),
                    reports,
                    sentinels: 3,
                },
            );
            self.known
                .as_ref()
                .map_or(String::new(), |known| known.master.host.clone())
        }
    }

    #[test]
    fn the_latest_failover_counts_and_not_how_many_know_of_it() {
        let zero = Instant::now();
        let mut client = Client::default();
        assert_eq!(client.hears(zero, 0, 1, &[(4, "old"), (4, "old")]), "old");
        assert_eq!(
            client.hears(zero, 1, 1, &[(4, "old"), (5, "new"), (4, "old")]),
            "new"
        );
        assert_eq!(client.hears(zero, 2, 1, &[]), "new");
    }

    #[test]
    fn who_has_not_learned_of_a_failover_does_not_bring_the_old_master_back() {
        let zero = Instant::now();
        let mut client = Client::default();
        client.hears(zero, 0, 1, &[(4, "old")]);
        client.hears(zero, 2, 1, &[(5, "new")]);
        assert_eq!(
            client.hears(zero, 1, 9, &[(4, "old"), (4, "old"), (4, "old")]),
            "new",
            "a slow round"
        );
        assert_eq!(
            client.hears(zero, 20, 1, &[(4, "old")]),
            "new",
            "only one that is out of date answers"
        );
        assert_eq!(
            client.hears(zero, 21, 1, &[(4, "old"), (4, "old"), (5, "new")]),
            "new"
        );
    }

    #[test]
    fn a_service_that_is_monitored_anew_is_followed_when_most_say_so() {
        let zero = Instant::now();
        let mut client = Client::default();
        client.hears(zero, 0, 1, &[(5, "old")]);
        assert_eq!(client.hears(zero, 2, 1, &[(5, "old"), (0, "new")]), "old");
        assert_eq!(client.hears(zero, 3, 1, &[(0, "new")]), "old");
        assert_eq!(client.hears(zero, 4, 1, &[(0, "new"), (0, "new")]), "new");
        assert_eq!(
            client.hears(zero, 5, 1, &[(0, "old")]),
            "new",
            "the same epoch needs most, too"
        );
        assert_eq!(
            client.hears(zero, 6, 1, &[(0, "other"), (0, "new"), (0, "other")]),
            "other"
        );
        assert_eq!(client.hears(zero, 7, 1, &[(1, "next")]), "next");
    }

    #[test]
    fn the_same_master_under_an_earlier_epoch_is_no_step_back() {
        let zero = Instant::now();
        let mut client = Client::default();
        client.hears(zero, 0, 1, &[(5, "a")]);
        client.hears(zero, 2, 1, &[(0, "a"), (0, "a"), (0, "a")]);
        assert_eq!(client.hears(zero, 4, 1, &[(4, "old")]), "a");
    }

    #[test]
    fn without_an_answer_the_refusal_is_told() {
        let failure = |code: &str| {
            Failure::unsent(redis::make_extension_error(code.into(), Some("x".into())))
        };
        let kind =
            |codes: &[&str]| most_specific(codes.iter().map(|code| failure(code)).collect()).kind();
        assert_eq!(
            kind(&["LOADING", "NOAUTH", "LOADING"]),
            lock_core::ErrorKind::PermissionDenied
        );
        assert_eq!(kind(&[]), lock_core::ErrorKind::Unavailable);
    }
}
