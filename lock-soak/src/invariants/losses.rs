use super::{Terms, Violation};
use crate::{
    event::Kind,
    history::{History, Span},
};

/// A guard is lost only where its process was stopped, or the store without a majority, within the TTL before.
pub(super) fn check(history: &History, terms: &Terms) -> Result<(), Violation> {
    for event in &history.events {
        if let Kind::Lost { ask, why } = &event.kind {
            let since = event.at.minus(terms.ttl);
            if !history.excused(event.process, Span { from: since, to: event.at }) {
                return Err(Violation::new(format!("{ask} of a live holder was lost: {why}"), since, event.at));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::story::Story, check};
    use crate::event::{Ask, Kind};

    fn lost(story: Story, millis: u64) -> Story {
        story.then(millis, 1, Kind::Lost { ask: Ask(1), why: "Expired".into() })
    }

    #[test]
    fn a_loss_without_a_cause_breaks() {
        lost(Story::default().holds(0, 1, 1, 1), 9_000).breaks(check, "Expired");
        // What happens to others is no excuse, and a single member is none.
        let other = Story::default().holds(0, 1, 1, 1).then(100, 0, Kind::Paused { process: 2 });
        lost(other, 9_000).breaks(check, "live holder");
        let member = Kind::FaultBegan { fault: "kill a member".into(), majority: false };
        lost(Story::default().holds(0, 1, 1, 1).then(100, 0, member), 9_000).breaks(check, "live holder");
        let long_ago = Story::default().then(0, 0, Kind::Paused { process: 1 }).then(1_000, 0, Kind::Resumed { process: 1 });
        lost(long_ago.holds(2_000, 1, 1, 1), 12_000).breaks(check, "live holder");
    }

    #[test]
    fn a_pause_or_an_outage_is_a_cause() {
        let paused = Story::default().holds(0, 1, 1, 1).then(100, 0, Kind::Paused { process: 1 });
        lost(paused.then(11_000, 0, Kind::Resumed { process: 1 }), 11_001).keeps(check);
        let outage = Kind::FaultBegan { fault: "kill all".into(), majority: true };
        lost(Story::default().holds(0, 1, 1, 1).then(100, 0, outage), 9_000).keeps(check);
    }
}
