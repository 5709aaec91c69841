use std::time::Duration;

use super::{Terms, Violation, returns::standstills};
use crate::{
    event::{Event, How, Instant, Kind},
    history::{Attempt, History, Span},
};

/// A shorter limit than a store on a loaded machine may need to answer: a caller who waits for less
/// is told that the store did not answer.
const IMPATIENT: Duration = Duration::from_millis(250);
/// Time that a client waits for a member that has fallen silent before it asks another one.
const SILENT_MEMBER: Duration = Duration::from_secs(2);

/// Messages of a client that takes no lock because the store went back.
const WENT_BACK: [&str; 2] = [
    "the store went back",
    "the store is another cluster than before",
];
/// Time after such an answer within which it is reported, on a loaded machine.
const REPORTED: Duration = Duration::from_secs(1);

/// A call fails only where the store was without a majority, or the process was stopped, no longer
/// ago than the call's patience lasts; or because the store went back, for as long as the client
/// may take no lock for that reason.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        let Some(error) = error_of(event) else {
            continue;
        };
        // However long the call had waited, the cause of its error is not older than its patience.
        let attempt = event.kind.ask().and_then(|ask| history.attempts.get(&ask));
        // By the end of this time a second member has been asked, too.
        let has_no_time = |(from, limit)| {
            let waited = Span { from, to: event.at };
            limit < IMPATIENT
                || limit < SILENT_MEMBER + IMPATIENT
                    && history
                        .troubles
                        .iter()
                        .any(|trouble| trouble.overlaps(waited))
        };
        if attempt
            .and_then(|attempt| limit(attempt, event))
            .is_some_and(has_no_time)
        {
            continue;
        }
        let says_it_went_back = WENT_BACK.iter().any(|text| error.contains(text));
        let stands_still = |attempt| {
            let spans = standstills(history, terms, attempt);
            spans
                .iter()
                .any(|span| span.from <= event.at && event.at <= span.to.plus(REPORTED))
        };
        if says_it_went_back && attempt.is_some_and(stands_still) {
            continue;
        }
        let ttl = attempt.map_or(terms.ttls.most(), |attempt| attempt.ttl);
        let begin = event.at.minus((terms.wait_limit)(ttl));
        if !history.excused(
            event.process,
            Span {
                from: begin,
                to: event.at,
            },
        ) {
            return Err(Violation::new(error, begin, event.at));
        }
    }
    Ok(())
}

/// The start of a call and the longest time that it was to take: a release ends with its guard.
fn limit(attempt: &Attempt, event: &Event) -> Option<(Instant, Duration)> {
    match (&event.kind, attempt.how) {
        (Kind::Ended { .. }, _) => attempt
            .grant
            .as_ref()
            .and_then(|grant| Some((grant.ending?, grant.deadline.since(grant.ending?)))),
        (_, How::Bounded(limit)) => Some((attempt.asked, limit)),
        _ => None,
    }
}

