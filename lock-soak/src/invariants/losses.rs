use super::{Terms, Violation};
use crate::{
    event::Kind,
    history::{History, Span},
};

/// A guard is lost only where its entry was removed, or where for half of its last lease or more its process was stopped or the store
/// without a majority: in the other half it could have been renewed.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        let Kind::Lost { ask, why } = &event.kind else { continue };
        let grant = history.attempts.get(ask).and_then(|attempt| attempt.grant.as_ref());
        if grant.and_then(|grant| grant.removed).is_some_and(|at| at <= event.at) {
            continue;
        }
        // One that was stopped says so late; what was in its way after the deadline did not cost it the lease.
        let end = grant.map_or(event.at, |grant| grant.deadline.min(event.at));
        let since = end.minus(terms.ttl);
        let impeded = history.impeded(event.process, Span { from: since, to: end });
        if impeded < terms.ttl / 2 {
            let message = format!("{ask} of a live holder was lost: {why}; it was impeded for {impeded:?}");
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
    use crate::event::{Ask, Kind};

    fn lost(story: Story, millis: u64) -> Story {
        story.then(millis, 1, Kind::Lost { ask: Ask(1), why: "Expired".into() })
    }

    fn held() -> Story {
        Story::default().holds(0, 1, 1, 1)
    }

    #[test]
    fn a_loss_without_a_cause_breaks() {
        lost(held(), 9_000).breaks(check, "Expired");
        // What happens to others is no excuse, and a single member is none.
        lost(held().pause(2, 100, 8_000), 9_000).breaks(check, "live holder");
        let member = Kind::FaultBegan { fault: "kill a member".into(), majority: false };
        lost(held().then(100, 0, member), 9_000).breaks(check, "live holder");
        let long_ago = Story::default().pause(1, 0, 10_000);
        lost(long_ago.holds(12_000, 1, 1, 1), 22_000).breaks(check, "live holder");
    }

    #[test]
    fn a_long_pause_or_outage_is_a_cause() {
        lost(held().pause(1, 100, 11_000), 11_001).keeps(check);
        lost(held().outage(100, 5_100), 9_900).keeps(check);
        // Together they last long enough; where they overlap, they do not.
        lost(held().outage(1_000, 4_000).pause(1, 6_000, 8_000), 10_000).keeps(check);
        lost(held().outage(1_000, 4_000).pause(1, 3_000, 5_000), 10_000).breaks(check, "impeded for 4s");
    }

    #[test]
    fn a_short_one_or_one_before_the_last_renewal_is_none() {
        lost(held().outage(100, 5_000), 9_900).breaks(check, "impeded for 4.9s");
        let renewed = held().outage(100, 6_000).then(9_000, 1, Kind::Held { ask: Ask(1), valid_until: at(19_000) });
        lost(renewed, 19_000).breaks(check, "impeded for 0ns");
    }

    #[test]
    fn one_after_the_deadline_is_none() {
        lost(held().pause(1, 10_100, 17_000), 17_001).breaks(check, "impeded for 0ns");
        lost(held().pause(1, 6_000, 17_000), 17_001).breaks(check, "impeded for 4s");
        lost(held().pause(1, 5_000, 17_000), 17_001).keeps(check);
    }

    #[test]
    fn a_removal_is_a_cause_for_its_own_guard() {
        lost(held().removal(100, 1), 200).keeps(check);
        lost(held().removal(100, 2), 200).breaks(check, "live holder");
        lost(held().removal(300, 1), 200).breaks(check, "live holder");
    }
}
