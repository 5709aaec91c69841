use super::{Terms, Violation, returns::noticed};
use crate::{
    event::Kind,
    history::{History, Span},
};

/// A guard is lost only where its entry was removed, where the store went back behind it, or where,
/// for at least half of its last lease, its process was stopped or the store was without a
/// majority: in the other half it could have been renewed.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        let Kind::Lost { ask, why } = &event.kind else {
            continue;
        };
        let Some(attempt) = history.attempts.get(ask) else {
            continue;
        };
        let ttl = terms
            .membership
            .map_or(attempt.ttl, |ttl| ttl.min(attempt.ttl));
        let grant = attempt.grant.as_ref();
        // A lock is lost then, too, if it was granted in between by a store that the client took
        // for the old one.
        let learns = |span: &Span| {
            span.from <= event.at && event.at <= noticed(history, event.process, *span)
        };
        if history.returns.iter().any(learns) {
            continue;
        }
        let taken = grant
            .map(|grant| [grant.removed, grant.undone.map(|span| span.from)])
            .into_iter()
            .flatten()
            .flatten();
        if taken.min().is_some_and(|at| at <= event.at) {
            continue;
        }
        // A process that was stopped reports the loss late. An obstacle after the deadline did not
        // cost it the lease.
        let end = grant.map_or(event.at, |grant| grant.deadline.min(event.at));
        let since = end.minus(ttl);
        let impeded = history.impeded(
            event.process,
            Span {
                from: since,
                to: end,
            },
        );
        if impeded < ttl / 2 {
            let message =
                format!("{ask} of a live holder was lost: {why}; it was impeded for {impeded:?}");
            return Err(Violation::new(message, since, event.at));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::story::{Story, at},
        check,
    };
    use std::time::Duration;

    use crate::event::{Ask, How, Kind};

    fn lost(story: Story, millis: u64) -> Story {
        story.then(
            millis,
            1,
            Kind::Lost {
                ask: Ask(1),
                why: "Expired".into(),
            },
        )
    }

    fn held() -> Story {
        Story::default().holds(0, 1, 1, 1)
    }

    #[test]
    fn a_loss_without_a_cause_breaks() {
        lost(held(), 9_000).breaks(check, "Expired");
        // Others' misfortune is no excuse, and neither is the loss of a single member.
        lost(held().pause(2, 100, 8_000), 9_000).breaks(check, "live holder");
        let member = Kind::FaultBegan {
            fault: "kill a member".into(),
            majority: false,
        };
        lost(held().then(100, 0, member), 9_000).breaks(check, "live holder");
        let long_ago = Story::default().pause(1, 0, 10_000);
        lost(long_ago.holds(12_000, 1, 1, 1), 22_000).breaks(check, "live holder");
    }

    #[test]
    fn a_long_pause_or_outage_is_a_cause() {
        lost(held().pause(1, 100, 11_000), 11_001).keeps(check);
        lost(held().outage(100, 5_100), 9_900).keeps(check);
        // Together they last long enough; when they overlap, they do not.
        lost(held().outage(1_000, 4_000).pause(1, 6_000, 8_000), 10_000).keeps(check);
        lost(held().outage(1_000, 4_000).pause(1, 3_000, 5_000), 10_000)
            .breaks(check, "impeded for 4s");
    }

    #[test]
    fn a_short_one_or_one_before_the_last_renewal_is_none() {
        lost(held().outage(100, 5_000), 9_900).breaks(check, "impeded for 4.9s");
        let renewed = held().outage(100, 6_000).then(
            9_000,
            1,
            Kind::Held {
                ask: Ask(1),
                valid_until: at(19_000),
            },
        );
        lost(renewed, 19_000).breaks(check, "impeded for 0ns");
    }

    #[test]
    fn one_after_the_deadline_is_none() {
        lost(held().pause(1, 10_100, 17_000), 17_001).breaks(check, "impeded for 0ns");
        lost(held().pause(1, 6_000, 17_000), 17_001).breaks(check, "impeded for 4s");
        lost(held().pause(1, 5_000, 17_000), 17_001).keeps(check);
    }

    #[test]
    fn a_short_lease_is_lost_in_a_short_outage() {
        let short = |until| {
            let asked = Kind::Asked {
                ask: Ask(1),
                register: 0,
                how: How::Wait,
                ttl: Duration::from_secs(2),
            };
            let granted = Kind::Granted {
                ask: Ask(1),
                token: 1,
                valid_until: at(2_000),
            };
            lost(
                Story::default()
                    .then(0, 1, asked)
                    .then(0, 1, granted)
                    .outage(100, until),
                1_999,
            )
        };
        short(1_100).keeps(check);
        short(1_000).breaks(check, "impeded for 900ms");
    }

    #[test]
    fn a_membership_that_is_shorter_than_the_lease_is_lost_first() {
        let story = || lost(held().outage(3_000, 5_100), 5_200);
        story().breaks(check, "impeded for 2.1s");
        story().of_members(Duration::from_secs(4)).keeps(check);
        story()
            .of_members(Duration::from_secs(5))
            .breaks(check, "impeded for 2.1s");
    }

    #[test]
    fn a_store_that_does_not_answer_is_a_cause() {
        let served =
            |story: Story, asked, millis| story.then(millis, 0, Kind::Served { asked: at(asked) });
        lost(served(served(held(), 90, 100), 5_000, 5_200), 9_900).keeps(check);
        lost(
            (0..20).fold(held(), |story, step| {
                served(story, step * 400, step * 400 + 1)
            }),
            9_900,
        )
        .breaks(check, "impeded for 0ns");
    }

    #[test]
    fn a_store_that_goes_back_is_a_cause() {
        lost(held().goes_back(100, 200), 300).keeps(check);
        lost(held().goes_back(400, 500), 300).breaks(check, "live holder");
        let granted_before_it_is_known = || Story::default().goes_back(1, 2).holds(3_000, 1, 1, 1);
        lost(granted_before_it_is_known(), 12_002).keeps(check);
        lost(granted_before_it_is_known(), 12_003).breaks(check, "live holder");
    }

    #[test]
    fn a_removal_is_a_cause_for_its_own_guard() {
        lost(held().removal(100, 1), 200).keeps(check);
        lost(held().removal(100, 2), 200).breaks(check, "live holder");
        lost(held().removal(300, 1), 200).breaks(check, "live holder");
    }
}