fn error_of(event: &Event) -> Option<String> {
    match &event.kind {
        Kind::Failed { ask, error } => Some(format!("{ask} failed: {error}")),
        Kind::Ended {
            ask,
            error: Some(error),
        } => Some(format!("the release of {ask} failed: {error}")),
        Kind::Closed { error: Some(error) } => Some(format!("a shutdown failed: {error}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use std::time::Duration;

    use crate::event::{Ask, How, Kind};

    fn failed(story: Story) -> Story {
        story.asks(0, 1, 1).then(
            26_000,
            1,
            Kind::Failed {
                ask: Ask(1),
                error: "unavailable".into(),
            },
        )
    }

    fn fault(majority: bool) -> Kind {
        Kind::FaultBegan {
            fault: "a fault".into(),
            majority,
        }
    }

    #[test]
    fn an_error_while_a_majority_is_there_breaks() {
        failed(Story::default().then(1, 0, fault(false))).breaks(check, "#0.1 failed: unavailable");
        failed(Story::default().then(20_000, 0, fault(true))).keeps(check);
        failed(Story::default().outage(1, 23_999)).breaks(check, "#0.1 failed");
        failed(Story::default().outage(1, 24_001)).keeps(check);
    }

    #[test]
    fn who_hardly_waits_may_not_get_an_answer() {
        let bounded = |millis| {
            let how = How::Bounded(Duration::from_millis(millis));
            let asked = Kind::Asked {
                ask: Ask(1),
                register: 0,
                how,
                ttl: Duration::from_secs(10),
            };
            Story::default().then(0, 1, asked).then(
                millis,
                1,
                Kind::Failed {
                    ask: Ask(1),
                    error: "no answer".into(),
                },
            )
        };
        bounded(249).keeps(check);
        bounded(250).breaks(check, "#0.1 failed: no answer");
    }

    #[test]
    fn who_has_no_time_for_a_second_member_may_not_get_an_answer_from_a_silent_one() {
        let bounded = |from, to, millis| {
            let how = How::Bounded(Duration::from_millis(millis));
            let asked = Kind::Asked {
                ask: Ask(1),
                register: 0,
                how,
                ttl: Duration::from_secs(10),
            };
            let fault = Story::default().then(from, 0, fault(false)).then(
                to,
                0,
                Kind::FaultEnded {
                    fault: "a fault".into(),
                },
            );
            fault.then(10_000, 1, asked).then(
                10_000 + millis,
                1,
                Kind::Failed {
                    ask: Ask(1),
                    error: "no answer".into(),
                },
            )
        };
        bounded(9_000, 10_000, 2_249).keeps(check);
        bounded(9_000, 10_000, 2_250).breaks(check, "#0.1 failed: no answer");
        bounded(9_000, 9_999, 2_249).breaks(check, "#0.1 failed: no answer");
        bounded(12_249, 13_000, 2_249).keeps(check);
        bounded(12_250, 13_000, 2_249).breaks(check, "#0.1 failed: no answer");
    }

    #[test]
    fn who_says_that_the_store_went_back_is_excused_until_it_may_take_locks_again() {
        let says = |story: Story, error: &str, millis| {
            story.asks(millis, 1, 2).then(
                millis,
                1,
                Kind::Failed {
                    ask: Ask(2),
                    error: error.into(),
                },
            )
        };
        let back = || Story::default().goes_back(1_000, 2_000);
        let text =
            "acquire on etcd: the store went back; guards of before may be valid for another 7s";
        // The client notices within 12 s, and is then quiet for a TTL of 10 s.
        says(back(), text, 25_000).keeps(check);
        says(back(), text, 25_001).breaks(check, "the store went back");
        says(back(), "unavailable", 25_000).breaks(check, "unavailable");
        says(back(), "the store is another cluster than before", 25_000).keeps(check);
        says(Story::default(), text, 25_000).breaks(check, "the store went back");
        // A later return does not explain an earlier error.
        says(Story::default().goes_back(26_000, 27_000), text, 25_000)
            .breaks(check, "the store went back");
        // A stopped process notices later.
        says(back().pause(1, 13_000, 30_000), text, 53_000).keeps(check);
        says(back().pause(1, 13_000, 30_000), text, 53_001).breaks(check, "the store went back");
        says(back().pause(2, 13_000, 30_000), text, 53_000).breaks(check, "the store went back");
        // A store whose tokens are never forgotten makes nobody wait.
        says(back(), text, 25_000)
            .prompt()
            .breaks(check, "the store went back");
    }

    #[test]
    fn how_long_it_says_so_depends_on_the_ttls_that_it_has_used() {
        let asked = |ttl| Kind::Asked {
            ask: Ask(1),
            register: 0,
            how: How::Wait,
            ttl: Duration::from_secs(ttl),
        };
        let held = |process, ttl| {
            Story::default()
                .then(0, process, asked(ttl))
                .releases(900, process, 1)
        };
        let says = |story: Story, millis| {
            let failed = Kind::Failed {
                ask: Ask(2),
                error: "the store went back".into(),
            };
            story
                .goes_back(1_000, 2_000)
                .asks(millis, 1, 2)
                .then(millis, 1, failed)
        };
        says(held(1, 30), 45_000).keeps(check);
        says(held(1, 30), 45_001).breaks(check, "the store went back");
        // The long TTL was another client's.
        says(held(2, 30), 45_000).breaks(check, "the store went back");
    }

    #[test]
    fn a_failed_release_breaks() {
        let ended = Kind::Ended {
            ask: Ask(1),
            error: Some("no answer".into()),
        };
        Story::default()
            .holds(0, 1, 1, 1)
            .then(5, 1, ended)
            .breaks(check, "the release of #0.1 failed");
        let ends = |millis| {
            let held = Story::default()
                .holds(0, 1, 1, 1)
                .then(100, 0, fault(false))
                .then(millis, 1, Kind::Ending { ask: Ask(1) });
            held.then(
                millis + 10,
                1,
                Kind::Ended {
                    ask: Ask(1),
                    error: Some("no answer".into()),
                },
            )
        };
        // The guard ends before another member is asked.
        ends(7_751).keeps(check);
        ends(7_750).breaks(check, "the release of #0.1 failed");
    }
}
